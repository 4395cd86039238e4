"""Runs a script several times, kills it each time but the last, and compares what came of it.

    python lives.py SCRIPT FOLDER SEED CHANGE=NUMBER ...

CHANGE is a setting of the preset `smoke`, or one within a setting, as in job.recipe.epochs=6.

Each life is a process of its own, which starts from an interpreter that has torch loaded and has
computed nothing yet; SIGKILL comes a random time after a random number of checkpoints. The results
of the last life stand in FOLDER/killed, those of a life without disturbance in FOLDER/whole.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

_ROOT = Path(__file__).parents[2]
_DEATHS = 3


def main(name: str, folder: Path, seed: int, changes: dict[str, int]) -> None:
    """All lives."""
    sys.path.insert(0, str(_ROOT / "reproductions"))
    from _harness import loop

    from ctflow.cli.checkout import load_script

    loop._EVERY = 0.0  # as often as can be
    script = load_script(_ROOT, name)
    chance = random.Random(seed)
    _ended(_born(script, folder / "whole", changes), 0)
    for _ in range(_DEATHS):
        _killed(_born(script, folder / "killed", changes), folder / "killed", chance)
    _ended(_born(script, folder / "killed", changes), 0)


def _born(script: ModuleType, results: Path, changes: dict[str, int]) -> int:
    """A process that runs the script; its id."""
    child = os.fork()
    if child:
        return child
    try:
        script.main(_changed(replace(script.PRESETS["smoke"], results=results), changes))
    finally:
        sys.stdout.flush()
        os._exit(1 if sys.exc_info()[0] else 0)


def _changed(settings: Any, changes: dict[str, int]) -> Any:  # noqa: ANN401
    for key, value in changes.items():
        name, _, rest = key.partition(".")
        inner = _changed(getattr(settings, name), {rest: value}) if rest else value
        settings = replace(settings, **{name: inner})
    return settings


def _killed(child: int, results: Path, chance: random.Random) -> None:
    """Let it save some states, and a little more; then kill it where it stands."""
    wanted, seen = chance.randint(1, 4), set[tuple[str, int]]()
    while len(seen) < wanted:
        if os.waitpid(child, os.WNOHANG)[0]:
            raise RuntimeError(f"a life ended by itself after {len(seen)} checkpoints of {wanted}")
        for path in (results / ".checkpoints").rglob("*.pt"):
            try:
                seen.add((path.name, path.stat().st_mtime_ns))
            except FileNotFoundError:  # just moved
                continue
        time.sleep(0.001)
    time.sleep(0.02 * chance.random())
    os.kill(child, signal.SIGKILL)
    _ended(child, -signal.SIGKILL)


def _ended(child: int, wanted: int) -> None:
    _, status = os.waitpid(child, 0)
    found = os.waitstatus_to_exitcode(status)
    if found != wanted:
        raise RuntimeError(f"a life ended with {found}, not {wanted}")


if __name__ == "__main__":
    pairs = (pair.split("=") for pair in sys.argv[4:])
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), {k: int(v) for k, v in pairs})
