"""Several reproductions: planned, run side by side, summed up; gone on with where they stopped."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from ctflow.cli.checkout import load_script
from ctflow.cli.options import configured
from ctflow.cli.outcome import Outcome, command_line
from ctflow.cli.output import STOPPED
from ctflow.cli.progress import told, watcher_for
from ctflow.cli.registry import Listed
from ctflow.cli.summary import print_summary
from ctflow.cli.workers import Task, run_all
from ctflow.errors import CtflowError

__all__ = ["reproduce_many"]


def reproduce_many(
    console: Console,
    root: Path,
    chosen: Sequence[Listed],
    preset: str,
    changes: Mapping[str, object],
    workers: int,
    *,
    check: bool,
) -> int:
    """Run them, show how far they are, and sum them up.

    Args:
        console: Where to.
        root: The checkout.
        chosen: Which.
        preset: Of all.
        changes: Settings given on the command line; a script that has not one of them is skipped.
        workers: How many at a time.
        check: Whether a number out of its band is an error.

    Returns:
        Exit code of the command.

    Raises:
        CtflowError: If the folder of the logs cannot be written.
    """
    logs = _folder(root, preset)
    names = [each.name for each in chosen]
    before = _done_before(logs, names, preset, changes)
    for name, outcome in before.items():
        console.print(Text(f"{name}: done before; {told(outcome)}"), soft_wrap=True)
    # Two that use several processes each would take the processors from each other.
    own = dict(changes) if workers == 1 else {**changes, "workers": 1}
    tasks, skipped = _plan(root, [e for e in chosen if e.name not in before], preset, own)
    with watcher_for(console, len(tasks)) as watcher:
        found = run_all(tasks, root, preset, logs, workers, watcher)
    every = {**before, **skipped, **found}
    print_summary(console, {name: every[name] for name in names if name in every})
    console.print(f"Logs: {logs.relative_to(root)}", highlight=False, soft_wrap=True)
    ended = {outcome.ended for outcome in every.values()}
    if "stopped" in ended or len(every) < len(names):
        again = _command(names, preset, changes, workers, check)
        console.print(Text(f"Stopped. This goes on from here: {again}"), soft_wrap=True)
        return STOPPED
    if "failed" in ended:
        return 2
    return int(check and any(outcome.missed for outcome in every.values()))


def _folder(root: Path, preset: str) -> Path:
    """Where logs and outcomes go.

    Raises:
        CtflowError: If nothing can be written there.
    """
    folder = root / "reproductions" / "results" / ".runs" / preset
    probe = folder / ".probe"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise CtflowError(
            f"results cannot be written below {str(folder.parent.parent)!r}: {error.strerror}. "
            "Make room, or make it writable."
        ) from None
    return folder


def _done_before(
    logs: Path, names: Sequence[str], preset: str, changes: Mapping[str, object]
) -> dict[str, Outcome]:
    """With --resume what an earlier command has done; without, what it left is taken away."""
    found: dict[str, Outcome] = {}
    for name in names:
        path = logs / f"{name}.json"
        if not changes.get("resume"):
            path.unlink(missing_ok=True)
            continue
        try:
            outcome = Outcome.read(path)
        except CtflowError:
            continue
        if outcome.ended == "done" and outcome.command == command_line(name, preset, changes):
            found[name] = outcome
    return found


def _plan(
    root: Path, chosen: Sequence[Listed], preset: str, changes: Mapping[str, object]
) -> tuple[list[Task], dict[str, Outcome]]:
    """What to run, what takes longest first, and what cannot be asked of a script."""
    tasks: list[Task] = []
    skipped: dict[str, Outcome] = {}
    for each in chosen:
        try:
            script: Any = load_script(root, each.name)
            configured(script, each.name, preset, changes)
        except CtflowError as error:
            skipped[each.name] = Outcome("skipped", " ".join(str(error).split()))
        else:
            tasks.append(Task(each.name, changes, each.minutes.get(preset), each.alone))
    return sorted(tasks, key=lambda task: -(task.minutes or 0.0)), skipped


def _command(
    names: Sequence[str], preset: str, changes: Mapping[str, object], workers: int, check: bool
) -> str:
    """The command that goes on."""
    _, _, _, *given = shlex.split(command_line("", preset, changes))
    flags = [*given, "--workers", str(workers), *(["--check"] if check else []), "--resume"]
    return shlex.join(["ctflow", "reproduce", *names, *flags])
