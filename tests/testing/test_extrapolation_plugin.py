"""The backend that the documentation builds: installed as a distribution, and proved."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("hatchling")
pytest.importorskip("pip")

import torch

from ctflow import ODEProblem, SolveFailed, Solver, Status, Unsupported, odeint, solve
from ctflow.backends import available
from ctflow.cli import main
from ctflow.testing import run_backend_conformance
from tests.problems import FLOAT, blow_up, decay
from tests.testing.plugin_install import install

PROBLEM = ODEProblem(decay, torch.ones(3, dtype=FLOAT), [0.0, 1.0])
ORDERS = {"gbs6": 6, "gbs8": 8, "gbs10": 10}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip has installed the plug-in."""
    return install("ctflow_extrapolation", tmp_path_factory.mktemp("site"))


@pytest.fixture(autouse=True)
def _installed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(folder))


@pytest.fixture
def plugin() -> Any:  # noqa: ANN401
    """Its module."""
    return importlib.import_module("ctflow_extrapolation")


def test_it_is_found_by_its_entry_point() -> None:
    """Nobody imports or registers it."""
    assert "extrapolation" in available()
    y = solve(PROBLEM, Solver("extrapolation", method="gbs8")).y
    torch.testing.assert_close(y[1], torch.exp(-y[0]), rtol=1e-7, atol=0.0)


def test_the_command_line_lists_it(capsys: pytest.CaptureFixture[str]) -> None:
    """As the page says."""
    with pytest.raises(SystemExit):
        main(["info"])
    assert "extrapolation" in capsys.readouterr().out


@pytest.mark.parametrize("method", ORDERS)
def test_it_conforms(method: str) -> None:
    """Every demand on a backend."""
    run_backend_conformance("extrapolation", method=method, examples=4)


@pytest.mark.slow
def test_it_conforms_on_a_thousand_problems() -> None:
    """Random fields, structures, grids and directions."""
    run_backend_conformance("extrapolation", method="gbs8", examples=1000, seed=30_000)


@pytest.mark.parametrize(("method", "order"), ORDERS.items())
def test_a_step_has_the_order_of_its_name(plugin: Any, method: str, order: int) -> None:  # noqa: ANN401
    """The error of one step on y' = cos(t) y falls as h^(order + 1)."""

    def field(t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.cos(t).unsqueeze(1) * y

    errors = []
    for h in (0.1 * order, 0.05 * order):  # above what rounding hides
        y = torch.ones(1, 1, dtype=FLOAT)
        new, _ = plugin._step(field, 0.3, h, y, field(y[0] * 0.3, y), plugin._PARTS[method])
        exact = torch.exp(torch.sin(y[0] * (0.3 + h)) - torch.sin(y[0] * 0.3))
        errors.append(float((new - exact).abs()))
    assert errors[0] / errors[1] > 2 ** (order + 1) * 0.5


def test_a_tight_tolerance_costs_it_less_than_dopri5() -> None:
    """What it is for: a smooth equation at 1e-12."""
    problem = ODEProblem(lambda t, y: torch.cos(t) * y, torch.ones(2, dtype=FLOAT), [0.0, 10.0])
    tight = {"rtol": 1e-12, "atol": 1e-12}
    ours = solve(problem, Solver("extrapolation", method="gbs10", **tight))
    other = solve(problem, Solver("native", **tight))
    assert int(ours.stats.forward.n_f_evals) < int(other.stats.forward.n_f_evals) / 2
    torch.testing.assert_close(ours.y, other.y, rtol=1e-10, atol=0.0)


def test_a_failure_is_a_value_and_sends_no_gradient() -> None:
    """y' = y^2 from 3 has its pole at 1/3."""
    y0 = torch.tensor([3.0], dtype=FLOAT, requires_grad=True)
    problem = ODEProblem(blow_up, y0, [0.0, 0.2, 1.0])
    found = solve(problem, Solver("extrapolation", method="gbs8"))
    assert found.status.tolist() != [Status.OK]
    assert 0.3 < found.stops[0].t < 0.34
    torch.testing.assert_close(found.y[1], 1 / (1 / y0.detach() - 0.2), rtol=1e-5, atol=0.0)
    assert bool(found.y[2].isnan().all())
    assert not found.y.requires_grad
    with pytest.raises(SolveFailed, match="extrapolation"):
        odeint(blow_up, y0, [0.0, 1.0], backend="extrapolation", method="gbs8")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "dopri5"}, "'dopri5' is not one of gbs6, gbs8, gbs10"),
        ({"method": "gbs8", "step": 0.1}, "`step`: its steps adapt"),
        ({"method": "gbs8", "gradient": "adjoint"}, "gradient='adjoint' is not direct"),
        ({"method": "gbs8", "controller": "pi"}, "takes no `controller`"),
    ],
)
def test_what_it_cannot_do_is_refused_by_name(settings: dict[str, Any], message: str) -> None:
    """Its own reasons, and what its features say."""
    with pytest.raises(Unsupported, match=message):
        solve(PROBLEM, Solver("extrapolation", **settings))
