"""The four problems that every contestant solves: same weights, start, times and tolerances.

Source:
    Networks of the sizes in Chen et al. 2018 (arXiv 1806.07366v5): the spiral and the latent model
    of section 5, the flow of section 4, the MNIST network of section 3.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from ctflow.dynamics import ConvField

__all__ = ["WORKLOADS", "Case", "Flow", "Kind", "Plain", "Spiral", "Workload", "perceptron"]

Kind: TypeAlias = Literal["spiral", "flow", "plain", "conv"]
State: TypeAlias = Tensor | tuple[Tensor, ...]


def perceptron(*widths: int) -> nn.Sequential:
    """Linear layers of these widths with tanh between them."""
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


class Plain(nn.Module):
    """f(t, y) = network of y."""

    def __init__(self, *widths: int) -> None:
        """Draw the weights."""
        super().__init__()
        self.net = perceptron(*widths)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002 - autonomous
        """States [B, D] to their derivative."""
        return self.net(y)


class Spiral(nn.Module):
    """f(t, y) = network of y cubed."""

    def __init__(self, *widths: int) -> None:
        """Draw the weights."""
        super().__init__()
        self.net = perceptron(*widths)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002 - autonomous
        """States [B, D] to their derivative."""
        return self.net(y**3)


class Flow(nn.Module):
    """d(x, log p)/dt = (g(x, t), -tr dg/dx), the trace being exact: one VJP for each dimension.

    Args:
        net: The network g of (x, t), [B, D + 1] to [B, D].
        tape: Whether the VJPs are taken by torch.autograd, which is the faster way operator by
            operator; otherwise by torch.func, which a compiler can follow.
    """

    def __init__(self, net: nn.Module, *, tape: bool) -> None:
        """Keep the network; two flows may share it."""
        super().__init__()
        self.net = net
        self.tape = tape

    def forward(self, t: Tensor, y: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Points [B, D] and log-densities [B, 1] to their derivatives."""
        x, _ = y
        rows = self._on_tape(t, x) if self.tape else self._by_transform(t, x)
        dx, *diagonal = rows
        return dx, -sum(diagonal[1:], diagonal[0])

    def _velocity(self, t: Tensor, x: Tensor) -> Tensor:
        return self.net(torch.cat([x, t.expand(x.shape[0], 1)], dim=1))

    def _on_tape(self, t: Tensor, x: Tensor) -> list[Tensor]:
        wanted = torch.is_grad_enabled()
        with torch.enable_grad():
            x = x if wanted and x.requires_grad else x.detach().requires_grad_()
            dx = self._velocity(t, x)
            found = [dx if wanted else dx.detach()]
            for i in range(dx.shape[1]):
                (row,) = torch.autograd.grad(
                    dx[:, i].sum(), x, create_graph=wanted, retain_graph=True
                )
                found.append(row[:, i : i + 1])
        return found

    def _by_transform(self, t: Tensor, x: Tensor) -> list[Tensor]:
        dx, pull = torch.func.vjp(lambda x: self._velocity(t, x), x)
        found = [dx]
        for i in range(dx.shape[1]):
            unit = torch.zeros_like(dx)
            unit[:, i] = 1
            found.append(pull(unit)[0][:, i : i + 1])
        return found


