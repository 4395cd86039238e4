"""Tensors that `f` reads beside t and y, so that every one of them gets its gradient.

A gradient method that leaves autograd's own graph (checkpointed, adjoint) must name its inputs.
What `f` reaches through a module, a closure, an attribute or a global is found in two ways that
back each other up: a walk over the places where `f` could keep a tensor, and a walk over the graph
of one evaluation, which shows what was really used. In the backward pass each place is given back
the tensor of the forward pass (so `functional_call`, a new context, a changed buffer do no harm),
and each tensor with a history of its own is cut off behind a detached copy, so that its gradient is
handed to that history exactly once.
"""

from __future__ import annotations

from collections.abc import (
    Callable,
    Container,
    Generator,
    Iterable,
    Iterator,
    Sequence,
)
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ctflow.backends.field import Field
from ctflow.backends.places import Place, tensors_in
from ctflow.errors import Unsupported
from ctflow.problem import ODEProblem
from ctflow.state import flatten_args
from ctflow.transforms import is_batched

__all__ = [
    "Autocast",
    "Captures",
    "boundary",
    "pull",
    "refuse",
    "refuse_second",
    "refuse_several",
    "sequence_number",
]


class Captures:
    """The tensors of one solve that a gradient is wanted for, and where `f` finds them.

    Args:
        problem: Whose `f`, `args` and `params` are looked through.
        field: The field that evaluates this `f`; its `args` are replaced in the backward pass.

    Attributes:
        inputs: Tensors that require a gradient; `discover` may add to them.
    """

    def __init__(self, problem: ODEProblem, field: Field) -> None:
        self._field = field
        self._args, self._rebuild = flatten_args(problem.args)
        self._places: dict[int, tuple[Tensor, list[Place]]] = {}
        objects = [x for x in self._args if not isinstance(x, Tensor)]
        for tensor, place in tensors_in(problem.f, *objects):
            self._places.setdefault(id(tensor), (tensor, []))[1].append(place)
        self._in_args = {id(x) for x in self._args if _wants_grad(x)}
        found = [x for x in self._args if _wants_grad(x)]
        found += [x for x in problem.params or () if x.requires_grad]
        found += [x for x, _ in self._places.values() if x.requires_grad and x.is_leaf]
        self.inputs: tuple[Tensor, ...] = tuple({id(x): x for x in found}.values())

    def discover(self, evaluated: Tensor, state: Tensor, marker: int) -> None:
        """Add what one evaluation reached beyond the places that are known.

        Args:
            evaluated: What the field returned, with its graph.
            state: The leaf that the field was evaluated at.
            marker: `sequence_number()` from just before the evaluation.

        Raises:
            Unsupported: If `f` reached a computed tensor that cannot be found or cannot be cut off.
        """
        known = {id(x) for x in (*self.inputs, state)}
        edges = {_edge(x): x for x in self._computed()}
        for reached in boundary(evaluated, marker, edges):
            if isinstance(reached, Tensor):
                found = reached
            elif reached in edges:
                found = edges[reached]
            else:
                raise Unsupported(_unreachable(reached))
            if id(found) not in known:
                known.add(id(found))
                self.inputs += (found,)
        self._check_cut()

    def recheck(
        self, evaluated: Tensor, stage: Tensor, marker: int, leaves: Iterable[Tensor], t: Tensor
    ) -> None:
        """Refuse an evaluation of the backward pass that reached something new.

        Raises:
            Unsupported: If a branch taken late used a tensor that the forward pass could not name.
        """
        known = {id(x) for x in leaves}
        stage_edge = _edge(stage) if stage.grad_fn is not None else None
        for reached in boundary(evaluated, marker):
            if isinstance(reached, Tensor):
                if id(reached) in known or reached is stage or reached is t:
                    continue
                shape = list(reached.shape)
            elif reached == stage_edge:
                continue
            else:
                shape = "unknown"
            raise Unsupported(_late(f"of shape {shape} at t={t.flatten()[0].item():.6g}"))

    def recheck_none(self, out: Tensor) -> None:
        """Refuse a solve with nothing to differentiate, recorded, that reached something after all.

        Raises:
            Unsupported: If a branch taken late used a tensor that requires a gradient.
        """
        if out.requires_grad:
            raise Unsupported(_late("that requires a gradient"))

    @contextmanager
    def cut(self) -> Generator[tuple[Tensor, ...]]:
        """Give every place its tensor of the forward pass back, computed ones cut off.

        Yields:
            For each of `inputs`, the leaf that now stands in its place.
        """
        self._check_cut()
        leaves = tuple(x.detach().requires_grad_() if _to_cut(x) else x for x in self.inputs)
        stand_in = {id(x): leaf for x, leaf in zip(self.inputs, leaves, strict=True)}
        undo: list[tuple[Place, object]] = []
        args = self._field.args
        try:
            if stand_in.keys() & self._in_args:
                self._field.args = self._rebuild([stand_in.get(id(x), x) for x in self._args])
            for tensor, places in self._places.values():
                wanted = stand_in.get(id(tensor), tensor)
                for place in places:
                    now = place.get()
                    if now is not wanted and place.settable:
                        place.put(wanted)
                        undo.append((place, now))
            yield leaves
        finally:
            self._field.args = args
            for place, before in reversed(undo):
                place.put(before)

    def _computed(self) -> Iterator[Tensor]:
        """Every known tensor with a history: an edge of the graph identifies it."""
        kept = (x for x, _ in self._places.values())
        return (x for x in (*self.inputs, *kept) if x.grad_fn is not None)

    def _check_cut(self) -> None:
        for x in self.inputs:
            if not _to_cut(x) or id(x) in self._in_args:
                continue
            places = self._places.get(id(x), (x, []))[1]
            if not any(place.settable for place in places):
                raise Unsupported(
                    f"`f` uses a {'hooked' if x.is_leaf else 'computed'} tensor of shape "
                    f"{list(x.shape)} kept where it cannot be replaced, so its gradient would be "
                    "wrong. Pass it in `args=`, or use gradient='direct'."
                )


