"""`ctflow info`: what is installed here."""

from __future__ import annotations

import platform
from collections.abc import Collection
from importlib.metadata import PackageNotFoundError, version

import torch
import typer
from rich.console import Console

from ctflow import __version__
from ctflow.backends import Feature, get
from ctflow.backends.registry import names
from ctflow.cli.output import one_line_errors
from ctflow.errors import BackendUnavailable

__all__ = ["info"]

_PACKAGES = ("numpy", "torchdiffeq", "torchsde", "scipy", "scikit-learn", "matplotlib")
_GRADIENTS = (Feature.DIRECT, Feature.CHECKPOINTED, Feature.ADJOINT)


def info(context: typer.Context) -> None:
    """Show versions, devices, the backends that are installed, and what each of them can do.

    For example:

        ctflow info
    """
    with one_line_errors(context):
        rows = [
            ("ctflow", __version__),
            ("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
            ("torch", f"{torch.__version__}, {torch.get_num_threads()} threads"),
            ("devices", ", ".join(_devices())),
            ("packages", ", ".join(f"{name} {_version(name)}" for name in _PACKAGES)),
            ("accelerator", _cuda()),
            *((f"backend {name}", _gradients(name)) for name in names()),
        ]
        table = _abilities()
    console = Console()
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        console.print(f"{name:<{width}}  {value}", markup=False, highlight=False, soft_wrap=True)
    for line in table:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _abilities() -> list[str]:
    """A line for every feature, a column for every backend that is installed."""
    installed = [name for name in names() if _features(name) is not None]
    width = max(len(feature.value) for feature in Feature)
    head = f"{'what each can do':<{width}}  " + "  ".join(installed)
    lines = ["", head.rstrip()]
    for feature in Feature:
        marks = (
            f"{'yes' if feature in (_features(name) or ()) else '-':<{len(name)}}"
            for name in installed
        )
        lines.append(f"{feature.value:<{width}}  {'  '.join(marks)}".rstrip())
    return lines


def _features(name: str) -> Collection[Feature] | None:
    """What a backend says that it can do; None where it cannot be loaded."""
    try:
        return get(name).features
    except BackendUnavailable:
        return None


def _cuda() -> str:
    """What torch was built for."""
    if torch.version.cuda is None:
        return "none: torch is built for the CPU alone"
    state = "usable" if torch.cuda.is_available() else "not usable here"
    return f"CUDA {torch.version.cuda}, {state}"


def _gradients(name: str) -> str:
    """Gradient methods of a backend, or that it cannot be loaded."""
    features = _features(name)
    if features is None:
        return "not installed"
    offered = [gradient.value.split()[0] for gradient in _GRADIENTS if gradient in features]
    return f"gradients: {', '.join(offered) or 'none'}"


def _devices() -> list[str]:
    devices = ["cpu"]
    devices += [
        f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())
    ]
    return devices + (["mps"] if torch.backends.mps.is_available() else [])


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
