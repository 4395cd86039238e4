"""The memory reproduction subtracts what is returned, and runs from networks to files."""

from __future__ import annotations

import gc
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from _harness.costs import Timing, slope
from _harness.storage import peak_bytes, without_collector

from ctflow.cli.checkout import load_script
from ctflow.testing import LiveStorage
from tests.checks import check

ROOT = Path(__file__).parents[2]
memory = load_script(ROOT, "memory")


def test_what_is_returned_is_subtracted_from_the_peak() -> None:
    """The peak of a sum over a temporary is the temporary."""
    ones = torch.ones(100, dtype=torch.float64)
    assert peak_bytes(lambda: ((ones * 2).sum(),)) == 800


def test_a_cycle_stays_alive_while_the_collector_is_off() -> None:
    """What only the garbage collector would free counts."""
    with without_collector(), LiveStorage() as storage:
        cycle: list[object] = [torch.ones(100, dtype=torch.float64)]
        cycle.append(cycle)
        del cycle
        check(not gc.isenabled(), "the collector is off")
        check(storage.live == 800, "the cycle is alive")
    assert gc.isenabled()


def test_the_slope_of_a_power_is_its_exponent() -> None:
    """In doubly logarithmic axes."""
    assert slope([1, 2, 4], [3, 12, 48]) == pytest.approx(2)


def test_small_sizes_have_a_band_of_their_own() -> None:
    """Overhead may hide the growth of small sizes; it may not hide growth above linear."""
    timings = [Timing("state", 2**k, 1.0 + 2.0**k / 1e3, 2.0 ** (1.2 * k)) for k in range(21)]
    timings += [Timing(axis, 2**k, 2.0**k, 2.0**k) for axis in memory.AXES for k in range(4)
                if axis != "state"]  # fmt: skip
    verdicts = {band.name: band.passed for band in memory.bands_of_time(timings)}
    assert {name for name, passed in verdicts.items() if not passed} == {
        "adjoint, slope over state", "adjoint, slope over small state",
    }  # fmt: skip


def test_the_smoke_preset_writes_its_files_and_meets_the_bands_of_memory(tmp_path: Path) -> None:
    """The adjoint is flat, the others grow as they should; times are too short for bands."""
    pytest.importorskip("matplotlib")
    memory.main(replace(memory.PRESETS["smoke"], results=tmp_path))
    record = json.loads((tmp_path / "smoke.json").read_text())
    assert [band["passed"] for band in record["bands"]] == [True] * 3
    assert {timing["axis"] for timing in record["timings"]} == set(memory.AXES)
    assert (tmp_path / "smoke.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["smoke.json", "smoke.png"]


@pytest.mark.slow
def test_the_quick_preset_meets_its_bands(tmp_path: Path) -> None:
    """Flat memory, and times that are linear in problem size."""
    pytest.importorskip("matplotlib")
    record = memory.main(replace(memory.PRESETS["quick"], results=tmp_path))
    assert [band["name"] for band in record["bands"] if not band["passed"]] == []
