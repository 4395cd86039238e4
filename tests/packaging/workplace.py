"""A copy of the set-up files in its own folder, with a Python that only pretends to install."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

__all__ = ["ROOT", "Workplace"]

ROOT = Path(__file__).parents[2]
FILES = ("Makefile", "pyproject.toml", "constraints.txt", ".ci")
TOOLS = ("sh", "make", "cat", "cksum", "cp", "echo", "grep", "mkdir", "mv", "rm")

# Answers `-c` truthfully except for its version and for the modules it is told to lack; makes
# environments that hold itself; and writes every call down instead of installing anything.
PRETENDER = """
import json, pathlib, shutil, sys, types

here = pathlib.Path(__file__).parent
program, *arguments = sys.argv[1:]
name = pathlib.Path(program).name
settings = json.loads((here / "settings.json").read_text())
with (here / "calls").open("a") as calls:
    calls.write(json.dumps(arguments) + "\\n")
if arguments[0] == "-c":
    sys.version_info = tuple(settings["versions"].get(name, settings["version"]))
    sys.modules.update({module: None for module in settings["missing"]})
    if settings["torch"] is not None:
        sys.modules["torch"] = types.SimpleNamespace(__version__=settings["torch"])
    exec(arguments[1])
elif arguments[1] == "venv":
    folder = pathlib.Path(arguments[-1], "bin")
    folder.mkdir()
    if settings["venv"] != 0:
        sys.exit(settings["venv"])
    shutil.copy(program, folder / "python")
else:
    print("pip runs")
    sys.exit(settings["pip"])
"""


class Workplace:
    """The set-up files in `folder`/"a checkout", beside a PATH that holds no real Python.

    Keyword arguments of `pretend` are what the pretended Python says of itself.
    """

    def __init__(self, folder: Path) -> None:
        """Copy the files and make the tools; nothing of git is copied."""
        self.folder = folder / "a checkout"
        self.bin = folder / "bin"
        self.state = folder / "pretender"
        for made in (self.folder, self.bin, self.state):
            made.mkdir()
        for name in FILES:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, self.folder / name)
        for tool in TOOLS:
            (self.bin / tool).symlink_to(shutil.which(tool) or tool)
        (self.state / "pretender.py").write_text(PRETENDER)
        self.pretend()
        self.add_python("python3")

    def add_python(self, name: str) -> None:
        """Put a pretended Python on the PATH."""
        program = self.bin / name
        script = self.state / "pretender.py"
        program.write_text(
            f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(str(script))} "$0" "$@"\n'
        )
        program.chmod(0o755)

    def pretend(self, **changed: Any) -> None:  # noqa: ANN401 - values of a JSON object
        """Say what the pretended Pythons answer from now on."""
        settings = {
            "version": [3, 12, 4],
            "versions": {},  # by name, where one differs
            "missing": ["torch"],
            "torch": None,
            "venv": 0,
            "pip": 0,
        }
        (self.state / "settings.json").write_text(json.dumps(settings | changed))

    def make(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run make with an environment that is otherwise empty."""
        return subprocess.run(
            ["make", *arguments],
            cwd=self.folder,
            env={"PATH": str(self.bin), "HOME": str(self.state)},
            capture_output=True,
            text=True,
            check=False,
        )

    def calls(self, module: str) -> list[list[str]]:
        """Arguments of every call of `python -m module` so far."""
        path = self.state / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        calls = [json.loads(line) for line in lines]
        return [call[2:] for call in calls if call[:2] == ["-m", module]]

    def exists(self, name: str) -> bool:
        """Whether the set-up left this file in the environment."""
        return os.path.lexists(self.folder / ".venv" / name)