class Edge(NamedTuple):
    """A place in autograd's graph: output `number` of `node`."""

    node: Any
    number: int


def sequence_number() -> int:
    """Number that the next node of autograd's graph will get in this thread."""
    return torch._C._autograd._get_sequence_nr()  # pyright: ignore


def _edge(x: Tensor) -> Edge:
    edge = torch.autograd.graph.get_gradient_edge(x)
    return Edge(edge.node, edge.output_nr)


def boundary(output: Tensor, marker: int, known: Container[Edge] = ()) -> Iterator[Tensor | Edge]:
    """Leaves that a graph reaches, and edges into what existed before the marker.

    Threads number their nodes apart, so a tensor made in another one is recognised only if known.
    """
    if not output.requires_grad:
        return
    stack: list[Edge] = [_edge(output)]
    seen: set[Edge] = set()
    while stack:
        edge = stack.pop()
        if edge in seen:
            continue
        seen.add(edge)
        if type(edge.node).__name__ == "AccumulateGrad":
            yield edge.node.variable
        elif edge in known or edge.node._sequence_nr() < marker:
            yield edge
        else:
            stack.extend(Edge(node, n) for node, n in edge.node.next_functions if node is not None)


def _late(what: str) -> str:
    return (
        f"`f` used a tensor {what} that it had not used at the start and that is computed or kept "
        "where ctflow cannot find it, so its gradient would be lost. Pass it in `args=` or "
        "`params=`, or use gradient='direct'."
    )


def _unreachable(edge: Edge) -> str:
    shape = list(edge.node._input_metadata[edge.number].shape)
    return (
        f"`f` uses a computed tensor of shape {shape} (made by {edge.node.name()}) that is neither "
        "an attribute nor in a closure where ctflow could find it, so its gradient would be lost. "
        "Pass it in `args=`, or use gradient='direct'."
    )


def _to_cut(x: Tensor) -> bool:
    """Whether a copy must stand in for it: its history, or its hooks, would run at every step."""
    return not x.is_leaf or bool(x._backward_hooks)  # pyright: ignore


def _wants_grad(x: object) -> bool:
    return isinstance(x, Tensor) and x.requires_grad


def pull(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], cotangents: Sequence[Tensor], keep: bool
) -> list[Tensor | None]:
    """Vector-Jacobian products of outputs with respect to inputs; None where none is reached."""
    found = torch.autograd.grad(outputs, inputs, cotangents, retain_graph=keep, allow_unused=True)
    return list(found)


class Autocast(NamedTuple):
    """Autocast as it was in the forward pass."""

    device: str
    dtype: torch.dtype
    enabled: bool

    @classmethod
    def now(cls, device: str) -> Autocast:
        """Read the present state."""
        return cls(device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))

    def again(self) -> torch.autocast:
        """A context with that state; no weight cache, because steps are redone one by one."""
        return torch.autocast(self.device, self.dtype, self.enabled, cache_enabled=False)


class _Refusal(torch.autograd.Function):
    """The identity; differentiating through it says why that would be wrong."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, message: str, *inputs: Tensor) -> Tensor:  # noqa: ANN401, ARG004
        """Hand the gradient on."""
        ctx.message = message
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:  # noqa: ANN401
        """Refuse."""
        raise Unsupported(ctx.message)


def refuse(
    gradients: Iterable[Tensor | None], message: str, inputs: Iterable[Tensor]
) -> tuple[Tensor | None, ...]:
    """Derivatives that raise where someone differentiates them again.

    Args:
        gradients: What a backward pass computed.
        message: What is then said.
        inputs: Tensors that the gradients depend on.

    Returns:
        The same numbers; under `create_graph=True` with a node behind them that raises.
    """
    if not torch.is_grad_enabled():
        return tuple(gradients)
    needed = tuple(x for x in inputs if x.requires_grad)
    apply: Callable[..., Tensor] = _Refusal.apply
    return tuple(None if g is None else apply(g, message, *needed) for g in gradients)


def refuse_several(gradients: Iterable[Tensor | None], name: str) -> None:
    """Refuse to pull back what torch.vmap, or a vectorised Jacobian, hands over all at once.

    Args:
        gradients: What a backward pass was given.
        name: The gradient method, for the message.

    Raises:
        Unsupported: If they are several.
    """
    if any(g is not None and is_batched(g) for g in gradients):
        raise Unsupported(
            f"gradient={name!r} pulls back one gradient at a time, got several at once "
            "(torch.vmap, is_grads_batched=True, vectorize=True). Take one after the other, or "
            "use gradient='direct' on the native backend."
        )


def refuse_second(
    gradients: Iterable[Tensor | None], name: str, inputs: Iterable[Tensor]
) -> tuple[Tensor | None, ...]:
    """First derivatives that raise where someone differentiates them again.

    Args:
        gradients: What a backward pass computed without a graph.
        name: The gradient method, for the message.
        inputs: Tensors that the gradients depend on.

    Returns:
        The same numbers; under `create_graph=True` with a node behind them that raises.
    """
    message = (
        f"gradient={name!r} cannot be differentiated a second time (its backward pass is not "
        "recorded). Use gradient='direct' on the native backend."
    )
    return refuse(gradients, message, inputs)
