"""Public programs written for torchdiffeq, run as they are on both libraries: results and times.

    python -m tests.compat.programs suites --out docs/compat_results.json
    python -m tests.compat.programs times --repeats 5 --out docs/compat_results.json

The checkouts are named by environment variables, at the commits that are written here:
CTFLOW_TORCHDIFFEQ_CHECKOUT, CTFLOW_TORCHCDE_CHECKOUT, CTFLOW_FLOW_MATCHING_CHECKOUT. What they
import beside torch (torchvision, torchcde, flow_matching, tqdm) is looked for in the directory
CTFLOW_COMPAT_PACKAGES. CTFLOW_DIGITS is an .npz with digits, `x` [n, 28, 28] and `y` [n].
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

__all__ = ["COMMITS", "PROGRAMS", "SUITES", "Program", "checkout", "failures", "ran", "table"]

ROOT = Path(__file__).parents[2]
COMMITS = {
    "torchdiffeq": "657943acefa826ef04c025ebeb1ff5e9d60dc268",
    "torchcde": "9ff6aba4738989dc5fe3aee86d45812c318f6231",
    "flow_matching": "11568d37f8d5a080e12aa7b5305d9c35ae07d136",
}
"""The commits of the checkouts."""


class Program(NamedTuple):
    """One program of a checkout.

    Attributes:
        name: In the table.
        of: Whose checkout.
        folder: Where it is run from, in the checkout; None for a scratch folder.
        words: What follows `python`; the script relative to the checkout.
        needs: Packages beside torch.
    """

    name: str
    of: str
    folder: str | None
    words: tuple[str, ...]
    needs: tuple[str, ...] = ()


def _example(name: str, *words: str, needs: tuple[str, ...] = ()) -> Program:
    script = f"examples/{name}.py"
    return Program(" ".join([name, *words]), "torchdiffeq", None, (script, *words), needs)


_MNIST = ("--nepochs", "1", "--batch_size", "100", "--data_aug", "False", "--save", "digits")
_PYTEST = ("-m", "pytest", "-q", "--tb=line", "-p", "no:cacheprovider")

PROGRAMS = (
    Program("import torchdiffeq", "torchdiffeq", None, ("nothing.py",)),  # what starting costs
    _example("ode_demo", "--niters", "200"),
    _example("ode_demo", "--niters", "100", "--adjoint"),
    _example("bouncing_ball", "20"),
    _example("bouncing_ball", "20", "--adjoint"),
    _example("cnf", "--niters", "20"),
    _example("cnf", "--niters", "20", "--adjoint"),
    _example("latent_ode", "--niters", "30"),
    _example("latent_ode", "--niters", "8", "--adjoint", "True"),
    _example("learn_physics", "--num_iterations", "8", "--save", "figures"),
    _example("odenet_mnist", *_MNIST, needs=("torchvision",)),
    _example("odenet_mnist", *_MNIST, "--adjoint", "True", needs=("torchvision",)),
)
"""The examples of torchdiffeq, for few iterations."""

SUITES = (
    *(
        Program(name, "torchdiffeq", "tests", ("-m", "unittest", name))
        for name in ("api_tests", "event_tests", "gradient_tests", "odeint_tests", "norm_tests")
    ),
    Program("torchcde's own tests", "torchcde", "test", (*_PYTEST, "."), ("torchcde",)),
    Program(
        "flow_matching's own tests of its solvers",
        "flow_matching",
        None,
        (*_PYTEST, "tests/solver"),
        ("flow_matching", "tqdm"),
    ),
)
"""The tests of torchdiffeq and of two libraries that are built on it."""


class Ran(NamedTuple):
    """How a program ended: exit code, processor and wall time in seconds, what it printed."""

    code: int
    cpu: float
    wall: float
    output: str


def checkout(of: str) -> Path | None:
    """Where a checkout is, if it is named."""
    named = os.environ.get(f"CTFLOW_{of.upper()}_CHECKOUT")
    return Path(named) if named else None


def ran(program: Program, library: str, scratch: Path) -> Ran:
    """Run a program on "torchdiffeq" or on "ctflow".

    Args:
        program: Of a checkout that is there.
        library: Who solves.
        scratch: A folder for what it writes.
    """
    source = checkout(program.of)
    if source is None:
        raise FileNotFoundError(f"no checkout of {program.of}; see this module's docstring")
    if "odenet_mnist" in program.name:
        _write_digits(scratch)
    (scratch / "nothing.py").write_text("import torchdiffeq\n")
    first, *rest = program.words
    source = scratch if first == "nothing.py" else source
    words = [str(source / first), *rest] if first.endswith(".py") else list(program.words)
    if program.folder is None and not first.endswith(".py"):
        folder = source
    else:
        folder = scratch if program.folder is None else source / program.folder
    theirs = checkout("torchdiffeq")
    paths = [ROOT] if library == "ctflow" else [theirs] if theirs else []
    packages = os.environ.get("CTFLOW_COMPAT_PACKAGES", "")
    command = [sys.executable, "-W", "ignore"]
    if library == "ctflow":
        command += ["-m", "ctflow", "run", "--replace", "torchdiffeq"]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([*map(str, paths), packages]),
        "PYTHONWARNINGS": "ignore",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "OMP_NUM_THREADS": "1",
        "MPLBACKEND": "Agg",
    }
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [*command, *words], cwd=folder, env=environment, check=False, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=3600,
    )  # fmt: skip
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Ran(done.returncode, cpu, wall, done.stdout)


def _write_digits(scratch: Path) -> None:
    """Digits as the files that torchvision looks for, so that nothing is downloaded."""
    folder = scratch / ".data/mnist/MNIST/raw"
    if folder.exists():
        return
    folder.mkdir(parents=True)
    found = np.load(os.environ["CTFLOW_DIGITS"])
    for name, rows in (("train", slice(0, None, 5)), ("t10k", slice(2, None, 10))):
        x, y = found["x"][rows].astype(np.uint8), found["y"][rows].astype(np.uint8)
        shape = np.array([2051, *x.shape], dtype=">i4")  # the magic numbers of the format
        (folder / f"{name}-images-idx3-ubyte").write_bytes(shape.tobytes() + x.tobytes())
        shape = np.array([2049, len(y)], dtype=">i4")
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(shape.tobytes() + y.tobytes())


def failures(output: str) -> list[str]:
    """The tests that failed, as unittest and pytest name them."""
    names = re.findall(r"^(?:FAIL|ERROR): (\S+) \(\S+\)(.*)$", output, re.MULTILINE)
    found = [f"{name}{case}" for name, case in names]
    return found + re.findall(r"^FAILED (\S+::\S+)", output, re.MULTILINE)


def _summary(output: str) -> str:
    """The line in which a suite says how it went."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    counted = [line for line in lines if re.match(r"(Ran \d+ tests|\d+ (passed|failed))", line)]
    return re.sub(r" in [\d.]+s.*", "", counted[-1]) if counted else lines[-1]


