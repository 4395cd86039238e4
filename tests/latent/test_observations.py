"""Observations are checked once, and what was not seen has no influence."""

from __future__ import annotations

import pytest
import torch

from ctflow.errors import InvalidProblem
from ctflow.latent import Observations, pad

X = torch.zeros(2, 3, 1)
T = torch.tensor([0.0, 1.0, 2.0])


@pytest.mark.parametrize(
    ("x", "t", "mask", "words"),
    [
        (X.tolist(), T, None, "`x` must be a tensor, got list"),
        (X, T.tolist(), None, "`t` must be a tensor, got list"),
        (X, T, [[True] * 3] * 2, "`mask` must be a tensor, got list"),
        (torch.zeros(2, 3), T, None, "floating \\[B, T, D\\]"),
        (torch.zeros(2, 3, 1, dtype=torch.int64), T, None, "floating"),
        (torch.zeros(2, 0, 1), T[:0], None, "with elements"),
        (X, T[:2], None, "got torch.float32 \\[2\\]"),
        (X, T.long(), None, "`t` must be floating"),
        (X, T, torch.ones(2, 3), "`mask` must be bool"),
        (X, T, torch.ones(3, 3) > 0, "got torch.bool \\[3, 3\\]"),
        (X + torch.nan, T, None, "mask=~x.isnan\\(\\)"),
        (X, T * torch.nan, None, "`t` must be finite"),
        (X, torch.tensor([0.0, 2.0, 1.0]), None, "Sort each series"),
        (X, torch.tensor([[0.0, 1.0, 2.0], [0.0, 1.0, 1.0]]), None, "in sample 1. Merge"),
    ],
)
def test_observations_that_make_no_sense_are_refused(
    x: torch.Tensor, t: torch.Tensor, mask: torch.Tensor | None, words: str
) -> None:
    """Each message says what was wrong and what to do."""
    with pytest.raises(InvalidProblem, match=words):
        Observations(x, t, mask)


def test_order_is_asked_of_what_was_seen_alone() -> None:
    """Padding may hold any time, even NaN, before, between or after."""
    t = torch.tensor([[9.0, 1.0, torch.nan, 2.0]])
    mask = torch.tensor([[False, True, False, True]])
    data = Observations(torch.full((1, 4, 1), torch.nan).where(~mask[..., None], 5.0), t, mask)
    assert data.packed().times.tolist() == [[1.0, 2.0]]
    assert data.packed().x.flatten().tolist() == [5.0, 5.0]


def test_order_is_checked_across_what_is_missing() -> None:
    """A gap in between hides no step back in time."""
    mask = torch.tensor([[True, False, True]])
    with pytest.raises(InvalidProblem, match="got 1 at index 2 after 3"):
        Observations(torch.zeros(1, 3, 1), torch.tensor([[3.0, 0.0, 1.0]]), mask)


def test_a_mask_of_times_holds_for_all_features() -> None:
    """[B, T] means [B, T, D]."""
    mask = torch.tensor([[True, False, True]])
    data = Observations(torch.ones(1, 3, 2), T, mask)
    assert data.seen[0].tolist() == [[True, True], [False, False], [True, True]]
    assert data.x[0, 1].tolist() == [0.0, 0.0]


def test_a_series_without_observations_is_named() -> None:
    """Sample 1 of three is empty."""
    mask = torch.tensor([[True], [False], [True]])
    with pytest.raises(InvalidProblem, match="got none for sample 1 \\(1 such\\)"):
        Observations(torch.zeros(3, 1, 1), T[:1], mask).require_some()


def test_ragged_series_are_padded_at_the_end() -> None:
    """What `pad` returns is what `Observations` takes."""
    data = Observations(*pad([T, T[:1]], [torch.ones(3, 2), torch.ones(1, 2)]))
    assert data.counts.tolist() == [3, 1]
    with pytest.raises(InvalidProblem, match="series 1 must have times"):
        pad([T, T], [torch.ones(3, 2), torch.ones(2, 2)])
    with pytest.raises(InvalidProblem, match="`times\\[0\\]` must be a tensor, got list"):
        pad([[0.0]], [torch.ones(1, 2)])  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("t", "x"),
    [
        (T, torch.ones(3, 1)),
        (T, torch.ones(3, 2, dtype=torch.float64)),
        (T.double(), torch.ones(3, 2)),
    ],
)
def test_ragged_series_of_several_kinds_are_refused(t: torch.Tensor, x: torch.Tensor) -> None:
    """Of other features, or of another dtype, which would be rounded in silence."""
    with pytest.raises(InvalidProblem, match=r"series 1 must be as series 0, torch.float32 of 2"):
        pad([T, t], [torch.ones(3, 2), x])


@pytest.mark.parametrize("kind", ["all", "rows", "values", "every value"])
def test_what_was_seen_is_moved_to_the_front_whatever_form_the_mask_has(kind: str) -> None:
    """By the definition, entry by entry; series of one length and of several."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        b, n, d = (torch.randint(1, 6, (3,), generator=generator)).tolist()
        some = torch.rand(b, n, d, generator=generator) < 0.6
        masks = {"all": None, "rows": some[:, :, 0], "values": some, "every value": some | True}
        t = torch.rand(b, n, generator=generator).cumsum(1)
        data = Observations(torch.randn(b, n, d, generator=generator), t, masks[kind])
        packed = data.packed()
        for i in range(b):
            places = data.seen[i].any(dim=1).nonzero().flatten()
            k = len(places)
            torch.testing.assert_close(packed.x[i, :k], data.x[i, places], rtol=0, atol=0)
            torch.testing.assert_close(packed.t[i, :k], data.t[i, places], rtol=0, atol=0)
            assert torch.equal(packed.seen[i, :k], data.seen[i, places])
            assert not packed.seen[i, k:].any()
            assert (packed.x[i, k:] == 0).all()