@dataclass(frozen=True)
class Case:
    """One problem, drawn: what every contestant is given.

    Args:
        name: What it is called.
        kind: Which rule the field follows, for a contestant that writes it in another language.
        field: f(t, y), as it runs fastest operator by operator.
        traceable: The same with the same weights, as a compiler can follow it.
        leaves: Tensors of the initial state.
        t: Output times, [T].
        tolerance: rtol and atol.
        reference: rtol and atol of the float64 solution that errors are measured against.
        absolute: Whether our adjoint takes part once more.
    """

    name: str
    kind: Kind
    field: nn.Module
    traceable: nn.Module
    leaves: tuple[Tensor, ...]
    t: Tensor
    tolerance: float
    reference: float
    absolute: bool = False

    @property
    def y0(self) -> State:
        """The initial state as the field takes it."""
        return self.leaves[0] if len(self.leaves) == 1 else self.leaves

    @property
    def n_parameters(self) -> int:
        """Numbers that are learned."""
        return sum(parameter.numel() for parameter in self.field.parameters())

    def to(self, device: str) -> Case:
        """The same on a device, for contestants in this process."""
        fields = copy.deepcopy((self.field, self.traceable))  # together: they share their weights
        field, traceable = (each.to(device) for each in fields)
        leaves = tuple(leaf.to(device) for leaf in self.leaves)
        t = self.t.to(device)
        return replace(self, field=field, traceable=traceable, leaves=leaves, t=t)

    def save(self, path: Path) -> None:
        """Write weights, start and times for a contestant in another process."""
        arrays = {f"y{i}": leaf for i, leaf in enumerate(self.leaves)}
        arrays |= {f"p{i}": p.detach() for i, p in enumerate(self.field.parameters())}
        np.savez(path, t=self.t.numpy(), **{key: x.numpy() for key, x in arrays.items()})

    def record(self) -> dict[str, object]:
        """What stands about it in a result file."""
        return {
            "name": self.name,
            "state": [list(leaf.shape) for leaf in self.leaves],
            "dtype": str(self.leaves[0].dtype).removeprefix("torch."),
            "n_parameters": self.n_parameters,
            "n_times": len(self.t),
            "t": [float(self.t[0]), float(self.t[-1])],
            "tolerance": self.tolerance,
            "reference": self.reference,
            "absolute": self.absolute,
        }


@dataclass(frozen=True)
class Workload:
    """How to draw a case.

    Args:
        name: What it is called.
        kind: Rule of its field.
        make: Draws the field: as eager execution wants it, and as a compiler does.
        shapes: Shapes of the leaves of the state; normal numbers, zeros from the second leaf on.
        t: First time, last time, how many.
        tolerance: rtol and atol.
        reference: Those of the float64 reference.
        absolute: Whether our adjoint takes part once more with the peers' absolute tolerance, which
            is one of the gradient as it is, and torchdiffeq's with ours, which is in units of the
            incoming gradient: where that is small, the same number does not ask the same.
    """

    name: str
    kind: Kind
    make: Callable[[], tuple[nn.Module, nn.Module]]
    shapes: Sequence[tuple[int, ...]]
    t: tuple[float, float, int]
    tolerance: float
    reference: float = 1e-10
    absolute: bool = False

    def case(
        self, seed: int = 0, rows: int | None = None, dtype: torch.dtype = torch.float32
    ) -> Case:
        """Draw it.

        Args:
            seed: Of weights and start.
            rows: Most rows of the state, for a trial run.
            dtype: Of everything; drawn in float32, so that the numbers are the same.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            field, traceable = self.make()
            first = torch.randn(self.shapes[0])
        leaves = [first, *(torch.zeros(shape) for shape in self.shapes[1:])]
        return Case(
            self.name,
            self.kind,
            field.to(dtype),
            traceable.to(dtype),
            tuple(leaf[:rows].to(dtype) for leaf in leaves),
            torch.linspace(*self.t, dtype=dtype),
            self.tolerance,
            self.reference,
            self.absolute,
        )


def _one(field: nn.Module) -> tuple[nn.Module, nn.Module]:
    return field, field


def _flow() -> tuple[nn.Module, nn.Module]:
    net = perceptron(3, 64, 64, 2)
    return Flow(net, tape=True), Flow(net, tape=False)


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload(
            "spiral-mlp",
            "spiral",
            lambda: _one(Spiral(2, 50, 2)),
            [(20, 2)],
            (0.0, 10.0, 50),
            1e-6,
        ),
        Workload("cnf-2d", "flow", _flow, [(512, 2), (512, 1)], (0.0, 1.0, 2), 1e-5),
        Workload(
            "latent-ode",
            "plain",
            lambda: _one(Plain(4, 20, 20, 4)),
            [(1000, 4)],
            (0.0, 6.0, 100),
            1e-6,
        ),
        Workload(
            "odenet-conv",
            "conv",
            lambda: _one(ConvField(64)),
            [(128, 64, 7, 7)],
            (0.0, 1.0, 2),
            1e-3,
            reference=1e-6,  # of a field with kinks: each tenth costs minutes, not digits
            absolute=True,
        ),
    )
}
