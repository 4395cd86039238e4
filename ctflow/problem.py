"""What is asked: an initial value problem, checked once, when it is built."""

from __future__ import annotations

import inspect
import math
import operator
import types
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from ctflow.errors import InvalidProblem, Unsupported
from ctflow.event import Event, checked_events
from ctflow.state import State, leaves_of, widest
from ctflow.transforms import any_batched, is_moving, plain

__all__ = ["ODEProblem", "check_callable"]

_FEW_TIMES = 200  # up to which a loop in Python is quicker than two tensor operations
_DTYPES = frozenset(
    (
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.complex128,
        torch.complex64,
    )
)


@dataclass(frozen=True, eq=False)
class ODEProblem:
    """An initial value problem  dy/dt = f(t, y),  y(t[0]) = y0,  with output wanted at every `t`.

    Args:
        f: `f(t, y)`, or `f(t, y, args)` where `args` is given; returns dy/dt with the structure,
            shapes, dtype and device of `y`. `t` arrives in the dtype of `y`: 0-dim under shared
            steps, [B, 1, ..., 1] with the rank of the first leaf under per-sample steps.
        y0: Initial state: a tensor, or tensors of one floating or complex dtype and one device in
            tuples, lists and dicts.
        t: Output times, [T] with T >= 2, or [B, T] (then coupling must be per-sample); strictly
            monotone in either direction; `t[0]` is where `y0` holds. A tensor of floating dtype, or
            a sequence of numbers. A gradient reaches it.
        params: Tensors that `f` uses and that are wanted a gradient for, beyond what ctflow finds
            by itself (parameters and attributes of modules, closures, globals, defaults).
        args: Handed to `f` as its third argument; any nesting of tensors and values. A gradient
            reaches its tensors.
        batched: True says "dimension 0 of every leaf is a batch of independent systems": then
            a solver whose `coupling` is None steps each sample by itself where the backend can.
        running_cost: `running_cost(t, y)`, or `running_cost(t, y, args)` where `args` is given;
            its integral from `t[0]` to each output time, along the same path in the same solve,
            comes back as `Solution.cost`. One value for each sample under per-sample steps; else
            a tensor of any shape; also several in tuples, lists and dicts. Gradients pass through.
        cost_in_norm: Whether the integral's error takes part in choosing the steps.
        uncontrolled: So many last leaves of `y0` stay out of the error norm.
        jump_t: Times, [J] or numbers, at which `f` is discontinuous in `t`, in any order. Steps end
            there; before, `f` sees times before the jump only, and after it times behind it only,
            in the backward pass too. The state goes on without a jump. Not differentiable: where
            the place depends on parameters, solve up to it and from it on, whose times have
            gradients.
        mask: Which of the times [B, T] count, bool [B, T], for samples with different numbers of
            times: True up to a sample's last time, False behind it, where `t` may hold anything.
            There the outputs repeat the state at the sample's last time, and so does `t`.
        dense: Whether `Solution.dense` is wanted: the solution as a function of time.
        local_error: Whether `Solution.local_error` is wanted: what the solver estimates of its own
            error, summed over its steps, with gradients. For regularisation; only backends that
            step themselves have it.
        event: An `Event`, or several in a list: they are looked for all along the way, and
            `Solution.event` tells where. Outputs at the time of an event are those right before it,
            and behind a terminal event they repeat the state at it.

    Raises:
        InvalidProblem: For anything above that does not hold, NaN and infinity included.

    Cost:
        One check of `y0` and `t` for finite values, which waits for the device once.

    Example:
        >>> import torch
        >>> problem = ODEProblem(lambda t, y: -y, torch.ones(3), torch.linspace(0, 1, 5))
        >>> problem.t.shape
        torch.Size([5])
    """

    f: Callable[..., Any]
    y0: State
    t: Tensor
    params: tuple[Tensor, ...] | None = None
    args: Any = None
    batched: bool = False
    running_cost: Callable[..., Any] | None = None
    cost_in_norm: bool = True
    uncontrolled: int = 0
    local_error: bool = False
    jump_t: Tensor | None = None
    dense: bool = False
    mask: Tensor | None = None
    event: Event | Sequence[Event] | None = None

    def __post_init__(self) -> None:
        """Check everything that can be checked without calling `f`."""
        check_callable(self.f, "`f`", self.args is not None)
        if self.running_cost is not None:
            check_callable(self.running_cost, "`running_cost`", self.args is not None)
        events = checked_events(self.event)
        object.__setattr__(self, "event", events or None)
        for i, event in enumerate(events):
            check_callable(event.fn, f"`fn` of event {i}", self.args is not None)
            if event.change is not None:
                check_callable(event.change, f"`change` of event {i}", self.args is not None)
        first = _check_state(self.y0, self.batched)
        object.__setattr__(self, "t", _checked_times(self.t, first, self.mask))
        object.__setattr__(self, "jump_t", _checked_jumps(self.jump_t, first))
        object.__setattr__(self, "params", _checked_params(self.params))
        if self.dense and self.running_cost is not None:
            raise InvalidProblem(
                "`dense` must not be asked for beside a `running_cost`, got both. Make the cost a "
                "part of the state."
            )
        if not 0 <= self.uncontrolled < len(leaves_of(self.y0)):
            raise InvalidProblem(
                f"`uncontrolled` must leave a leaf in the error norm, got {self.uncontrolled} for "
                f"{len(leaves_of(self.y0))} leaves. Count the last leaves of `y0`."
            )


