"""A multilayer perceptron as a vector field."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor, nn

from ctflow.dynamics.time_layers import IgnoreLinear
from ctflow.errors import InvalidProblem

__all__ = ["MLP"]


class MLP(nn.Module):
    """A multilayer perceptron as a vector field:  dy/dt = W_n a(... a(W_1 y + b_1) ...) + b_n.

    How it depends on time is said by its layers: `IgnoreLinear` (not at all), `ConcatLinear` (t is
    one more feature of every layer), `ConcatSquashLinear` (t gates every layer), or any module that
    is called as `layer(t, y)`.

    Args:
        dim: Features of the state, D.
        hidden: Width of each hidden layer; empty for a linear field.
        layer: Makes a layer from its input and output width.
        activation: Makes the activation between two layers, for example `torch.nn.Softplus`. A
            smooth one lets an adaptive solver take larger steps than ReLU does.

    Raises:
        InvalidProblem: If a width is not a positive integer; when called, if the last dimension
            of `y` is not D.

    Cost:
        One pass through the network a call; O(B * sum of products of neighbouring widths).

    Example:
        >>> import torch
        >>> from ctflow.dynamics import ConcatSquashLinear
        >>> field = MLP(2, (32, 32), layer=ConcatSquashLinear)
        >>> field(torch.tensor(0.5), torch.zeros(7, 2)).shape
        torch.Size([7, 2])
    """

    def __init__(
        self,
        dim: int,
        hidden: Sequence[int] = (64, 64),
        *,
        layer: Callable[[int, int], nn.Module] = IgnoreLinear,
        activation: Callable[[], nn.Module] = nn.Tanh,
    ) -> None:
        """Make the layers, which draw their own weights."""
        super().__init__()
        _check_width("dim", dim)
        for i, width in enumerate(hidden):
            _check_width(f"hidden[{i}]", width)
        self.dim = dim
        self.layers = nn.ModuleList(layer(a, b) for a, b in pairwise((dim, *hidden, dim)))
        self.activations = nn.ModuleList(activation() for _ in hidden)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """Derivative of the state.

        Args:
            t: Time, 0-dim or [B, 1, ..., 1].
            y: State, [..., D].

        Returns:
            dy/dt, [..., D].
        """
        if y.dim() == 0 or y.shape[-1] != self.dim:
            raise InvalidProblem(
                f"`y` must have {self.dim} features in its last dimension, got shape "
                f"{list(y.shape)}. Reshape the state, or build MLP with its width."
            )
        *first, last = self.layers
        for layer, activation in zip(first, self.activations, strict=True):
            y = activation(layer(t, y))
        return last(t, y)


def _check_width(name: str, width: object) -> None:
    if not isinstance(width, int) or width < 1:
        raise InvalidProblem(
            f"`{name}` must be a positive integer, got {width!r}. Give the number of features."
        )
