"""What encoders read: order, times, and an ODE between observations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ctflow import InvalidProblem, Solver, odeint
from ctflow.latent import Observations, ODERNNEncoder, RNNEncoder
from tests.latent.parts import DTYPE, ENCODERS, irregular


class Turn(nn.Module):
    """A field whose solutions turn and shrink."""

    def forward(self, t: Tensor, h: Tensor) -> Tensor:
        return torch.roll(h, 1, dims=-1) - 1.5 * h


@pytest.mark.parametrize("encoder", ENCODERS)
def test_only_encoders_without_gaps_are_blind_to_time(encoder: str) -> None:
    """Stretching the times changes what the others say; so does moving t0 alone."""
    torch.manual_seed(0)
    made, (x, t, mask) = ENCODERS[encoder]().to(DTYPE), irregular()
    data = Observations(x, t, mask)
    stretched = made(Observations(x, 2 * t, mask), 0.0).mean
    moved = made(data, -1.0).mean
    same = encoder == "rnn"
    assert torch.equal(made(data, 0.0).mean, stretched) is same
    assert torch.equal(made(data, 0.0).mean, moved) is same


@pytest.mark.parametrize("encoder", ENCODERS)
def test_what_is_seen_last_in_time_is_read_first(encoder: str) -> None:
    """So the first observation matters most to the state at t0: its gradient is the largest."""
    torch.manual_seed(0)
    made = ENCODERS[encoder]().to(DTYPE)
    x = torch.zeros(1, 12, 2, dtype=DTYPE, requires_grad=True)
    q = made(Observations(x, torch.linspace(0, 1, 12, dtype=DTYPE)), 0.0)
    (g,) = torch.autograd.grad(q.mean.square().sum(), x)
    size = g[0].norm(dim=-1)
    assert size[0] > 3 * size[-1]


def test_an_ode_rnn_flows_along_its_field_from_observation_to_observation() -> None:
    """As a solve for each series and gap by itself, and at last back to t0."""
    torch.manual_seed(0)
    tight = Solver(rtol=1e-10, atol=1e-10)
    encoder = ODERNNEncoder(2, 3, 5, field=Turn(), solver=tight).to(DTYPE)
    x, t, mask = irregular()
    found = encoder(Observations(x, t, mask), 0.0)
    for b in range(len(x)):
        h = torch.zeros(1, 5, dtype=DTYPE)
        places = [i for i in range(t.shape[1]) if bool(mask[b, i].any())]
        for k in range(len(places) - 1, -1, -1):
            i = places[k]
            values = torch.where(mask[b, i], x[b, i], 0.0)
            h = encoder.cell(torch.cat([values, mask[b, i].to(DTYPE)]).unsqueeze(0), h)
            gap = float(t[b, i] - (t[b, places[k - 1]] if k else 0.0))
            h = odeint(Turn(), h, [0.0, gap], solver=tight)[-1]
        wanted = encoder.head(h)
        torch.testing.assert_close(found.mean[b : b + 1], wanted.mean, rtol=1e-7, atol=1e-8)
        torch.testing.assert_close(found.stddev[b : b + 1], wanted.stddev, rtol=1e-7, atol=1e-8)


def test_one_step_a_gap_is_close_to_the_solution() -> None:
    """The default solver of an ODE-RNN, on gaps as short as those of data."""
    torch.manual_seed(0)
    coarse = ODERNNEncoder(2, 3, 5, field=Turn()).to(DTYPE)
    fine = ODERNNEncoder(2, 3, 5, field=Turn(), solver=Solver(rtol=1e-9, atol=1e-9)).to(DTYPE)
    fine.load_state_dict(coarse.state_dict())
    data = Observations(*irregular())
    torch.testing.assert_close(coarse(data, 0.0).mean, fine(data, 0.0).mean, rtol=0, atol=5e-3)


def test_a_cell_that_does_not_exist_is_refused() -> None:
    """There are two."""
    with pytest.raises(InvalidProblem, match="`cell` must be 'rnn' or 'gru'"):
        RNNEncoder(2, 3, cell="lstm")  # pyright: ignore[reportArgumentType]