def check_callable(f: object, name: str, has_args: bool) -> None:
    """Refuse what cannot be called with a time and a state.

    Args:
        f: Anything.
        name: Its name in the message.
        has_args: Whether it is called with a third argument.

    Raises:
        InvalidProblem: If it is no callable, or its signature takes other arguments.
    """
    wanted = "(t, y, args)" if has_args else "(t, y)"
    if not callable(f):
        raise InvalidProblem(
            f"{name} must be callable as {wanted}, got {type(f).__name__}. "
            "Pass a function or an nn.Module."
        )
    call = f.forward if isinstance(f, nn.Module) else f
    if _takes(call, 3 if has_args else 2):
        return
    try:
        signature = inspect.signature(call)
    except (TypeError, ValueError):
        return  # a builtin without a signature: the call itself will tell
    try:
        signature.bind(*(None,) * (3 if has_args else 2))
    except TypeError as error:
        raise InvalidProblem(
            f"{name} must be callable as {wanted}, got the signature {signature} ({error}). "
            "Take time first, then the state"
            + (", then `args`." if has_args else "; pass further inputs through `args=`.")
        ) from None


def _takes(call: object, n: int) -> bool:
    """Whether a plain function or method takes n arguments by place: a quick look that may miss."""
    bound = isinstance(call, types.MethodType)
    function = call.__func__ if bound else call
    if not isinstance(function, types.FunctionType) or hasattr(function, "__wrapped__"):
        return False
    code, defaults = function.__code__, len(function.__defaults__ or ())
    needed = code.co_argcount - bound
    return code.co_kwonlyargcount == 0 and needed - defaults <= n <= needed


def _check_state(y0: object, batched: bool) -> Tensor:
    leaves = leaves_of(y0)
    if not leaves:
        raise InvalidProblem("`y0` must hold a tensor, got none. Pass the initial state.")
    for i, leaf in enumerate(leaves):
        _check_leaf(leaf, "`y0`" if len(leaves) == 1 else f"leaf {i} of `y0`")
    first: Tensor = leaves[0]
    for i, leaf in enumerate(leaves):
        if leaf.dtype != first.dtype:
            raise InvalidProblem(
                f"`y0` must have one dtype, got {first.dtype} in leaf 0 and {leaf.dtype} in leaf "
                f"{i}. Cast the leaves to one of them."
            )
        if leaf.device != first.device:
            raise InvalidProblem(
                f"`y0` must lie on one device, got {first.device} for leaf 0 and {leaf.device} for "
                f"leaf {i}. Move the leaves to one of them."
            )
        if batched and (leaf.dim() == 0 or leaf.shape[0] != first.shape[0]):
            raise InvalidProblem(
                f"a batched `y0` must have the batch as dimension 0 of every leaf, got shape "
                f"{list(leaf.shape)} in leaf {i} beside {list(first.shape)}. Add or expand it."
            )
    for i, leaf in enumerate(leaves):
        _check_finite(leaf, "`y0`" if len(leaves) == 1 else f"leaf {i} of `y0`")
    return first


