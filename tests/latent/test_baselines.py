"""Recurrent baselines: what they know of time, and that they forecast by their own means."""

from __future__ import annotations

import pytest
import torch

from ctflow.errors import InvalidProblem
from ctflow.latent import Gaussian, PoissonProcess, RecurrentModel
from tests.latent.parts import DTYPE, irregular


def made(gaps: bool, cell: str = "rnn") -> RecurrentModel:
    """A small one, the same each time."""
    torch.manual_seed(0)
    return RecurrentModel(2, Gaussian(0.3), 5, gaps=gaps, cell=cell).to(DTYPE)  # pyright: ignore[reportArgumentType]


def full() -> tuple[torch.Tensor, torch.Tensor]:
    """Values and times of series that were seen wholly."""
    x, t, _ = irregular()
    return x, t


@pytest.mark.parametrize("cell", ["rnn", "gru"])
def test_only_gaps_let_it_know_of_time(cell: str) -> None:
    """Without them a change of the times changes nothing."""
    x, t = full()
    for gaps in (False, True):
        model = made(gaps, cell)
        same = torch.equal(model.log_prob(x, t), model.log_prob(x, 2 * t))
        assert same is not gaps


@pytest.mark.parametrize("gaps", [False, True])
def test_the_density_is_the_product_of_one_step_predictions(gaps: bool) -> None:
    """Each is the forecast that it makes of the next observation, at that time."""
    model, (x, t) = made(gaps), full()
    total = torch.zeros(len(x), dtype=DTYPE)
    for i in range(1, x.shape[1]):
        mean = model.predict(x[:, :i], t[:, :i], at=t[:, i : i + 1])
        seen = torch.ones_like(mean, dtype=torch.bool)
        total = total + model.likelihood.log_prob(mean, x[:, i : i + 1], seen)
    torch.testing.assert_close(model.log_prob(x, t), total, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("gaps", [False, True])
def test_a_forecast_feeds_on_its_own_means(gaps: bool) -> None:
    """Forecasting two times is forecasting one, taking it as seen, and forecasting the other."""
    model, (x, t) = made(gaps), full()
    at = torch.tensor([2.0, 2.5], dtype=DTYPE)
    both = model.predict(x, t, at=at)
    longer = torch.cat([x, both[:, :1]], dim=1)
    times = torch.cat([t, at[:1].expand(len(t), 1)], dim=1)
    torch.testing.assert_close(model.predict(longer, times, at=at[1:])[:, 0], both[:, 1])


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("cell", ["rnn", "gru"])
def test_a_value_in_between_is_forecast_from_what_came_before(gaps: bool, cell: str) -> None:
    """At any time, from the observations before it and no others."""
    model, (x, t) = made(gaps, cell), full()
    middle = t[:, 2:] + 1e-3  # just after the third and each later observation
    found = model.between(x, t, at=middle)
    wanted = [
        model.predict(x[:, : i + 3], t[:, : i + 3], at=middle[:, i : i + 1])[:, 0]
        for i in range(middle.shape[1])
    ]
    torch.testing.assert_close(found, torch.stack(wanted, dim=1), rtol=1e-10, atol=1e-10)


def test_values_in_between_depend_on_no_order_and_no_padding() -> None:
    """Times may come in any order; masked observations do not count."""
    model, (x, t) = made(True), full()
    at = torch.tensor([1.9, 1.2, 1.5], dtype=DTYPE)
    found = model.between(x, t, at=at)
    torch.testing.assert_close(model.between(x, t, at=at.flip(0)).flip(1), found)
    mask = torch.ones(x.shape[:2], dtype=torch.bool)
    mask[:, 4:] = False
    short = model.between(x[:, :4], t[:, :4], at=at)
    torch.testing.assert_close(model.between(x, t, mask, at=at), short)
    alone = model.between(x[:, :1], t[:, :1], at=at[:1])
    torch.testing.assert_close(alone, model.predict(x[:, :1], t[:, :1], at=at[:1]))


def test_padding_changes_no_density_and_no_forecast() -> None:
    """A series alone, and beside a longer one."""
    model, (x, t) = made(True), full()
    mask = torch.ones(x.shape[:2], dtype=torch.bool)
    mask[1, 4:] = False
    at = torch.tensor([2.0, 2.5], dtype=DTYPE)
    alone = model.log_prob(x[1:2, :4], t[1:2, :4]), model.predict(x[1:2, :4], t[1:2, :4], at=at)
    together = model.log_prob(x, t, mask), model.predict(x, t, mask, at=at)
    for one, many in zip(alone, together, strict=True):
        torch.testing.assert_close(many[1:2], one)


def test_what_a_recurrent_model_cannot_do_is_refused() -> None:
    """The past, a single observation, a process."""
    model, (x, t) = made(True), full()
    with pytest.raises(InvalidProblem, match="`at` must grow and lie after"):
        model.predict(x, t, at=torch.tensor([0.5], dtype=DTYPE))
    with pytest.raises(InvalidProblem, match="`at` must lie after the first observation"):
        model.between(x, t, at=t[:, :1])
    for wrong in (torch.full((2,), torch.nan), torch.zeros(3, 2), torch.zeros(0), [1.0]):
        with pytest.raises(InvalidProblem, match="`at` must be"):
            model.between(x, t, at=wrong)
        with pytest.raises(InvalidProblem, match="`at` must be"):
            model.predict(x, t, at=wrong)
    with pytest.raises(InvalidProblem, match="at least 2 observations, got 1 in sample 0"):
        model.log_prob(x[:, :1], t[:, :1])
    with pytest.raises(InvalidProblem, match="must not integrate a rate"):
        RecurrentModel(2, PoissonProcess((0.0, 1.0)))
    with pytest.raises(InvalidProblem, match="`cell` must be"):
        RecurrentModel(2, Gaussian(), cell="lstm")  # pyright: ignore[reportArgumentType]
