"""Wheel and sdist: what they hold, what an index would say, and a first use of the wheel."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from importlib import util
from pathlib import Path
from types import ModuleType

import pytest

import ctflow
from tests.packaging.workplace import ROOT

pytest.importorskip("build")
pytest.importorskip("hatchling")

README = (ROOT / "README.md").read_text()
# The environment of a user: no PYTHONPATH that would lead back to the source.
EMPTY = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both, the wheel built from the sdist as a packager would."""
    folder = tmp_path_factory.mktemp("dist")
    arguments = ["--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run([sys.executable, "-m", "build", *arguments], check=True, capture_output=True)
    return folder


def test_the_wheel_holds_the_package_alone(built: Path) -> None:
    """Types are announced, the tests stay out, and the version is the module's."""
    (wheel,) = built.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert wheel.name == f"ctflow-{ctflow.__version__}-py3-none-any.whl"
    assert "ctflow/py.typed" in names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"ctflow", "ctflow_pytest.py"}


def test_the_sdist_holds_what_tests_and_readers_need(built: Path) -> None:
    """Tests, documents, scripts and the pages beside README.md; no results and no caches."""
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    pages = {path.name for path in ROOT.glob("*.md")}
    wanted = pages | {"LICENSE", "CITATION.cff", "constraints.txt", "Makefile", "pyproject.toml"}
    wanted |= {".ci/environment.sh", "docs/paper.bib", "tests/conftest.py", "ctflow/py.typed"}
    assert wanted <= names
    assert "reproductions/figure_1.py" in names
    assert not [n for n in names if "/results/" in n or "__pycache__" in n or n.startswith(".venv")]


def test_an_index_would_take_both(built: Path) -> None:
    """`twine check --strict`: the metadata are whole, and the description can be shown."""
    pytest.importorskip("twine")
    files = [str(path) for path in built.iterdir()]
    command = [sys.executable, "-m", "twine", "check", "--strict", *files]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("PASSED") == len(files) == 2


@pytest.fixture(scope="module")
def python(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of an environment with the wheel installed, the runtime dependencies linked, nothing else."""
    folder = tmp_path_factory.mktemp("user")
    python = _environment(folder / "empty", with_pip=False)
    bare = _script("bare_environment")
    site = Path(_run(folder, python, "-c", bare.WHERE).strip())
    for name in sorted(bare.closure(("ctflow",)) - {"ctflow"}):
        bare.link(name, site)
    options = ["--python", str(python), "install", "--no-deps", "--no-index", "--quiet"]
    _run(folder, sys.executable, "-m", "pip", *options, *map(str, built.glob("*.whl")))
    return python


def test_the_installed_wheel_runs_the_readmes_first_example(python: Path, tmp_path: Path) -> None:
    """In another folder, where warnings are errors; the command is there too."""
    _check_first_use(tmp_path, python)
    assert python.with_name("ctflow").is_file()


CONSUMER = """# pyright: strict
from typing import assert_type

import torch
from torch import Tensor

from ctflow import ODEProblem, Solution, Solver, odeint, solve


def f(t: Tensor, y: Tensor) -> Tensor:
    return -y


assert_type(odeint(f, torch.ones(3), [0.0, 1.0]), Tensor)
pair = (torch.ones(3), torch.ones(3))
assert_type(odeint(f, pair, [0.0, 1.0]), tuple[Tensor, Tensor])
problem = ODEProblem(f, torch.ones(3), torch.tensor([0.0, 1.0]))
assert_type(solve(problem, Solver(rtol=1e-4)), Solution)
Solver(gradient="adjiont")  # pyright: ignore[reportArgumentType]
"""


def test_a_type_checker_sees_the_installed_types(python: Path, tmp_path: Path) -> None:
    """Strictly; a misspelt word is an error there, or the comment behind it would be one."""
    pytest.importorskip("pyright")
    (tmp_path / "consumer.py").write_text(CONSUMER)
    settings = '{"reportUnnecessaryTypeIgnoreComment": true, "reportMissingTypeStubs": false}'
    (tmp_path / "pyrightconfig.json").write_text(settings)
    command = [sys.executable, "-m", "pyright", "--pythonpath", str(python), "consumer.py"]
    quiet = {"PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}
    result = subprocess.run(
        command, cwd=tmp_path, env=EMPTY | quiet, capture_output=True, text=True, check=False
    )
    assert result.stdout.startswith("0 errors"), result.stdout + result.stderr


@pytest.mark.slow
def test_the_wheel_brings_its_dependencies_into_an_empty_environment(
    built: Path, tmp_path: Path
) -> None:
    """With the real pip, which downloads torch and all others; the command is on the path."""
    own = _environment(tmp_path / "empty", with_pip=True)
    (wheel,) = built.glob("*.whl")
    pins = ["-c", str(ROOT / "constraints.txt")]
    _run(tmp_path, own, "-m", "pip", "install", "--quiet", *pins, str(wheel))
    _run(tmp_path, own, "-m", "pip", "check")
    _check_first_use(tmp_path, own)
    assert "native" in _run(tmp_path, own.with_name("ctflow"), "info")


def test_importing_ctflow_takes_a_tenth_of_a_second_beside_torch() -> None:
    """Processor time of the import after torch's own; a busy machine gets three tries."""
    code = (
        "import time, torch; begun = time.process_time(); import ctflow; "
        "print(time.process_time() - begun)"
    )
    command = [sys.executable, "-c", code]
    tries = (
        float(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)
        for _ in range(3)
    )
    assert any(seconds < 0.1 for seconds in tries)


def _check_first_use(folder: Path, python: Path) -> None:
    """README.md's first example, followed in another folder."""
    example = re.search(r"^```python\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    assert example is not None
    (folder / "first.py").write_text(example[1] + "import ctflow\nprint(ctflow.__file__)\n")
    output = _run(folder, python, "-W", "error", "first.py")
    assert "tensor([" in output  # the gradient
    assert Path(output.splitlines()[-1]).is_relative_to(python.parents[1])


def _environment(folder: Path, *, with_pip: bool) -> Path:
    """The Python of a new environment."""
    venv.EnvBuilder(symlinks=True, with_pip=with_pip).create(folder)
    return folder / "bin" / "python"


def _script(name: str) -> ModuleType:
    """A script of .ci as a module."""
    spec = util.spec_from_file_location(name, ROOT / ".ci" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _run(folder: Path, *command: Path | str) -> str:
    """What a successful command prints, away from the source."""
    result = subprocess.run(
        command, cwd=folder, env=EMPTY, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout
