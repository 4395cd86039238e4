"""One reproduction run from settings to an outcome, here or as a process of its own."""

from __future__ import annotations

import json
import shlex
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

from ctflow.cli.checkout import load_script, load_shared
from ctflow.cli.options import configured
from ctflow.errors import CtflowError, MissingDependency

__all__ = ["Outcome", "command_line", "main", "run_script"]

UNFINISHED = "finished"  # the one number of a script whose minutes are up, which it misses

Ended = Literal["done", "skipped", "failed", "stopped"]


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Args:
        ended: "done"; "skipped" where something optional is missing; "failed"; "stopped" by hand.
        reason: Why, in one line, unless it is done.
        bands: Its numbers as its result file has them.
        seconds: Elapsed.
        command: That gives it again.
    """

    ended: Ended
    reason: str = ""
    bands: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    seconds: float = 0.0
    command: str = ""

    @property
    def missed(self) -> int:
        """How many numbers are out of their bands."""
        return sum(not band["passed"] for band in self.bands)

    def write(self, path: Path) -> None:
        """For `read`."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Outcome:
        """What `write` wrote.

        Raises:
            CtflowError: If there is nothing, or not that.
        """
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            raise CtflowError(f"{path.name} holds no outcome of a run. Run it again.") from None


def command_line(name: str, preset: str, changes: Mapping[str, object]) -> str:
    """The command that gives a run's numbers again, without paths of this machine."""
    words = ["ctflow", "reproduce", name, "--preset", preset]
    for key in ("backend", "seed", "device", "minutes"):  # resume and workers change no number
        if key in changes:
            words += [f"--{key}", str(changes[key])]
    return shlex.join(words)


def run_script(
    root: Path, name: str, preset: str, changes: Mapping[str, object]
) -> list[dict[str, Any]]:
    """Run a reproduction in this process; its bands.

    Raises:
        CtflowError: If there is no such reproduction or preset, or a setting that it has not; and
            whatever it raises itself.
    """
    script: Any = load_script(root, name)
    config = configured(script, name, preset, changes)
    if (root / "reproductions" / "_harness" / "records.py").is_file():
        records = load_shared(root, "_harness.records", "keeps no records")
        records.run_as(command_line(name, preset, changes))
    record = script.main(config)
    return cast("list[dict[str, Any]]", record["bands"])


def main(arguments: list[str]) -> int:
    """A process that runs one reproduction and writes its outcome; prints as the script does.

    Args:
        arguments: Checkout, name, preset, settings as JSON, file of the outcome.
    """
    root, name, preset, changes, path = arguments
    try:
        bands = run_script(Path(root), name, preset, json.loads(changes))
        if [band["name"] for band in bands if not band["passed"]] == [UNFINISHED]:
            outcome = Outcome("stopped", "its time is up; it goes on from there")
        else:
            outcome = Outcome("done", bands=bands)
    except KeyboardInterrupt:
        outcome = Outcome("stopped", "stopped by hand")
    except Exception as error:
        ended: Ended = "skipped" if isinstance(error, MissingDependency) else "failed"
        known = isinstance(error, CtflowError)
        text = " ".join(str(error).split())
        outcome = Outcome(ended, text if known else f"{type(error).__name__}: {text}")
        traceback.print_exc()  # into the log of the run
    again = command_line(name, preset, json.loads(changes))
    replace(outcome, command=again).write(Path(path))
    return 0 if outcome.ended in ("done", "skipped") else 1
