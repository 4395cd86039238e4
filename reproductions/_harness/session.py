"""One call of a script that trains: where states are kept, how long it may go on, and its end.

States of trainings stand in `.checkpoints/PRESET` beside the results until the script has written
those. A script that was killed, stopped by Ctrl-C or SIGTERM, or out of its minutes, goes on from
there when it is called again with the same settings; with `resume=False` it begins anew.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console

from _harness import ranks, stopping
from _harness.bands import Band
from _harness.checkpoints import Checkpoint, check_folder
from _harness.loop import Training, Unfinished
from _harness.threads import torch_threads
from ctflow import CtflowError

__all__ = ["NOWHERE", "Config", "Session", "run_session"]

_HOUSEKEEPING = ("results", "minutes", "workers", "resume", "keep")
"""Settings that no number depends on."""


class Config(Protocol):
    """What every script that trains has among its settings; each of them is a dataclass.

    Attributes:
        preset: Its name.
        results: Folder of the results.
        minutes: Stop after about so long; the same call goes on from there.
        resume: Whether to go on with an unfinished call of the same settings; else begin anew.
    """

    @property
    def preset(self) -> str: ...
    @property
    def results(self) -> Path: ...
    @property
    def minutes(self) -> float: ...
    @property
    def resume(self) -> bool: ...


@dataclass(frozen=True)
class Session:
    """What the trainings of one call share; plain values, which other processes can be given.

    Args:
        script: Whose.
        config: Settings that numbers depend on, in plain values: what a record says.
        folder: Where states are kept; None: nowhere.
        keep: Whether they stay when the script is done; then each is known by the settings that are
            given with it alone, and other scripts may find it.
        until: Time (`time.monotonic`) after which no step is begun.
        after: States saved before this time (`time.time`) are not used.
    """

    script: str
    config: dict[str, Any]
    folder: Path | None = None
    keep: bool = False
    until: float = math.inf
    after: float = -math.inf

    def training(self, *parts: Any, name: str, **options: Any) -> Training:  # noqa: ANN401
        """A `Training` of a model, an optimiser and a loss that is kept here.

        Args:
            parts: Model, optimiser, loss.
            name: Unlike those of the call's other trainings.
            options: Those of `Training`; and `settings`, all that this training depends on.
        """
        settings = options.pop("settings", {})
        checkpoint = self.checkpoint(name, settings)
        return Training(*parts, name=name, checkpoint=checkpoint, until=self.until, **options)

    def checkpoint(self, name: str, settings: Mapping[str, object]) -> Checkpoint | None:
        """Where one training is kept."""
        if self.folder is None:
            return None
        own = self._own()
        whole = settings if self.keep and settings else own | settings
        digest = _digest(whole if self.keep and settings else own)
        plain = "".join(c if c.isalnum() or c in "-." else "_" for c in name)
        path = self.folder / f"{plain}-{digest}.pt"
        return Checkpoint(path, whole | {"training": name}, self.after)

    def elsewhere(self, folder: Path) -> Session:
        """The same, with states in another folder.

        Raises:
            CtflowError: If that one cannot be written to.
        """
        if ranks.rank() == 0:
            check_folder(folder)
        return replace(self, folder=folder)

    def finished(self) -> None:
        """Leave no states behind, unless they are kept."""
        if self.folder is None or self.keep or ranks.rank() > 0:
            return
        for path in self.folder.glob(f"*-{_digest(self._own())}*.pt"):
            path.unlink(missing_ok=True)
        for folder in (self.folder, self.folder.parent):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    def _own(self) -> dict[str, Any]:
        return {"script": self.script} | self.config


NOWHERE = Session("", {})
"""Of a training that keeps nothing."""

Record = dict[str, object]


def run_session(
    script: str,
    config: Config,
    work: Callable[[Any, Console, Session], Record],
    *,
    keep: bool = False,
    threads: int = 1,
) -> Record:
    """Do a script's work, from an empty folder to its record, or go on with what was stopped.

    Args:
        script: Its name.
        config: Its settings, which `work` is given.
        work: Trains by `Session.training`, prints, writes, and returns what was written.
        keep: Whether the states of finished trainings stay.
        threads: Of torch.

    Raises:
        CtflowError: If the folder cannot be written to, before any work.
    """
    stopping.forget()
    with torch_threads(threads), ranks.joined():
        session = _begun(script, config, keep)
        console = Console(quiet=ranks.rank() > 0)
        try:
            record = work(config, console, session)
        except Unfinished:
            console.print("Stopped in time; the same command goes on from here.")
            return {"bands": [Band("finished", 0.0, low=1.0).record()]}
        session.finished()
        return record


def _begun(script: str, config: Config, keep: bool) -> Session:
    folder = config.results / ".checkpoints" / config.preset
    trouble = ""
    if ranks.rank() == 0:
        try:
            check_folder(config.results)
        except CtflowError as error:
            trouble = str(error)
    trouble = ranks.shared(trouble)
    if trouble:
        raise CtflowError(trouble)
    until = time.monotonic() + 60 * config.minutes
    after = -math.inf if config.resume else time.time()
    return Session(script, _plain(config), folder, keep, until, after)


def _plain(config: Any) -> dict[str, Any]:  # noqa: ANN401 - each script has its own
    return {key: value for key, value in asdict(config).items() if key not in _HOUSEKEEPING}


def _digest(settings: Mapping[str, object]) -> str:
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:10]