def _check_leaf(leaf: object, name: str) -> None:
    if not isinstance(leaf, Tensor):
        raise InvalidProblem(
            f"{name} must be a tensor, got {type(leaf).__name__}. Use torch.as_tensor on it."
        )
    if leaf.layout != torch.strided:
        raise InvalidProblem(f"{name} must be dense, got {leaf.layout}. Use `.to_dense()`.")
    if not (leaf.is_floating_point() or leaf.is_complex()):
        raise InvalidProblem(
            f"{name} must have a floating dtype, got {leaf.dtype}. Use `.float()` or `.double()`."
        )
    if leaf.dtype not in _DTYPES:
        raise InvalidProblem(
            f"{name} must have a dtype to calculate with, got {leaf.dtype}. Use `.float()`."
        )
    if leaf.numel() == 0:
        raise InvalidProblem(
            f"{name} must have elements, got shape {list(leaf.shape)}. Skip the solve if empty."
        )


def _check_finite(leaf: Tensor, name: str) -> None:
    leaf = plain(leaf)
    if math.isfinite(abs(leaf.sum().item())):  # one pass; a sum may overflow where no element did
        return
    bad = ~torch.isfinite(leaf)
    if bad.any():
        where = bad.nonzero()[0].tolist()
        raise InvalidProblem(
            f"{name} must be finite, got {leaf[tuple(where)].item()} at index {where}"
            f" ({int(bad.sum())} such elements). Clean the input."
        )


def _checked_times(t: object, first: Tensor, mask: Tensor | None) -> Tensor:
    if not isinstance(t, Tensor):
        if not isinstance(t, Sequence | np.ndarray) or isinstance(t, str):
            raise InvalidProblem(
                f"`t` must be a tensor or a sequence of numbers, got {type(t).__name__}. "
                "Use torch.linspace or torch.tensor."
            )
        t = _times_of_numbers(cast("Sequence[object]", t), first)
    if any_batched([t, mask]):
        raise Unsupported(
            "torch.vmap over times is not offered: every call would have to take other steps, got "
            "`t` or `mask` with another value in each. Make the batch dimension 0 of `y0`, give "
            "`t` as [B, T] and use Solver(coupling='per_sample')."
        )
    if not t.is_floating_point():
        raise InvalidProblem(
            f"`t` must have a floating dtype, got {t.dtype}. Use `.double()` on it."
        )
    if t.dim() not in (1, 2):
        raise InvalidProblem(
            f"`t` must be [T], or [B, T] for per-sample times, got shape {list(t.shape)}. "
            "Give the start and at least one further time."
        )
    if t.shape[-1] < 2:
        raise InvalidProblem(
            f"`t` must hold the start and at least one further time, got {t.shape[-1]} "
            f"time{'' if t.shape[-1] == 1 else 's'}. Write t = [t0, t1]."
        )
    if t.dim() == 2 and (first.dim() == 0 or t.shape[0] != first.shape[0]):
        raise InvalidProblem(
            f"`t` of shape {list(t.shape)} must have a row for each sample, got `y0` of shape "
            f"{list(first.shape)}. Make dimension 0 of `y0` the batch."
        )
    if mask is None:
        _check_monotone(plain(t))
        return t.to(first.device)
    counts = _checked_mask(mask, t)
    last = (counts - 1).to(t.device).unsqueeze(1)
    column = torch.arange(t.shape[1], device=t.device).expand_as(t)
    filled = t.gather(1, torch.minimum(column, last))
    values = plain(filled)
    for n in counts.unique().tolist():
        if n > 1:
            rows = (counts == n).nonzero().flatten()
            _check_monotone(values[rows.to(t.device), :n], rows)
    _check_all_finite(values)
    return filled.to(first.device)


