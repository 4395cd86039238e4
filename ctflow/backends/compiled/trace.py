"""The user's `f` and its vector-Jacobian product as graphs of elementary operations."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch._decomp import get_decompositions
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.fx.experimental.proxy_tensor import make_fx

from ctflow.backends.compiled.columns import by_columns
from ctflow.backends.compiled.diagonals import condensed
from ctflow.backends.compiled.equality import merge_equal, same
from ctflow.backends.compiled.reads import Reads
from ctflow.backends.field import Field
from ctflow.errors import CtflowError, InvalidProblem, Unsupported
from ctflow.problem import ODEProblem
from ctflow.state import Layout, as_real

__all__ = ["Traced", "graph_of", "trace"]

_ATEN = torch.ops.aten


def _scaled_sum(x: Tensor, y: Any, alpha: float = 1) -> Any:  # noqa: ANN401
    """x + alpha y: the compiler loses alpha where x or y is a matrix product."""
    return NotImplemented if alpha == 1 else x + alpha * y


def _from_number(x: Tensor, y: complex, alpha: float = 1) -> Any:  # noqa: ANN401
    """y - alpha x as a sum, in which y stands where a tensor may."""
    return y + -alpha * x if isinstance(y, complex) else NotImplemented


_IN_PARTS: Any = {
    # Torch has no shapes for these where a free size is broadcast.
    **get_decompositions([_ATEN.addcmul, _ATEN.addcdiv, _ATEN.lerp]),
    _ATEN.add.Tensor: _scaled_sum,
    _ATEN.rsub.Scalar: _from_number,
}


@dataclass(frozen=True)
class Traced:
    """A vector field that no longer needs Python.

    Attributes:
        value: (t [B], y [B, N], *tensors) -> f, [B, N].
        pulled: (t, y, cotangent [B, N], *tensors) -> (f, its product with df/dy, and with the
            derivative by each tensor of `wanted`); None where no gradient was asked for.
        wanted: Which of the tensors a gradient is wanted of, by index.
    """

    value: fx.GraphModule
    pulled: fx.GraphModule | None
    wanted: tuple[int, ...]


def trace(
    problem: ODEProblem,
    reads: Reads,
    layout: Layout,
    inputs: tuple[Tensor, Tensor],
    tensors: Sequence[Tensor],
    wanted: tuple[int, ...] | None,
    actual: Callable[[Any], int] = int,
) -> Traced:
    """Follow `f` once through its value, and once through its derivative.

    The derivative is that of autograd as `f` itself arranges it: what it detaches stays detached,
    and what it differentiates inside is differentiated again.

    Args:
        problem: Whose `f` is followed.
        reads: The places where `f` finds its tensors.
        layout: How the flat state maps to the user's.
        inputs: t [B] and y [B, N], fake.
        tensors: Stand-ins for the tensors of `reads`, fake.
        wanted: Indices of the tensors a gradient is wanted of; None for no derivative at all.
        actual: What a free size is now.

    Raises:
        Unsupported: If `f` cannot be followed: its Python depends on values, it draws random
            numbers, it reads a tensor that cannot be found, it changes one.
    """
    field = Field(problem, layout)
    t, y = inputs

    def run(t: Tensor, y: Tensor, *tensors: Tensor) -> Tensor:
        with reads.replaced(field, tensors):
            return field(t, y)

    def value(*inputs: Tensor) -> Tensor:
        with torch.no_grad():
            return run(*inputs)

    def derivative(function: Callable[..., Tensor]) -> fx.GraphModule | None:
        if wanted is None:
            return None
        given = (t, y, torch.empty_like(y), *tensors)
        return _without_repeats(_followed(_pulled(function, wanted), given))

    forward = _without_repeats(_followed(value, (t, y, *tensors)))
    backward = derivative(run)
    shorter = condensed(forward)
    if shorter is not None:
        plain = derivative(forward)
        if backward is None or plain is None:
            forward = shorter
        elif same(plain, backward):  # else `f` detaches something, which its graph does not
            forward, backward = shorter, derivative(shorter)
    for graph in (forward, backward):
        if graph is not None:
            by_columns(graph.graph, actual)
            graph.recompile()
    return Traced(forward, backward, wanted or ())


def _pulled(
    function: Callable[..., Tensor], wanted: tuple[int, ...]
) -> Callable[..., list[Tensor]]:
    """(t, y, cotangent, *tensors) -> (f, its products), for f of (t, y, *tensors)."""

    def pulled(t: Tensor, y: Tensor, cotangent: Tensor, *tensors: Tensor) -> list[Tensor]:
        with torch.enable_grad():
            state = y.detach().requires_grad_()
            leaves = [
                x.detach().requires_grad_() if i in wanted else x for i, x in enumerate(tensors)
            ]
            dy = function(t, state, *leaves)
        inner = (state, *(leaves[i] for i in wanted))
        if not dy.requires_grad:
            return [dy.detach(), *(torch.zeros_like(x) for x in inner)]
        found: list[Tensor | None] = list(
            torch.autograd.grad(dy, inner, cotangent, allow_unused=True)
        )
        return [
            dy.detach(),
            *(
                torch.zeros_like(x) if g is None else g.detach()
                for g, x in zip(found, inner, strict=True)
            ),
        ]

    return pulled


def _without_repeats(graph: fx.GraphModule) -> fx.GraphModule:
    merge_equal(graph.graph)
    graph.recompile()
    return graph


def graph_of(function: Callable[..., Any], inputs: Sequence[Tensor]) -> fx.GraphModule:
    """A function of tensors as a graph of functional operations."""

    def flat(*inputs: Tensor) -> Any:  # noqa: ANN401 - make_fx miscounts a method's arguments
        return function(*inputs)

    return make_fx(flat, decomposition_table=_IN_PARTS, tracing_mode="real")(*inputs)


def _followed(function: Callable[..., Any], inputs: Sequence[Tensor]) -> fx.GraphModule:
    """The graph of the user's code, without changes in place; refused in the user's terms."""
    try:
        with warnings.catch_warnings():
            # Torch's own, of its forward-mode derivatives, whenever it follows one first.
            warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)
            graph = make_fx(function, decomposition_table=_IN_PARTS, tracing_mode="real")(*inputs)
            _check_pure(graph, len(inputs))
            _keep_constants_real(graph)
            graph = make_fx(torch.func.functionalize(graph, remove="mutations"))(*inputs)
    except CtflowError:
        raise
    except Exception as error:
        raise Unsupported(
            "backend 'compiled' cannot trace `f`: "
            f"{_reason(error)}{_line(error)}. Use backend='native', which runs any Python."
        ) from error
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def _keep_constants_real(graph: fx.GraphModule) -> None:
    """Complex constants as their parts: the compiler can write down no others."""
    for node in list(graph.graph.nodes):
        value: Any = getattr(graph, node.target, None) if node.op == "get_attr" else None
        if isinstance(value, Tensor) and value.is_complex():
            for user in list(node.users):
                whole = _whole(graph, value, user)
                if user.target is _ATEN.lift_fresh_copy.default:  # as a constant of f itself is
                    user.replace_all_uses_with(whole)
                    graph.graph.erase_node(user)
                else:
                    user.replace_input_with(node, whole)
            graph.graph.erase_node(node)
        if node.op == "call_function" and isinstance(node.target, OpOverload):
            for i, value in enumerate(node.args):
                if isinstance(value, complex) and _takes_tensor(node.target, i):
                    node.update_arg(i, _whole(graph, _as_tensor(value, node), node))
    graph.recompile()


def _as_tensor(value: complex, node: fx.Node) -> Tensor:
    """A number that stands where an operation takes a tensor: it is of the result's precision."""
    result = node.meta.get("val")
    dtype = torch.complex128
    if isinstance(result, Tensor) and result.is_complex():
        dtype = result.dtype
    with unset_fake_temporarily():
        return torch.tensor(value, dtype=dtype)


