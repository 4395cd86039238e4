"""A third party's backend: installed as a distribution of its own, found by its entry point."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torchode")
pytest.importorskip("hatchling")
pytest.importorskip("pip")

import torch

from ctflow import ODEProblem, Solver, Status, odeint, solve
from ctflow.backends import available
from ctflow.testing import certify, check_gradients, run_backend_conformance
from tests.problems import FLOAT, blow_up, decay
from tests.testing.hard_problems import oscillating
from tests.testing.plugin_install import install


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip has installed the plug-in."""
    return install("ctflow_torchode", tmp_path_factory.mktemp("site"))


@pytest.fixture(autouse=True)
def _installed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(folder))


def test_it_is_found_by_its_entry_point() -> None:
    """Nobody imports or registers it."""
    assert "torchode" in available()
    y = odeint(decay, torch.ones(3, 2, dtype=FLOAT), [0.0, 1.0], backend="torchode")
    torch.testing.assert_close(y[1], torch.exp(-torch.ones(3, 2, dtype=FLOAT)))


@pytest.mark.once
def test_it_conforms() -> None:
    """The two lines of a third party's test file."""
    run_backend_conformance("torchode", examples=4)


@pytest.mark.slow
def test_it_conforms_on_a_thousand_problems() -> None:
    """Random fields, structures, batches, grids and directions."""
    run_backend_conformance("torchode", examples=1000, seed=20_000)


def test_its_gradients_agree_with_differences() -> None:
    """For a batch with steps of its own."""
    problem = ODEProblem(
        lambda t, y: torch.cos(t) * y, torch.ones(2, 2, dtype=FLOAT), [0.0, 1.0], batched=True
    )
    check_gradients(problem, ["torchode"])


def test_a_failed_sample_leaves_the_others_alone() -> None:
    """torchode itself stops the whole batch and leaves memory as it found it."""
    y0 = torch.tensor([[0.5], [3.0], [0.25]], dtype=FLOAT)
    found = solve(ODEProblem(blow_up, y0, [0.0, 1.0], batched=True), "torchode")
    assert found.status.tolist()[::2] == [Status.OK, Status.OK]
    assert found.status[1] != Status.OK
    assert bool(found.y[1, 1].isnan().all())
    torch.testing.assert_close(found.y[1, ::2], torch.tensor([[1.0], [1 / 3]], dtype=FLOAT))


@pytest.mark.once
def test_a_tolerance_that_is_too_loose_for_it_is_seen() -> None:
    """58 % off in the value at rtol=1e-3; what is recommended is adequate, asked again."""
    found = certify(oscillating(), Solver(backend="torchode", rtol=1e-3, atol=1e-6))
    assert found.verdict == "not adequate", str(found)
    assert found.asked.value_error == pytest.approx(0.57, abs=0.02)
    assert found.asked.gradient_error > 50
    assert found.recommended is not None
    assert found.recommended.backend == "torchode"
    assert certify(oscillating(), found.recommended).adequate
