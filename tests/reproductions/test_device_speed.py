"""The times of a device: everybody solves the same, and a device that is not here is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ctflow import CtflowError
from ctflow.cli.checkout import load_script

pytest.importorskip("matplotlib")

script = load_script(Path(__file__).parents[2], "device_speed")
SMOKE = replace(script.PRESETS["smoke"], families=("latent ODE",))


def test_the_smoke_preset_measures_everybody_and_writes_its_files(tmp_path: Path) -> None:
    """Every task of a workload, and a training step; at one tolerance nobody is far off."""
    script.main(replace(SMOKE, results=tmp_path))
    record = json.loads((tmp_path / "smoke.json").read_text())
    found = {(row["what"], row["task"], row["backend"]) for row in record["rows"]}
    assert found == {
        (*what, who)
        for what in (
            ("spiral-mlp", "forward"),
            ("spiral-mlp", "direct"),
            ("latent ODE", "training step"),
        )
        for who in ("native", "torchdiffeq")
    }
    assert all(row["error"] < 1e-4 for row in record["rows"])
    assert (tmp_path / "smoke.png").read_bytes().startswith(b"\x89PNG")


def test_a_gradient_that_is_worse_than_torchdiffeqs_misses_its_band() -> None:
    """And so does a training step that takes longer."""
    config = replace(SMOKE, worse=1.5)
    peer = script.Row("latent ODE", "training step", "torchdiffeq", 10.0, 9.0, 11.0, 1e-4)
    for milliseconds, error, met in ((9.0, 1e-4, [True, True]), (11.0, 2e-4, [False, False])):
        own = replace(peer, backend="native", milliseconds=milliseconds, error=error)
        assert [band.passed for band in script.bands_of(config, [own, peer])] == met


def test_a_case_on_another_device_has_one_set_of_weights() -> None:
    """Field and traceable field share them there too."""
    case = script.WORKLOADS["cnf-2d"].case(rows=2).to("meta")
    pairs = zip(case.field.parameters(), case.traceable.parameters(), strict=True)
    assert all(a is b for a, b in pairs)
    assert {x.device.type for x in (*case.leaves, case.t, *case.field.parameters())} == {"meta"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.parametrize("device", ["cuda", "no such"])
@pytest.mark.parametrize("name", ["device_speed", "table_1", "figure_3", "tolerance"])
def test_a_device_that_is_not_here_is_refused_before_any_work(name: str, device: str) -> None:
    """By name, with what to do."""
    one = load_script(Path(__file__).parents[2], name)
    with pytest.raises(CtflowError, match=rf"device '{device}' is not here.*--device cpu"):
        one.main(replace(one.PRESETS["smoke"], device=device))
