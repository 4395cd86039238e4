"""Result files that say what they were made with and are never half written."""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

import torch

from _harness.ranks import rank
from ctflow import __version__
from ctflow.errors import MissingDependency

__all__ = ["SCHEMA", "environment", "need", "run_as", "write_figure", "write_json", "write_text"]

SCHEMA = 2
"""Version of the result files: 2 has schema, command, seconds and the paper's numbers, 1 not."""

_ROOT = Path(__file__).parents[2]
_run: tuple[str, float, float] | None = None  # command, and both clocks at its start
_PACKAGES = (
    "torch", "torchdiffeq", "torchsde", "numpy", "scipy", "scikit-learn", "matplotlib", "sktime",
    "statsmodels",
)  # fmt: skip
_EXTRAS = {
    "sklearn": ("scikit-learn", "data"),
    "matplotlib": ("matplotlib", "plots"),
    "zuko": ("zuko", "flows"),
}


class Figure(Protocol):
    """What is asked of a figure: matplotlib's, which is imported only where one is drawn."""

    def savefig(self, fname: Path, *, format: str, dpi: int) -> None:
        """Write itself to a file."""
        ...


def need(*modules: str) -> None:
    """Check that the optional packages are there, before any work.

    Args:
        modules: Import names, of those that ctflow's extras bring.

    Raises:
        MissingDependency: If one is missing; names the extras to install.
    """
    missing = [_EXTRAS[module] for module in modules if find_spec(module) is None]
    if missing:
        packages = " and ".join(package for package, _ in missing)
        extras = ",".join(sorted(extra for _, extra in missing))
        raise MissingDependency(
            f"this reproduction needs {packages}, which is not installed. "
            f"Run: python -m pip install 'ctflow[{extras}]'"
        )


def run_as(command: str) -> None:
    """Note the command that is about to run a reproduction, and start its clocks.

    Args:
        command: As it would be typed, without paths of this machine.
    """
    global _run
    _run = command, time.monotonic(), _processor_seconds()


def environment() -> dict[str, object]:
    """What a result depends on: versions, machine and commit, and nothing that names a person."""
    return {
        "schema": SCHEMA,
        "command": None if _run is None else _run[0],
        "seconds": None
        if _run is None
        else {
            "elapsed": round(time.monotonic() - _run[1], 1),
            "processor": round(_processor_seconds() - _run[2], 1),
        },
        "versions": {"python": platform.python_version(), "ctflow": __version__} | _versions(),
        "machine": {
            "system": platform.system(),
            "architecture": platform.machine(),
            "cpus": os.cpu_count(),
            "threads": torch.get_num_threads(),
        }
        | _accelerator(),
        "commit": _commit(),
    }


def write_json(path: Path, record: Mapping[str, object]) -> None:
    """Write a record; a reader sees the old file or the new one, never a part.

    Raises:
        ValueError: If a number is NaN or infinite, which JSON has no way to say.
    """
    write_text(path, json.dumps(record, indent=2, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text; a reader sees the old file or the new one, never a part."""
    _replace(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_figure(path: Path, figure: Figure) -> None:
    """Write a figure as PNG; a reader sees the old file or the new one, never a part."""
    _replace(path, lambda temporary: figure.savefig(temporary, format="png", dpi=150))


def _processor_seconds() -> float:
    """Of this process and its children that have ended."""
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in spent)


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    if rank() > 0:
        return  # of several processes the first one writes
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _accelerator() -> dict[str, str]:
    """The GPU's name; of machines without one nothing is said."""
    return {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}


def _commit() -> str | None:
    """Commit of the checkout, "+" if files differ from it; None where there is no git."""
    try:
        commit = _git("rev-parse", "--short=12", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", "ctflow", "*.py")
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit}+" if changed else commit


def _git(*arguments: str) -> str:
    result = subprocess.run(
        ["git", *arguments], cwd=_ROOT, check=True, capture_output=True, text=True, timeout=10
    )
    return result.stdout.strip()
