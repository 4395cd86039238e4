"""The distribution that a latent state has before anything was seen."""

from __future__ import annotations

from itertools import chain

import torch
from torch import nn
from torch.distributions import Normal

__all__ = ["standard_normal"]


def standard_normal(model: nn.Module, latent: int) -> Normal:
    """N(0, I) of [latent], in the dtype and on the device of a model."""
    known = chain(model.parameters(), model.buffers())  # of parts that are functions: the latter
    like = next((p for p in known if p.is_floating_point()), torch.zeros(()))
    zero = like.new_zeros(latent)
    return Normal(zero, torch.ones_like(zero))
