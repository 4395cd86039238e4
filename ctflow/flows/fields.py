"""Fields for flows: free-form, volume preserving, and potential."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from ctflow.dynamics import ConcatSquashLinear
from ctflow.errors import InvalidProblem
from ctflow.state import expand_time

__all__ = ["FreeForm", "HamiltonianField", "PotentialField"]


class FreeForm(nn.Module):
    """FFJORD's free-form field: concatsquash layers with softplus between them.

        h_{l+1} = a((W_l [h_l, c] + b_l) * sigmoid(u_l t + v_l) + w_l t)

    A context c, where there is one, stands beside the input of every layer. The last layer begins
    at zero, so that training begins at the identity map.

    Args:
        dim: Variables, D.
        hidden: Width of each hidden layer.
        context: Features of the context; 0 for an unconditional flow.
        activation: Makes the activation; a smooth one takes larger steps.

    Cost:
        One pass through the network; its divergence is found by `Exact`, `Hutchinson` or
        `HutchPlusPlus`.

    Source:
        FFJORD (Grathwohl et al. 2019, arXiv 1810.01367), section 4 and released code.

    Example:
        >>> field = FreeForm(2, (32,), context=3)
        >>> field(torch.tensor(0.1), torch.zeros(5, 2), torch.ones(5, 3)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        dim: int,
        hidden: Sequence[int] = (64, 64),
        *,
        context: int = 0,
        activation: Callable[[], nn.Module] = nn.Softplus,
    ) -> None:
        """Make the layers, which draw their own weights."""
        super().__init__()
        for name, size, least in (
            ("dim", dim, 1),
            ("context", context, 0),
            *(("hidden", width, 1) for width in hidden),
        ):
            if type(size) is not int or size < least:
                raise InvalidProblem(
                    f"`{name}` must be an integer of at least {least}, got {size!r}. "
                    "It counts features."
                )
        self.dim, self.context = dim, context
        self.layers = nn.ModuleList(
            ConcatSquashLinear(a + context, b) for a, b in pairwise((dim, *hidden, dim))
        )
        self.activations = nn.ModuleList(activation() for _ in hidden)
        for parameter in self.layers[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, t: Tensor, z: Tensor, *context: Tensor) -> Tensor:
        """Velocity at z [N, D], t (0-dim or [N, 1]) and, where there is one, context [N, C].

        Raises:
            InvalidProblem: If the context is missing, not expected, or of another width.
        """
        widths = [c.shape[-1] for c in context]
        if widths != ([self.context] if self.context else []):
            raise InvalidProblem(
                f"`context` must have {self.context} features, got {widths or 'no context'}. "
                "Build the field with context=..., and give the flow one."
            )
        *first, last = self.layers
        for layer, activation in zip(first, self.activations, strict=True):
            z = activation(layer(t, torch.cat([z, *context], dim=-1)))
        return last(t, torch.cat([z, *context], dim=-1))


class HamiltonianField(nn.Module):
    """Two halves that drive each other:  d(q, p)/dt = (f(p), g(q)).

    The diagonal of its Jacobian is zero, so the flow preserves volume: a continuous NICE. Only the
    base's shape and where its mass lies can change a density.

    Args:
        position_rate: f, from p [N, P] to dq/dt [N, Q].
        momentum_rate: g, from q [N, Q] to dp/dt [N, P].
        n_position: Q, variables in the first half.

    Source:
        Chen et al. 2018 (arXiv 1806.07366v5), appendix A.1, eq. 29.

    Example:
        >>> field = HamiltonianField(nn.Linear(2, 2), nn.Linear(2, 2), n_position=2)
        >>> float(field.with_divergence(torch.tensor(0.0), torch.randn(5, 4))[1].abs().max())
        0.0
    """

    def __init__(self, position_rate: nn.Module, momentum_rate: nn.Module, n_position: int) -> None:
        """Keep the two networks."""
        super().__init__()
        if type(n_position) is not int or n_position < 1:
            raise InvalidProblem(
                f"`n_position` must be a positive integer, got {n_position!r}. "
                "It counts the variables of the first half."
            )
        self.position_rate, self.momentum_rate = position_rate, momentum_rate
        self.n_position = n_position

    def forward(self, t: Tensor, z: Tensor) -> Tensor:  # noqa: ARG002
        """Velocity at z = (q, p), [N, Q + P]; `t` is not used."""
        q, p = z[:, : self.n_position], z[:, self.n_position :]
        return torch.cat([self.position_rate(p), self.momentum_rate(q)], dim=1)

    def with_divergence(self, t: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Velocity [N, Q + P], and the divergence, which is zero [N]."""
        return self(t, z), torch.zeros_like(z[:, 0])


class PotentialField(nn.Module):
    """The gradient of a potential:  f(t, z) = -grad phi(t, z),  div f = -lap phi.

    phi is a network with one hidden layer beside a quadratic form,

        phi = w . softplus(K [z, t] + b) + |A z|^2 / 2 + c . z,

    whose gradient and Laplacian are known in closed form. Optimal transport maps are of this form.

    Args:
        dim: Variables, D.
        hidden: Width H of the hidden layer.
        rank: Rows of A.

    Cost:
        O(H D) a sample, Laplacian included; nothing is differentiated.

    Source:
        OT-Flow (Onken et al. 2021, arXiv 2006.00104), section 3.1, with one hidden layer.

    Example:
        >>> PotentialField(3)(torch.tensor(0.5), torch.randn(5, 3)).shape
        torch.Size([5, 3])
    """

    def __init__(self, dim: int, hidden: int = 64, rank: int = 4) -> None:
        """Draw the weights; those of the quadratic form are small."""
        super().__init__()
        for name, size in (("dim", dim), ("hidden", hidden), ("rank", rank)):
            if type(size) is not int or size < 1:
                raise InvalidProblem(
                    f"`{name}` must be a positive integer, got {size!r}. It counts features."
                )
        self.inner = nn.Linear(dim + 1, hidden)
        self.w = nn.Parameter(torch.randn(hidden) / hidden)
        self.a = nn.Parameter(torch.randn(rank, dim) * 0.1)
        self.c = nn.Parameter(torch.zeros(dim))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        """Velocity at z [N, D] and t, 0-dim or [N, 1]."""
        return self.with_divergence(t, z)[0]

    def potential(self, t: Tensor, z: Tensor) -> Tensor:
        """phi itself, [N]."""
        hidden = nn.functional.softplus(self._inner(t, z))
        return hidden @ self.w + (z @ self.a.t()).square().sum(dim=1) / 2 + z @ self.c

    def with_divergence(self, t: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Velocity [N, D] and divergence [N]."""
        k = self.inner.weight[:, :-1]  # [H, D]
        s = torch.sigmoid(self._inner(t, z))
        gradient = (s * self.w) @ k + z @ self.a.t() @ self.a + self.c
        laplacian = (s * (1 - s)) @ (self.w * k.square().sum(dim=1)) + self.a.square().sum()
        return -gradient, -laplacian

    def _inner(self, t: Tensor, z: Tensor) -> Tensor:
        column = (t.reshape(1, 1) if t.dim() == 0 else expand_time(t, z)).to(z.dtype)
        return self.inner(torch.cat([z, column.expand(z.shape[0], 1)], dim=1))
