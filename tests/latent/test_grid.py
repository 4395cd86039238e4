"""Every wanted time is read off a strictly monotone grid that starts at t0."""

from __future__ import annotations

import pytest
import torch

from ctflow.errors import InvalidProblem
from ctflow.latent.grid import Grid

pytest.importorskip("hypothesis")
from hypothesis import given
from hypothesis import strategies as st

# Few distinct values, so that repetitions and t0 itself are common.
TIMES = st.integers(0, 6).map(lambda k: 0.5 * k)


@given(st.integers(1, 4), st.integers(1, 6), st.data(), st.sampled_from([1.0, -1.0]))
def test_a_grid_holds_every_time_of_every_series(
    batch: int, n: int, data: st.DataObject, sign: float
) -> None:
    """Reading the grid's own times back gives the wanted ones, each series' own or all together."""
    rows = data.draw(st.lists(st.lists(TIMES, min_size=n, max_size=n), min_size=batch,
                              max_size=batch))  # fmt: skip
    t = sign * torch.tensor(rows, dtype=torch.float64)
    for grid in (Grid.of_each(0.0, t), Grid.shared(0.0, t)):
        nodes = grid.t.expand(batch, -1) if grid.t.dim() == 1 else grid.t
        assert torch.equal(nodes[:, 0], torch.zeros(batch, dtype=torch.float64))
        forwards = 1.0 if bool((t == 0).all()) else sign  # nowhere to go: any way will do
        assert bool((forwards * nodes.diff(dim=1) > 0).all())
        assert torch.equal(grid.read(nodes.T.contiguous()), t)


def test_a_series_with_fewer_times_gets_more_outputs_and_no_further_ones() -> None:
    """The outputs it did not ask for lie between its last two."""
    t = torch.tensor([[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 8.0]], dtype=torch.float64)
    assert Grid.of_each(0.0, t).t[1].tolist() == [0.0, 2.0, 4.0, 6.0, 8.0]


def test_times_that_want_a_gradient_are_refused() -> None:
    """A node that several series share would hand it to one of them."""
    for make in (Grid.shared, Grid.of_each):
        with pytest.raises(InvalidProblem, match="want no gradient"):
            make(0.0, torch.ones(1, 2, requires_grad=True))


def test_times_on_both_sides_are_refused() -> None:
    """One solve goes one way."""
    for make in (Grid.shared, Grid.of_each):
        with pytest.raises(InvalidProblem, match="one side"):
            make(1.0, torch.tensor([[0.0, 2.0]]))
