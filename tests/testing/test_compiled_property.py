"""`check_dynamics` asks whether the compiled backend can trace a field, and compiles nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ctflow.testing import check_dynamics, inspect_dynamics
from tests.testing.broken_dynamics import OnState, network, state


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("native", "compiled")
    monkeypatch.setattr("ctflow.testing.check.registry.names", lambda: names)


def test_a_field_that_can_be_traced_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its derivatives, and without any program being built."""
    monkeypatch.setenv("PATH", "")  # no compiler would be found
    report = check_dynamics(OnState(network()), state())
    assert "compiled" in [finding.name for finding in report.having("passed")], str(report)


def test_args_are_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """With stand-ins of their own."""
    args = {"rate": torch.tensor(2.0, dtype=torch.float64, requires_grad=True)}
    assert check_dynamics(lambda t, y, a: -a["rate"] * y, state(), args=args).ok


def test_attention_without_dropout_draws_nothing() -> None:
    """Though torch's own operator could."""
    attention = nn.MultiheadAttention(2, 1, batch_first=True, dtype=torch.float64)
    states = torch.ones(2, 3, 2, dtype=torch.float64)
    report = inspect_dynamics(lambda t, y: attention(y, y, y)[0], states)
    assert "compiled" not in report.failed, str(report)
    fused = inspect_dynamics(lambda t, y: attention(y, y, y, need_weights=False)[0], states)
    assert "compiled" not in fused.failed, str(fused)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_module_of_torch_jit_fails_in_words() -> None:
    """It keeps its tensors out of Python's reach."""
    net = torch.jit.trace(network(), state())
    report = inspect_dynamics(lambda t, y: net(y), state())
    assert report.failed == ("compiled",)
    assert "torch.jit" in report.failures[0].what


def test_a_field_that_cannot_be_traced_fails_with_the_line() -> None:
    """In the backend's own words."""

    def f(t: Tensor, y: Tensor) -> Tensor:
        return -y if bool((y * y).sum() >= 0) else y

    report = inspect_dynamics(f, state())
    assert report.failed == ("compiled",)
    assert "test_compiled_property.py" in report.failures[0].what
    assert "(y * y).sum() >= 0" in report.failures[0].what


def test_it_is_left_out_where_that_is_said() -> None:
    """For fields that are meant to run Python."""
    report = inspect_dynamics(lambda t, y: -y, state(), compiled=False)
    assert report.note("compiled") == "not asked for"


def test_where_there_is_no_such_backend_it_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the report says why."""
    monkeypatch.setattr("ctflow.testing.check.registry.names", lambda: ("native",))
    report = inspect_dynamics(lambda t, y: -y, state())
    assert "no compiled backend" in report.note("compiled")
