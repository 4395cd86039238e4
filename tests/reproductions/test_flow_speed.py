"""The side-by-side timing of training steps runs, and all solve the same problem."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from _harness.shapes import SHAPES

from ctflow.cli.checkout import load_script

for package in ("matplotlib", "torchdiffeq", "zuko"):
    pytest.importorskip(package)

script = load_script(Path(__file__).parents[2], "flow_speed")


def test_everybody_is_timed_on_both_models(tmp_path: Path) -> None:
    """The smoke preset takes the real path."""
    preset = replace(script.PRESETS["smoke"], tolerance=1e-4, rounds=1, results=tmp_path)
    script.main(preset)
    record = json.loads((tmp_path / "smoke.json").read_text())
    peers = ["ctflow native", "torchdiffeq", "torchdiffeq adjoint"]
    who = [(row["model"], row["who"]) for row in record["rows"]]
    expected = [("free-form", name) for name in (*peers, "zuko")]
    assert who == expected + [("planar", name) for name in peers]
    assert all(row["milliseconds"] > 0 for row in record["rows"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["smoke.json", "smoke.png"]


@pytest.mark.parametrize("name", ["free-form", "planar"])
def test_all_have_one_density_at_a_tight_tolerance(name: str) -> None:
    """In float64: they are one model."""
    from _harness.flow_peers import MODELS, steps

    torch.manual_seed(0)
    model = MODELS[name](4, 1e-10, torch.float64)
    x = SHAPES["moons"].sample(5).double()
    with torch.no_grad():
        found = {
            step.key: step.log_prob(x) for step in steps(model, ["native"], 1e-10, torch.float64)
        }
    first = found.pop("ctflow native")
    for other in found.values():
        assert torch.allclose(other, first, rtol=0, atol=1e-5)


def test_a_step_of_training_leaves_the_weights() -> None:
    """All contestants go on with the same ones."""
    from _harness.flow_peers import MODELS, steps

    model = MODELS["planar"](3, 1e-3)
    before = [p.detach().clone() for p in model.field.parameters()]
    step = next(steps(model, ["native"], 1e-3))
    script.training_step(step, model.field, SHAPES["moons"].sample(8))()
    assert all(torch.equal(a, b) for a, b in zip(before, model.field.parameters(), strict=True))
