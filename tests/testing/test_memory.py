"""`LiveStorage` counts the bytes of tensors that are alive."""

from __future__ import annotations

import torch

from ctflow.testing import LiveStorage


def test_storage_counts_until_its_last_owner_lets_go() -> None:
    """Variables, views and autograd's graph all own it."""
    weight = torch.ones(50, 50, dtype=torch.float64, requires_grad=True)
    with LiveStorage() as storage:
        x = torch.ones(1, 50, dtype=torch.float64)
        h = torch.tanh(x @ weight)
        assert storage.live == 800
        half = h[:, :25]
        loss = half.sum()
        del x, h, half
        assert storage.live == 808  # the graph holds x for the weight, and tanh's value
        loss.backward()
        assert storage.live == 8 + 8 * 50 * 50
    del loss
    assert storage.live == 8 * 50 * 50
    assert storage.peak > storage.live


def test_what_existed_before_does_not_count() -> None:
    """Nor do views of it, nor changes in place."""
    x = torch.ones(100)
    with LiveStorage() as storage:
        x.view(10, 10).t().add_(1.0)
    assert storage.peak == 0
