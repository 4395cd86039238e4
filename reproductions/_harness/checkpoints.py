"""States of trainings on disk: written as a whole, checked when read, and never half believed.

A checkpoint is a file of `torch.save` that holds tensors and plain values alone, so that it is read
with `weights_only=True`: a file that wants to run code is refused. The one before it is kept beside
it, and taken where the last one is damaged or not of this training.
"""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ctflow import CtflowError, __version__

__all__ = ["Checkpoint", "State", "check_folder"]

State = dict[str, Any]
"""Tensors and plain values in dicts, lists and tuples."""

_SCHEMA = 1
_ROOM = 1 << 20  # bytes that a folder must take before anything is trained


class _Refused(Exception):
    """Why a file is not used, in a few words."""


@dataclass(frozen=True)
class Checkpoint:
    """Where the state of one training is kept, and whose it is.

    Args:
        path: The file; the one before it has `.previous` in its name.
        settings: All that the training depends on, in plain values. Versions of ctflow and torch
            are added: other ones give other numbers.
        after: A file saved before this time (`time.time`) is not used: the training begins anew.
    """

    path: Path
    settings: Mapping[str, object]
    after: float = -math.inf

    @property
    def previous(self) -> Path:
        """The file before the last."""
        return self.path.with_name(f"{self.path.stem}.previous{self.path.suffix}")

    def save(self, state: State) -> None:
        """Write a state; whenever this process is killed, the last one or the one before is whole.

        Raises:
            CtflowError: If it cannot be written; what was there stays.
        """
        content = {"schema": _SCHEMA, "run": self._run(), "saved": time.time(), "state": state}
        packed = io.BytesIO()
        torch.save(content, packed)
        temporary = self.path.with_name(f".{self.path.name}.writing")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                file.write(packed.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            if self.path.exists():
                self.path.replace(self.previous)
            temporary.replace(self.path)
        except OSError as error:
            raise CtflowError(
                f"the training's state cannot be written to {self.path.parent}: {_reason(error)}. "
                "What was saved before stays; make room and give the same command again."
            ) from None
        finally:
            _remove(temporary)

    def load(self, say: Callable[[str], None]) -> State | None:
        """The last state that is whole and of this training; None if there is none.

        Args:
            say: Told in one line which file is not used, and why.
        """
        refused = False
        for path in (self.path, self.previous):
            if not path.is_file():
                continue
            try:
                content = self._read(path)
            except _Refused as reason:
                say(f"{path.name} is not used: {reason}")
                refused = True
                continue
            if content["saved"] > self.after:
                return content["state"]
        if refused:
            say(f"{self.path.stem} begins anew")
        return None

    def remove(self) -> None:
        """Leave nothing behind: the training is finished and used."""
        _remove(self.path)
        _remove(self.previous)

    def _run(self) -> dict[str, str]:
        plain = {key: json.dumps(value, default=str) for key, value in self.settings.items()}
        return plain | {"ctflow": __version__, "torch": str(torch.__version__)}

    def _read(self, path: Path) -> State:
        try:
            with zipfile.ZipFile(path) as archive:  # torch.save writes one, with checksums
                if archive.testzip() is not None:
                    raise _Refused("it is damaged")
            content = torch.load(path, map_location="cpu", weights_only=True)
        except (zipfile.BadZipFile, EOFError, RuntimeError, KeyError):
            raise _Refused("it is truncated, damaged, or no checkpoint") from None
        except pickle.UnpicklingError:
            raise _Refused("it holds more than tensors and plain values") from None
        except OSError as error:
            raise _Refused(_reason(error)) from None
        if not isinstance(content, dict) or content.get("schema") != _SCHEMA:
            raise _Refused("it is no checkpoint of this version of the reproductions")
        own, found = self._run(), content["run"]
        for key in own.keys() | found.keys():
            if own.get(key) != found.get(key):
                raise _Refused(f"it is of {key} = {found.get(key)}, not {own.get(key)}")
        return content


def check_folder(folder: Path) -> None:
    """See that files can be written to a folder, before any work.

    Raises:
        CtflowError: If not; in one line.
    """
    probe = folder / f".room.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with probe.open("wb") as file:
            file.write(bytes(_ROOM))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise CtflowError(
            f"results cannot be written to {folder}: {_reason(error)}. "
            "Nothing was trained; make room there, or make it writable."
        ) from None
    finally:
        _remove(probe)


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:  # the folder is no folder, or not ours: there is nothing of ours in it
        return


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
