"""Devices that a user names: whether they are here."""

from __future__ import annotations

import torch

from ctflow.errors import CtflowError

__all__ = ["present"]


def present(device: str) -> torch.device:
    """The device of a name.

    Raises:
        CtflowError: If there is none, or none of this kind is here.
    """
    try:
        found = torch.device(device)
    except RuntimeError:
        found = None
    if found is not None and found.type == "cpu":
        return found
    if found is None or found.type != "cuda" or (found.index or 0) >= torch.cuda.device_count():
        raise CtflowError(
            f"device {device!r} is not here. Pass --device cpu, or take a machine that has it "
            "(`ctflow info` says which ones there are)."
        )
    return found
