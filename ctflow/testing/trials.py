"""Initial value problems at random: written down in a few words, built from them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ctflow.problem import ODEProblem
from ctflow.state import Layout, leaves_of

__all__ = ["FIELDS", "STRUCTURES", "RandomField", "Recipe", "random_recipe"]

_FLOAT = torch.float64

Form = Callable[["RandomField", Tensor, Tensor], Tensor]

FIELDS: dict[str, Form] = {
    "linear": lambda f, t, y: y @ f.a.T + f.b,  # noqa: ARG005 - it does not know time
    "rotation": lambda f, t, y: 0.5 * torch.cos(t) * (y @ (f.a - f.a.T)) + 0.1 * f.b,
    "network": lambda f, t, y: torch.tanh(y @ f.a.T + f.b * t) @ f.a,
    "forced": lambda f, t, y: torch.sin(3 * t) * f.b - 0.5 * y + 0.3 * torch.cos(t * y) @ f.a,
}
"""Vector fields on rows [B, N] at times [B, 1] or [1, 1], with a Lipschitz constant of about 1."""

STRUCTURES: dict[str, Callable[[Callable[..., Tensor]], Any]] = {
    "tensor": lambda new: new(3),
    "matrix": lambda new: new(2, 2),
    "tuple": lambda new: (new(2), new(1, 2)),
    "dict": lambda new: {"z": new(1), "a": new(2)},
    "nested": lambda new: [{"u": new(2)}, (new(1), new(1))],
}
"""States: from a function that makes a tensor of the size of one sample's leaf."""


class RandomField(nn.Module):
    """A field of one of the forms, on states of any structure.

    Args:
        form: A key of `FIELDS`.
        n: Variables of one sample.
        seed: Of its parameters.
        batched: Whether dimension 0 of every leaf is a batch of independent samples.
    """

    def __init__(self, form: str, n: int, seed: int, batched: bool) -> None:
        """Draw the parameters."""
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        a = torch.randn(n, n, dtype=_FLOAT, generator=generator)
        self.a = nn.Parameter(a / torch.linalg.matrix_norm(a, 2))
        self.b = nn.Parameter(0.3 * torch.randn(n, dtype=_FLOAT, generator=generator))
        self.form = form
        self.batched = batched

    def forward(self, t: Tensor, y: Any, force: Tensor | None = None) -> Any:  # noqa: ANN401
        """The leaves of a sample side by side are its row."""
        layout = Layout.of(y, self.batched)
        row = layout.pack(y)
        dy = FIELDS[self.form](self, t.reshape(-1, 1), row)
        return layout.unpack(dy if force is None else dy + 0.3 * force)

    def extra_repr(self) -> str:
        """What hypothesis shows of it."""
        return f"{self.form!r}, n={len(self.b)}, batched={self.batched}"


@dataclass(frozen=True)
class Recipe:
    """A problem in a few words.

    Args:
        form: A key of `FIELDS`.
        structure: A key of `STRUCTURES`.
        batch: Samples; None: one system without a batch dimension.
        times: Output times, the start first.
        forced: Whether `f` takes `args`, a constant force.
        seed: Of all numbers.
    """

    form: str
    structure: str
    batch: int | None
    times: tuple[float, ...]
    forced: bool
    seed: int

    def build(self) -> ODEProblem:
        """The problem, in float64."""
        y0 = self.state()
        n = sum(leaf.numel() for leaf in leaves_of(y0)) // (self.batch or 1)
        f = RandomField(self.form, n, self.seed, self.batch is not None)
        generator = torch.Generator().manual_seed(self.seed + 1)
        force = torch.randn(n, dtype=_FLOAT, generator=generator) if self.forced else None
        t = torch.tensor(self.times, dtype=_FLOAT)
        return ODEProblem(f, y0, t, args=force, batched=self.batch is not None)

    def state(self) -> Any:  # noqa: ANN401
        """The initial state."""
        generator = torch.Generator().manual_seed(self.seed + 2)
        lead = () if self.batch is None else (self.batch,)

        def new(*shape: int) -> Tensor:
            return 0.7 * torch.randn(*lead, *shape, dtype=_FLOAT, generator=generator)

        return STRUCTURES[self.structure](new)


def random_recipe(
    seed: int, batched: bool | None = None, longest: float = 3.0, kind: int | None = None
) -> Recipe:
    """A recipe drawn without hypothesis.

    Args:
        seed: Of the draw.
        batched: True or False; None: either.
        longest: Longest interval.
        kind: Of what a program is made for: form, structure, whether there are a batch, an
            argument and inner outputs. None: drawn like the rest.
    """
    draw = random.Random(seed)
    of_kind = draw if kind is None else random.Random(kind)
    form, structure = of_kind.choice(sorted(FIELDS)), of_kind.choice(sorted(STRUCTURES))
    has_batch = of_kind.random() < 0.5 if batched is None else batched
    forced, inner = of_kind.random() < 0.5, of_kind.random() < 0.75
    fewest = 1 if kind is None else 2  # a batch of one is a kind of its own
    return Recipe(
        form=form,
        structure=structure,
        batch=draw.randint(fewest, 3) if has_batch else None,
        times=_times(draw, longest, inner),
        forced=forced,
        seed=draw.randrange(10_000),
    )


def _times(draw: random.Random, longest: float, inner: bool) -> tuple[float, ...]:
    start = round(draw.uniform(-1, 1), 3)
    length = draw.uniform(0.1, longest) * draw.choice((1, -1))
    n = draw.randint(2, 4) if inner else 1
    parts: Sequence[int] = [draw.randint(1, 10) for _ in range(n)]
    ends = [sum(parts[: i + 1]) / sum(parts) for i in range(len(parts))]
    return (start, *(start + length * end for end in ends))