def _suites() -> Iterator[dict[str, Any]]:
    for program in SUITES:
        if checkout(program.of) is None:
            continue
        row: dict[str, Any] = {"name": program.name, "of": program.of}
        for library in ("torchdiffeq", "ctflow"):
            with tempfile.TemporaryDirectory() as scratch:
                found = ran(program, library, Path(scratch))
            row[library] = {
                "summary": _summary(found.output),
                "failed": failures(found.output),
                "cpu_s": round(found.cpu, 1),
            }
            print(program.name, library, row[library], flush=True)  # noqa: T201
        yield row


def _times(repeats: int) -> Iterator[dict[str, Any]]:
    for program in PROGRAMS:
        seconds: dict[str, list[float]] = {"torchdiffeq": [], "ctflow": []}
        with tempfile.TemporaryDirectory() as scratch:
            for _ in range(repeats):  # one after the other, so that both meet the same machine
                for library, known in seconds.items():
                    found = ran(program, library, Path(scratch))
                    if found.code:
                        raise RuntimeError(f"{program.name} on {library}:\n{found.output}")
                    known.append(round(found.cpu, 2))
        print(program.name, seconds, flush=True)  # noqa: T201
        medians = {library: statistics.median(known) for library, known in seconds.items()}
        yield {"name": program.name, "cpu_s": seconds, "median_s": medians}


def table(results: dict[str, Any], which: str) -> str:
    """A table of the results in Markdown, as docs/compat.md has it."""
    if which == "times":
        lines = ["| program | torchdiffeq | ctflow | ratio |", "| --- | --- | --- | --- |"]
        for row in results["times"]:
            theirs, ours = row["median_s"]["torchdiffeq"], row["median_s"]["ctflow"]
            lines.append(
                f"| `{row['name']}` | {theirs:.1f} s | {ours:.1f} s | {ours / theirs:.2f} |"
            )
        return "\n".join(lines)
    lines = ["| suite | torchdiffeq | ctflow |", "| --- | --- | --- |"]
    for row in results["suites"]:
        cells = [_cell(row[library]) for library in ("torchdiffeq", "ctflow")]
        lines.append(f"| {row['name']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(found: dict[str, Any]) -> str:
    n = len(found["failed"])
    failed = f"{n} failure{'' if n == 1 else 's'}" if n else "OK"
    return f"{found['summary'].removeprefix('Ran ')}, {failed}, {found['cpu_s']:.0f} s"


def main() -> None:
    """Run what is asked for and write it beside what is known already."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=("suites", "times"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    known = json.loads(chosen.out.read_text()) if chosen.out.exists() else {}
    rows = _suites() if chosen.what == "suites" else _times(chosen.repeats)
    load = os.getloadavg()[0]
    known[chosen.what] = list(rows)
    known.setdefault("machine", {})[chosen.what] = {
        "processor": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "load_before_and_after": [round(load, 1), round(os.getloadavg()[0], 1)],
        "python": platform.python_version(),
    }
    known["commits"] = COMMITS
    chosen.out.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
