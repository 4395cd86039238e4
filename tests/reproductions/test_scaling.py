"""The measurement of several processes runs, and its cost model is the formula that is printed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from _harness.scaling_work import Averaging, Timing

from ctflow.cli.checkout import load_script

ROOT = Path(__file__).parents[2]
scaling = load_script(ROOT, "scaling")


def test_the_smoke_preset_measures_two_processes(tmp_path: Path) -> None:
    """Every model, alone and together, with the same gradients; the files are written."""
    pytest.importorskip("matplotlib")
    record = scaling.main(replace(scaling.PRESETS["smoke"], results=tmp_path))
    assert [each["family"] for each in record["timings"]] == ["ODE-Net", "flow", "latent ODE"]
    assert all(each["processes"] == 2 and each["together"] > 0 for each in record["timings"])
    assert all(band["passed"] for band in record["bands"])
    assert json.loads((tmp_path / "smoke.json").read_text())["averaging"]
    assert (tmp_path / "smoke.png").read_bytes().startswith(b"\x89PNG")


def timing(parts: dict[int, float]) -> Timing:
    """Of a model with 1,000 parameters and 80 rows."""
    return Timing(
        "flow", 2, 80, 1000, 50.0, 40.0, parts[80], 30.0, (29.0, 31.0), parts, 1.0, 0.0
    )  # fmt: skip


def test_a_fixed_part_and_one_for_each_row_are_told_apart() -> None:
    """5 ms and half of one for each row."""
    (cost,) = scaling.costs_of([timing({80: 45.0, 40: 25.0, 20: 15.0})])
    assert (cost.fixed, cost.each) == (pytest.approx(5.0), pytest.approx(0.5))
    assert cost.step(1, 80, 9.0, 1.0) == pytest.approx(45.0)
    assert cost.step(2, 80, 0.5, 1e3) == pytest.approx(5 + 20 + 2 * (0.5 + 2.0))


def test_efficiency_is_one_where_nothing_is_fixed_and_averaging_is_free() -> None:
    """And falls with the fixed part where the batch stays as it is."""
    free = scaling.Cost("flow", 80, 0.0, 0.5, 0)
    fixed = replace(free, fixed=40.0)
    for grows in (False, True):
        assert free.efficiency(8, 0.0, 1.0, grows=grows) == pytest.approx(1.0)
    assert fixed.efficiency(8, 0.0, 1.0, grows=True) == pytest.approx(1.0)
    assert fixed.efficiency(8, 0.0, 1.0, grows=False) == pytest.approx(80 / (8 * 45))


def test_latency_and_rate_are_those_of_a_ring() -> None:
    """Two processes: two messages, of half of the numbers each."""
    found = scaling.network([Averaging(2, 4, 0.2), Averaging(2, 4_000_000, 2.2)])
    assert found == (pytest.approx(0.1), pytest.approx(2e6))


def test_the_page_shows_what_was_measured() -> None:
    """Row by row of both tables."""
    record = json.loads((scaling.PRESETS["quick"].results / "quick.json").read_text())
    page = (ROOT / "docs" / "scaling.md").read_text()
    network = record["latency"], record["rate"]
    for each, cost in zip(record["timings"], record["costs"], strict=True):
        p, rows, own = each["processes"], each["rows"], scaling.Cost(**cost)
        alone, together = each["alone"], each["together"]
        assert (
            f"| {each['family']} | {rows} | {alone:.1f} ms | {together:.1f} ms | "
            f"{own.step(p, rows, *network):.1f} ms | {alone / together:.2f} | "
        ) in page
        assert (
            f"| {own.family} | {own.fixed:.1f} ms | {1e3 * own.each:.1f} us | "
            f"{own.n_bytes / 1024:.0f} KiB |"
        ) in page
