"""Packages of tests/plugins, installed as a third party's would be."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

__all__ = ["install"]

PLUGINS = Path(__file__).parents[1] / "plugins"


def install(name: str, folder: Path) -> Path:
    """Let pip install a plug-in into a folder, with nothing else and no network."""
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--target"]
    command = [sys.executable, "-m", "pip", "install", *options, str(folder), str(PLUGINS / name)]
    subprocess.run(command, check=True, capture_output=True)
    return folder