def _checked_mask(mask: object, t: Tensor) -> Tensor:
    """Number of times of each sample, [B], on the CPU."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise InvalidProblem(
            f"`mask` must be a bool tensor, got {kind}. Compare, or use `.bool()`."
        )
    if t.dim() != 2 or mask.shape != t.shape:
        raise InvalidProblem(
            f"`mask` must have the shape [B, T] of `t`, got {list(mask.shape)} for "
            f"{list(t.shape)}. Give each sample its own row of times."
        )
    known = mask.cpu()
    counts = known.sum(dim=1)
    wrong = (known != (torch.arange(t.shape[1]) < counts.unsqueeze(1))).any(dim=1) | (counts == 0)
    if wrong.any():
        b = int(wrong.nonzero()[0])
        raise InvalidProblem(
            "`mask` must be True up to a sample's last time and False behind it, got "
            f"{known[b].tolist()} for sample {b}. Move the times that count to the front."
        )
    return counts


def _times_of_numbers(t: Sequence[object], first: Tensor, name: str = "`t`") -> Tensor:
    try:
        if any(isinstance(x, Tensor) and is_moving(x) for x in leaves_of(t)):
            raise ValueError  # torch.tensor would copy the numbers and lose the gradient
        return torch.tensor(t, dtype=widest(first.device), device=first.device)
    except (TypeError, ValueError, RuntimeError):
        raise InvalidProblem(
            f"{name} must be a tensor or a sequence of numbers, got {list(t)!r}. "
            "Use torch.stack to join 0-dim tensors, so that gradients reach them."
        ) from None


def _checked_jumps(jumps: object, first: Tensor) -> Tensor | None:
    """Places of jumps in time's own dtype on the state's device; None for none."""
    if jumps is None:
        return None
    if not isinstance(jumps, Tensor):
        jumps = _times_of_numbers(list(cast("Iterable[object]", jumps)), first, "`jump_t`")
    elif is_moving(jumps) or any_batched([jumps]):
        raise Unsupported(
            "`jump_t` must not require a gradient, nor differ under torch.vmap: the places of "
            "jumps are constants of a solve. Detach it; or solve up to the jump and from it on, "
            "whose times have gradients."
        )
    jumps = plain(jumps)
    if jumps.dim() != 1 or not jumps.is_floating_point() or not torch.isfinite(jumps).all():
        raise InvalidProblem(
            f"`jump_t` must be [J] finite times of floating dtype, got {jumps!r:.80}. "
            "Write jump_t=[0.5, 1.0]."
        )
    return jumps.to(first.device) if len(jumps) else None


def _check_all_finite(values: Tensor) -> None:
    if not torch.isfinite(values).all():
        raise InvalidProblem(
            f"`t` must be finite, got {values.tolist()}. Remove NaN and infinite times."
        )


def _check_monotone(t: Tensor, rows: Tensor | None = None) -> None:
    if t.dim() == 1 and _is_monotone(t):  # the usual case
        return
    values: Any = t.cpu().double()
    _check_all_finite(values)
    step = values.diff(dim=-1)
    wrong = step * torch.sign(step[..., :1]) <= 0
    if not wrong.any():
        return
    where = wrong.nonzero()[0].tolist()
    row, i = values[tuple(where[:-1])], where[-1]
    before, after = row[i].item(), row[i + 1].item()
    sample = f"[{where[0] if rows is None else int(rows[where[0]])}]" if len(where) == 2 else ""
    todo = "Remove the repeated time." if before == after else "Sort the times."
    raise InvalidProblem(
        f"`t` must be strictly monotone, got t{sample}[{i + 1}]={after:g} after "
        f"t{sample}[{i}]={before:g}. {todo}"
    )


def _is_monotone(values: Tensor) -> bool:
    """Whether times [T] are finite and strictly monotone: NaN makes every comparison false."""
    if values.shape[0] <= _FEW_TIMES:
        numbers = cast("list[float]", values.tolist())
        compare = operator.lt if numbers[0] < numbers[-1] else operator.gt
        return all(map(compare, numbers, numbers[1:])) and math.isfinite(numbers[-1] - numbers[0])
    least, most = (float(x) for x in values.cpu().double().diff().aminmax())
    return (least > 0 or most < 0) and math.isfinite(most - least)


def _checked_params(params: Iterable[object] | None) -> tuple[Tensor, ...] | None:
    if params is None:
        return None
    if isinstance(params, Tensor) or not isinstance(params, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidProblem(
            f"`params` must be an iterable of tensors, got {type(params).__name__}. "
            "Write params=(theta,) or params=module.parameters()."
        )
    checked = tuple(params)
    for i, param in enumerate(checked):
        if not isinstance(param, Tensor):
            raise InvalidProblem(
                f"`params` must hold tensors, got {type(param).__name__} at index {i}. "
                "Pass values that need no gradient through `args=`."
            )
    return tuple(param for param in checked if isinstance(param, Tensor))
