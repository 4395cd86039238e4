"""The density matching of figure 4 runs from energies to files, and its bands can fail."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from ctflow.cli.checkout import load_script

pytest.importorskip("matplotlib")

figure = load_script(Path(__file__).parents[2], "figure_4_density_matching")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the files of one run of the smoke preset."""
    folder = tmp_path_factory.mktemp("results")
    figure.main(replace(figure.PRESETS["smoke"], results=folder))
    return folder


def test_the_record_has_both_flows_above_the_bound(results: Path) -> None:
    """Losses, raw losses, mass in the window, and the bound."""
    record = json.loads((results / "smoke.json").read_text())
    assert [cell["kind"] for cell in record["cells"]] == ["NF", "CNF"]
    assert [band["passed"] for band in record["bands"]] == [True]
    for cell in record["cells"]:
        assert cell["loss"] > cell["bound"]
        assert 0 <= cell["inside"] <= 1
        assert cell["raw"] <= cell["loss"]


def test_only_record_and_figure_are_written(results: Path) -> None:
    """No checkpoint of a run of seconds."""
    assert sorted(path.name for path in results.iterdir()) == ["smoke.json", "smoke.png"]
    assert (results / "smoke.png").read_bytes().startswith(b"\x89PNG")


def cell(target: str, kind: str, size: int, above: float) -> object:
    """A result so far above its bound of -2."""
    return figure.Cell(target, size, kind, above - 2, 0.001, -2.0, above - 2, 1.0, 1.0)


def full(worst: float = 0.04, lead: float = 0.3) -> list[object]:
    """Results of all cells that meet every band of the full preset."""
    return [
        cell(target, kind, n, (worst if kind == "CNF" else worst + lead) + (1 if n == 2 else 0))
        for target, n in figure.ALL
        for kind in ("NF", "CNF")
    ]


def failed(cells: list[object]) -> list[str]:
    """Names of the bands that are missed."""
    bands = figure.bands_of(figure.PRESETS["full"], cells)
    return [band.name for band in bands if not band.passed]


def test_the_full_bands_can_be_met_and_missed() -> None:
    """Good results pass; a distant one, a worse one, and one below the bound do not."""
    assert failed(full()) == []
    assert failed(full(worst=0.06)) == ["CNF(32) above its bound (nats), the worst target"]
    assert len(failed(full(worst=0.04, lead=-0.03))) == 3
    below = [*full()[:-1], cell("U4", "CNF", 32, -0.01)]
    assert failed(below) == ["least loss above its bound, with 3 standard errors"]


@pytest.mark.parametrize("place", range(len(figure.ALL) * 2))
def test_a_loss_that_is_no_number_fails_the_run(place: int) -> None:
    """Wherever it stands: a smallest and a largest number may pass over it."""
    cells = full()
    cells[place] = replace(cells[place], loss=math.nan)
    assert "least loss above its bound, with 3 standard errors" in failed(cells)


def test_so_many_of_ten_cells_have_to_be_won() -> None:
    """Eight by the margin will do, seven will not; U1 does not count."""

    def with_losses(n: int) -> list[object]:
        cells = full()
        pairs = [i for i, each in enumerate(cells) if each.kind == "CNF" and each.target != "U1"]
        for i in [i for i in pairs if cells[i].size != 32][:n]:
            cells[i] = replace(cells[i], loss=cells[i - 1].loss + 0.021)
        return cells

    name = "U3 and U4 cells where CNF <= NF + 0.02, of 10"
    assert name not in failed(with_losses(2))
    assert name in failed(with_losses(3))


def test_a_long_run_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    """A slice of no time at all trains a little; the last one writes the results."""
    short = replace(
        figure.PRESETS["smoke"], results=tmp_path, minutes=0.0, nf_iterations=4, cnf_iterations=4
    )
    runs = [figure.main(short)["bands"][0]["name"] for _ in range(2)]
    assert runs == ["finished", "finished"]
    assert len(list((tmp_path / ".checkpoints" / "smoke").glob("NF-U1-2-0-*.pt"))) == 2
    assert not (tmp_path / "smoke.json").exists()


@pytest.mark.slow
def test_the_quick_preset_meets_its_bands(tmp_path: Path) -> None:
    """CNF ahead of NF by a tenth of a nat in three cells."""
    record = figure.main(replace(figure.PRESETS["quick"], results=tmp_path))
    assert all(band["passed"] for band in record["bands"])
