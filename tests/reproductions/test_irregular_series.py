"""Real series: what is shown of them, what is made of it, and that the script writes its files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from _harness import series
from _harness.series import Split
from _harness.series_models import INTERPOLANTS, MODELS, interpolated, predictions

from ctflow.cli.checkout import load_script
from ctflow.errors import CtflowError
from ctflow.latent import Gaussian, RecurrentModel

ROOT = Path(__file__).parents[2]
script = load_script(ROOT, "irregular_series")


def split(name: str) -> Split:
    """A data set, where its package is installed."""
    pytest.importorskip("statsmodels" if name == "co2" else "sktime")
    return series.load_series(name)


def test_the_smoke_preset_writes_its_files(tmp_path: Path) -> None:
    """It trains every model on both sets, tells speakers apart, judges and draws."""
    for package in ("matplotlib", "statsmodels", "sktime"):
        pytest.importorskip(package)
    record = script.main(replace(script.PRESETS["smoke"], results=tmp_path))
    assert {row["model"] for row in record["rows"]} == {*MODELS, *INTERPOLANTS}
    assert {row["task"] for row in record["rows"]} == {"in between", "after", "class"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["smoke.json", "smoke.png"]


def test_the_committed_result_has_every_contestant_on_both_sets() -> None:
    """In between and after, at 10 to 50 %; the documented table is that of the result."""
    folder = ROOT / "reproductions" / "results" / "irregular_series"
    record = json.loads((folder / "full.json").read_text())
    values = {(r["data"], r["task"], r["model"]): r["values"] for r in record["rows"]}
    names = (*INTERPOLANTS, *MODELS)
    wanted = {(d, task, m) for d in ("co2", "vowels") for task in script.TASKS for m in names}
    assert values.keys() == wanted | {("vowels", "class", m) for m in MODELS}
    assert record["config"]["shares"] == [0.1, 0.2, 0.3, 0.5]
    columns = [(d, task) for d in ("co2", "vowels") for task in script.TASKS]
    columns.append(("vowels", "class"))
    documented = (ROOT / "docs" / "latent.md").read_text()
    for model in names:
        cells = [
            "-" if (*column, model) not in values
            else ", ".join(f"{values[(*column, model)][k]:.2f}" for k in (0, -1))
            for column in columns
        ]  # fmt: skip
        assert f"| {model} | {' | '.join(cells)} |" in documented


def test_a_set_that_does_not_exist_is_refused() -> None:
    """By the names of those that do."""
    with pytest.raises(CtflowError, match="there are: co2, vowels"):
        series.load_series("sunspots")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the extra that brings it."""
    monkeypatch.setattr(series, "find_spec", lambda _: None)
    for name, package in (("co2", "statsmodels"), ("vowels", "sktime")):
        with pytest.raises(CtflowError, match=rf"{package}.*ctflow\[series\]"):
            series.load_series(name)


def test_carbon_dioxide_has_its_gaps_and_no_week_in_both_parts() -> None:
    """Windows of three years from their first value; 59 weeks of the record are missing."""
    train, test, unit = split("co2")
    for part in (train, test):
        assert part.x.shape[1:] == (157, 1)
        assert bool((part.x[:, 0] == 0).all())
        assert bool(part.there[:, 0].all())
        assert not bool(part.there.all())
        assert bool((part.x[~part.there] == 0).all())
    assert unit == pytest.approx(3.0, abs=0.3)  # ppm: seasons and the rise of three years
    rise = unit * (test.x[:, 156] - test.x[:, 0])[test.there[:, 156], 0].mean()
    assert rise.item() == pytest.approx(4.6, abs=0.8)  # ppm in three years, 1985 to 2001


def test_vowels_are_those_of_the_record() -> None:
    """270 and 370 series of 7 to 29 frames, 30 of each speaker to learn from."""
    train, test, _ = split("vowels")
    assert (len(train.x), len(test.x)) == (270, 370)
    assert train.label.bincount().tolist() == [30] * 9
    lengths = torch.cat([train.there, test.there]).sum(dim=1)
    assert (int(lengths.min()), int(lengths.max())) == (7, 29)
    values = train.x[train.there]
    torch.testing.assert_close(values.std(dim=0), torch.ones(12), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 1.0])
def test_the_first_value_and_so_many_others_are_shown(share: float) -> None:
    """None that is missing, none that comes after, one at least."""
    part, _, _ = split("vowels")
    seen = series.shown(part, share, torch.Generator().manual_seed(0))
    assert bool(seen[:, 0].all())
    assert not bool((seen & ~part.early).any())
    wanted = (share * part.early.sum(dim=1)).round().clamp(min=1)
    assert seen.sum(dim=1).tolist() == wanted.tolist()


@pytest.mark.parametrize("kind", ["linear", "spline"])
def test_an_interpolant_meets_what_is_shown_and_holds_its_ends(kind: str) -> None:
    """Exactly a line where the data are one; the last value after the last one shown."""
    part = split("vowels")[0]
    part = part._replace(x=part.t.reshape(1, -1, 1).expand_as(part.x).clone())
    seen = series.shown(part, 0.6, torch.Generator().manual_seed(0))
    found = interpolated(kind, part, seen)
    last = torch.where(seen, part.t, 0.0).amax(dim=1).reshape(-1, 1, 1)
    torch.testing.assert_close(found, part.x.minimum(last), rtol=1e-5, atol=1e-5)


def test_a_recurrent_model_is_asked_for_the_past_alone() -> None:
    """What is hidden, or shown later, changes none of its answers in between."""
    part = split("co2")[1].part(torch.arange(5))
    seen = series.shown(part, 0.2, torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    model = RecurrentModel(1, Gaussian(0.3), 8, gaps=True)
    found = predictions(model, part, seen)
    hidden = part._replace(x=part.x.where(seen.unsqueeze(-1), 99.0))
    torch.testing.assert_close(predictions(model, hidden, seen), found)
    middle = 52
    later = part._replace(x=part.x + 5.0 * (torch.arange(157) >= middle).reshape(1, -1, 1))
    other = predictions(model, later, seen)
    torch.testing.assert_close(other[:, : middle + 1], found[:, : middle + 1])
    assert bool((other[:, -1] != found[:, -1]).any())