def _whole(graph: fx.GraphModule, value: Tensor, before: fx.Node) -> fx.Node:
    """A complex constant, of its parts."""
    name = f"_parts_{sum(1 for _ in graph.buffers())}"
    with unset_fake_temporarily():
        graph.register_buffer(name, as_real(value).clone())
    with graph.graph.inserting_before(before):
        parts = graph.graph.get_attr(name)
        lifted = graph.graph.call_function(_ATEN.lift_fresh_copy.default, (parts,))
        return graph.graph.call_function(_ATEN.view_as_complex.default, (lifted,))


def _takes_tensor(target: OpOverload, i: int) -> bool:
    return isinstance(target._schema.arguments[i].type, torch.TensorType)  # pyright: ignore


def _check_pure(graph: fx.GraphModule, n_inputs: int) -> None:
    """Refuse random numbers, and changes of what `f` was given or reads."""
    given = {node for i, node in enumerate(graph.graph.nodes) if i < n_inputs}
    owner: dict[fx.Node, fx.Node] = {node: node for node in given}
    for node in graph.graph.nodes:
        target = node.target
        if node.op != "call_function" or not isinstance(target, OpOverload):
            continue
        if _draws(node, target):
            raise Unsupported(
                f"backend 'compiled' cannot trace `f`: it draws random numbers ({target}), which "
                "would differ when a step is redone. Draw them outside and pass them in `args=`, "
                "put dropout in eval mode, or use backend='native' with gradient='direct'."
            )
        if not node.args or not isinstance(node.args[0], fx.Node):
            continue
        first = node.args[0]
        if first in owner and target.is_view:
            owner[node] = owner[first]
        if target._schema.is_mutable and first in owner:  # pyright: ignore
            raise InvalidProblem(
                f"`f` must not change its input, or a tensor that it reads, got {target} on one "
                "(batch norm in training mode does this too). Use out-of-place operations, and "
                "`module.eval()`."
            )


def _draws(node: fx.Node, target: OpOverload) -> bool:
    """Whether an operation draws random numbers; attention has a dropout of its own, often 0."""
    if torch.Tag.nondeterministic_seeded not in target.tags:
        return False
    names = [argument.name for argument in target._schema.arguments]  # pyright: ignore
    if "dropout_p" not in names:
        return True
    given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    return bool(given.get("dropout_p", 0.0) != 0.0)


def _reason(error: BaseException) -> str:
    """What went wrong, in one line."""
    text = " ".join(str(error).split())
    name = type(error).__name__
    if "DataDependent" in name or "GuardOnDataDependent" in name or "_local_scalar_dense" in text:
        return (
            "its Python depends on the values of tensors (an `if`, `while`, `.item()`, `float()`)"
        )
    if "convert all Tensors to FakeTensors" in text or "Found a real tensor" in text:
        return "it reads a tensor that is kept where ctflow cannot find it (pass it in `args=`)"
    return f"{name}: {text[:300]}"


def _line(error: BaseException) -> str:
    """The last line of the user's own code on the way to the error."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "/torch/" not in frame.filename and "/ctflow/backends/" not in frame.filename
    ]
    if not frames:
        return ""
    frame = frames[-1]
    return f", at {frame.filename}:{frame.lineno}: `{frame.line}`"
