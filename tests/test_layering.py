"""The import order holds, and the check of it would notice a breach."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.layering import order_breaches, public_name_breaches

ROOT = Path(__file__).parents[1]


def test_modules_import_only_from_the_rows_above_them() -> None:
    """Every import in the package follows the order of docs/design.md."""
    assert order_breaches(ROOT) == []


@pytest.mark.parametrize("folder", ["ctflow/cli", "reproductions", "tests"])
def test_users_of_the_package_use_its_public_names(folder: str) -> None:
    """Command line, reproductions and tests take what `__all__` offers."""
    assert public_name_breaches(ROOT, folder) == []


BREACHES = {
    "upwards": ("ctflow/errors.py", "from ctflow.state import pack"),
    "relative": ("ctflow/state.py", "from .api import solve"),
    "sideways": ("ctflow/flows/cnf.py", "import ctflow.latent.model"),
    "by the public names": ("ctflow/dynamics/block.py", "from ctflow import solve"),
    "a backend from a model": ("ctflow/flows/cnf.py", "from ctflow.backends import native"),
    "the registry from a backend": ("ctflow/backends/scipy.py", "from ctflow.backends import get"),
    "one adapter from another": ("ctflow/backends/scipy.py", "import ctflow.backends.native"),
    "the test room from a model": (
        "ctflow/dynamics/block.py",
        "from ctflow.testing import check_dynamics",
    ),
    "the test room from the solver": ("ctflow/api.py", "import ctflow.testing.check"),
    "the command line from the test room": (
        "ctflow/testing/check.py",
        "from ctflow.cli.app import app",
    ),
    "inside a function": ("ctflow/api.py", "def f():\n    from ctflow.errors import CtflowError"),
    "TYPE_CHECKING": ("ctflow/state.py", "from typing import TYPE_CHECKING"),
    "typing.TYPE_CHECKING": ("ctflow/state.py", "import typing\nif typing.TYPE_CHECKING: pass"),
    "a module of no row": ("ctflow/utils.py", "from ctflow.errors import CtflowError"),
}


@pytest.mark.parametrize("case", BREACHES)
def test_a_breach_of_the_order_is_noticed(case: str, tmp_path: Path) -> None:
    """Each kind of breach is reported, with its file."""
    file, text = BREACHES[case]
    _package(tmp_path)
    (tmp_path / file).write_text(text)
    found = order_breaches(tmp_path)
    assert len(found) == 1
    assert found[0].startswith(f"{file}:")


ALLOWED = {
    "errors by anybody": ("ctflow/state.py", "from .errors import CtflowError"),
    "within native": ("ctflow/backends/native/loop.py", "from .step import rk_step"),
    "native by compiled": (
        "ctflow/backends/compiled/solve.py",
        "from ctflow.backends.native.step import rk_step",
    ),
    "the layer by its package": ("ctflow/dynamics/__init__.py", "from .block import ODEBlock"),
    "everything below by the test room": (
        "ctflow/testing/check.py",
        "from ctflow.api import solve\nfrom ctflow.backends.native.step import rk_step",
    ),
    "the test room by the command line": (
        "ctflow/cli/check.py",
        "from ctflow.testing.check import check_dynamics",
    ),
    "a library when it is needed": ("ctflow/plotting.py", "def plot():\n    import matplotlib"),
}


@pytest.mark.parametrize("case", ALLOWED)
def test_an_import_from_above_is_allowed(case: str, tmp_path: Path) -> None:
    """The check does not forbid what the design allows."""
    file, text = ALLOWED[case]
    _package(tmp_path)
    (tmp_path / file).write_text(text)
    assert order_breaches(tmp_path) == []


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("tests/test_a.py", "from ctflow.errors import _hidden"),
        ("tests/test_a.py", "from ctflow.errors import not_in_all"),
        ("tests/test_a.py", "from ctflow.backends.native.step import rk_step"),
        ("tests/test_a.py", "def test():\n    import ctflow.backends.native.loop"),
    ],
)
def test_a_name_that_is_not_public_is_noticed(file: str, text: str, tmp_path: Path) -> None:
    """A private name, one outside `__all__` and the inside of a backend are reported."""
    _package(tmp_path)
    (tmp_path / file).write_text(text)
    assert len(public_name_breaches(tmp_path, "tests")) == 1


def test_tests_of_native_may_look_into_it(tmp_path: Path) -> None:
    """A backend's own tests import its modules."""
    _package(tmp_path)
    file = tmp_path / "tests/backends/native/test_step.py"
    file.write_text("from ctflow.backends.native.step import rk_step")
    assert public_name_breaches(tmp_path, "tests") == []


def _package(root: Path) -> None:
    """An empty copy of the package's layout, and of the tests'."""
    for folder in ("native", "compiled"):
        (root / "ctflow/backends" / folder).mkdir(parents=True)
        (root / "tests/backends" / folder).mkdir(parents=True)
    for folder in ("dynamics", "flows", "latent", "testing", "cli"):
        (root / "ctflow" / folder).mkdir()
    modules = ["errors", "state", "api", "plotting", "backends/scipy", "backends/native/loop"]
    packages = ["", "backends/", "backends/native/", "dynamics/", "flows/", "latent/", "testing/"]
    for module in [*modules, *(f"{package}__init__" for package in packages)]:
        (root / "ctflow" / f"{module}.py").touch()
    (root / "ctflow/errors.py").write_text('__all__ = ["CtflowError"]')
    (root / "ctflow/latent/model.py").touch()
    (root / "ctflow/dynamics/block.py").touch()
    (root / "ctflow/testing/check.py").touch()
    (root / "ctflow/cli/app.py").touch()
    (root / "ctflow/backends/native/step.py").write_text('__all__ = ["rk_step"]')
