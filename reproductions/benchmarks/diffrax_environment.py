"""An environment with jax and diffrax: made once under the user's cache directory, then reused."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import venv
from collections.abc import Callable
from pathlib import Path

__all__ = ["PINNED", "PeerUnavailable", "cache_folder", "interpreter"]

PINNED = ("jax==0.10.2", "jaxlib==0.10.2", "diffrax==0.7.2", "equinox==0.13.8")
_READY = "ctflow-benchmark.txt"  # written last, so that half an environment is not taken for one


class PeerUnavailable(Exception):
    """A peer cannot take part; the message says why, in one line."""


def cache_folder() -> Path:
    """Where the environment is kept, by the platform's custom."""
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return base / "ctflow" / "benchmarks" / f"diffrax-{name}"


def interpreter(show: Callable[[str], None], folder: Path | None = None) -> Path:
    """The Python of the environment, which is made first if it is not there.

    Args:
        show: Is told how far the installation is.
        folder: Where it is kept; None: `cache_folder()`.

    Raises:
        PeerUnavailable: If jax or diffrax cannot be installed here.

    Cost:
        The first time, a download of some 150 MB.
    """
    folder = folder or cache_folder()
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    wanted = "\n".join(PINNED) + "\n"
    ready = folder / _READY
    if ready.is_file() and ready.read_text() == wanted and python.exists():
        return python
    try:
        shutil.rmtree(folder, ignore_errors=True)
        show("diffrax: making an environment")
        venv.create(folder, with_pip=True)
        _install(python, folder / "pip.log", show)
        ready.write_text(wanted)
    except (OSError, subprocess.CalledProcessError) as error:
        raise PeerUnavailable(f"no environment for it in {folder}: {error}") from error
    return python


def _install(python: Path, log: Path, show: Callable[[str], None]) -> None:
    command = [str(python), "-m", "pip", "install", "--disable-pip-version-check", *PINNED]
    began = time.monotonic()
    with log.open("w") as file, subprocess.Popen(command, stdout=file, stderr=file) as pip:
        while pip.poll() is None:
            show(f"diffrax: installing {', '.join(PINNED)}, {time.monotonic() - began:.0f} s")
            time.sleep(0.5)
    if pip.returncode:
        said = log.read_text(errors="replace").strip().splitlines()
        errors = [line for line in said if line.startswith("ERROR")] or said[-1:]
        raise PeerUnavailable(f"pip cannot install it: {' '.join(errors[-1:])} (see {log})")
