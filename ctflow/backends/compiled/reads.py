"""What `f` reads beside t and y: every tensor, and every plain value its Python depends on.

A program was made for certain values of Python's attributes, and takes tensors as inputs. Before
each solve the present values are compared with those: the tensors of the present are handed in,
and a changed attribute (a scale, train/eval, a replaced submodule) finds or makes another program.
"""

from __future__ import annotations

import types
import weakref
from collections import OrderedDict
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from ctflow.backends.compiled.walk import Path, Walk, refuse_sparse
from ctflow.backends.field import Field
from ctflow.backends.places import Place
from ctflow.errors import InvalidProblem, Unsupported
from ctflow.problem import ODEProblem
from ctflow.state import flatten_args

__all__ = ["Reads", "check_unchanged", "note_counters", "read"]

_COUNTERS: dict[object, set[Path]] = {}  # what an `f` changes by itself when it is called
_SEEN: OrderedDict[int, Reads] = OrderedDict()  # which keep their `f` alive
_MET: OrderedDict[int, weakref.ref[Any]] = OrderedDict()
_REMEMBERED = 64


def _kind(f: object) -> object:
    """What instances of the same dynamics have in common."""
    if isinstance(f, types.MethodType):
        return _kind(f.__func__)
    return f.__code__ if isinstance(f, types.FunctionType) else type(f)


@dataclass(frozen=True, eq=False)
class Reads:
    """What one solve's `f` and `args` hold.

    Attributes:
        key: Everything a program for them depends on but the shapes of the tensors; hashable.
        tensors: The tensors, to be handed to the program.
    """

    key: tuple[object, ...]
    tensors: tuple[Tensor, ...]
    _walk: Walk
    _args: tuple[Any, ...]
    _rebuild: Callable[[Sequence[Any]], Any]
    _positions: tuple[int, ...]

    @contextmanager
    def replaced(self, field: Field, stand_ins: Sequence[Tensor]) -> Generator[None]:
        """Put other tensors in the places of `tensors`, and back afterwards.

        A complex one may be given by its real and imaginary part.
        """
        walk = self._walk
        stand_ins = [
            torch.view_as_complex(s) if x.is_complex() and not s.is_complex() else s
            for x, s in zip(self.tensors, stand_ins, strict=False)
        ]
        new = {id(x): s for x, s in zip(walk.tensors, stand_ins, strict=False)}
        args, undo = field.args, list[tuple[Place, object]]()
        leaves = list(self._args)
        for position, stand_in in zip(
            self._positions, stand_ins[len(walk.tensors) :], strict=False
        ):
            leaves[position] = stand_in
        try:
            field.args = self._rebuild(leaves)
            for holder in walk.holders:
                if holder.settable:
                    before = holder.get()
                    holder.put(_exchanged(before, new))
                    undo.append((holder, before))
            for tensor, places in zip(walk.tensors, walk.places, strict=True):
                for place in places:
                    if place.settable and place.get() is tensor:
                        place.put(new[id(tensor)])
                        undo.append((place, tensor))
            yield
        finally:
            field.args = args
            for place, before in reversed(undo):
                place.put(before)


def _exchanged(value: Any, new: Mapping[int, Tensor]) -> Any:  # noqa: ANN401
    """A tuple with other tensors in it."""
    if isinstance(value, Tensor):
        return new.get(id(value), value)
    if not isinstance(value, tuple):
        return value
    items = [_exchanged(item, new) for item in cast("tuple[Any, ...]", value)]
    kind: Any = type(cast("object", value))
    return tuple(items) if kind is tuple else kind(*items)


def read(problem: ODEProblem) -> Reads:
    """Look at what `f` and `args` hold now.

    Raises:
        Unsupported: If there is too much to look at.

    Cost:
        Some microseconds for the same `f` as before with nothing changed, a hundred else.
    """
    found = _of_f(problem.f)
    if problem.args is None:
        return found
    walk = found._walk  # pyright: ignore[reportPrivateUsage]
    leaves, rebuild = flatten_args(problem.args)
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            refuse_sparse(leaf)
    positions = tuple(i for i, x in enumerate(leaves) if isinstance(x, Tensor))
    rest = Walk([None if isinstance(x, Tensor) else x for x in leaves])
    if rest.tensors:
        raise Unsupported(
            "backend 'compiled' cannot find tensors inside objects in `args`, got "
            f"{len(rest.tensors)}. Pass the tensors themselves, in tuples, lists and dicts."
        )
    key = (walk.key, (str(_structure(problem.args)), positions, *rest.parts))
    tensors = (*walk.tensors, *(leaves[i] for i in positions))
    return Reads(key, tensors, walk, tuple(leaves), rebuild, positions)


def _structure(args: object) -> object:
    return torch.utils._pytree.tree_structure(cast("Any", args))  # pyright: ignore


def _walk(f: object) -> Walk:
    """What `f` reaches, without what it counts with."""
    return Walk(f, _COUNTERS.get(_kind(f), frozenset()))


def _of_f(f: object) -> Reads:
    """What `f` holds, without `args`; from its third solve on looked through where it changed."""
    known = _SEEN.get(id(f))
    if known is not None and known._walk.unchanged():  # pyright: ignore[reportPrivateUsage]
        return known
    walk = _walk(f)
    leaves, rebuild = flatten_args(None)
    found = Reads((walk.key, ()), tuple(walk.tensors), walk, tuple(leaves), rebuild, ())
    met = _MET.get(id(f))
    if known is not None or (met is not None and met() is f):
        _remember(_SEEN, id(f), found)
        return found
    with suppress(TypeError):  # it may be one of many, for one solve each, with a batch in it
        _remember(_MET, id(f), weakref.ref(cast("Any", f)))
    return found


def _remember(table: OrderedDict[int, Any], key: int, value: object) -> None:
    table[key] = value
    table.move_to_end(key)
    while len(table) > _REMEMBERED:
        table.popitem(last=False)


def note_counters(f: object, before: Reads) -> bool:
    """Find out which plain values `f` changes by itself, and leave them out of keys from now on.

    Args:
        f: The dynamics, that has been called since.
        before: What it held before.

    Returns:
        Whether there are any.

    Raises:
        Unsupported: If it changed more than plain values.
    """
    _SEEN.pop(id(f), None)
    old, new = before._walk.plain, _walk(f).plain  # pyright: ignore[reportPrivateUsage]
    counters = _COUNTERS.get(_kind(f), set())
    changed = {path for path in old.keys() & new.keys() if old[path] != new[path]}
    lost = [path for path in old.keys() ^ new.keys() if path not in counters]
    if lost:
        where = ".".join(str(step) for step in lost[0])
        raise Unsupported(
            f"backend 'compiled' cannot follow an `f` that changes what it holds, got {where!r} "
            "added or removed by a call. Keep logs out of `f`, or use backend='native'."
        )
    if changed:
        _COUNTERS.setdefault(_kind(f), set()).update(changed)
    return bool(changed)


def check_unchanged(f: object, before: Reads) -> None:
    """Refuse to follow an `f` that is not what it was when its solve began.

    Raises:
        InvalidProblem: If a plain value, or a module's mode, has changed since.
    """
    counters = _COUNTERS.get(_kind(f), frozenset())
    walk = before._walk  # pyright: ignore[reportPrivateUsage]
    old, new = walk.plain, _walk(f).plain
    changed = [p for p in old.keys() | new.keys() if p not in counters and old.get(p) != new.get(p)]
    if changed or any(module.training is not mode for module, mode in walk.modules):
        where = ".".join(str(step) for step in changed[0]) if changed else "train/eval"
        raise InvalidProblem(
            f"`f` must stay as it is between a solve and its backward pass, got another {where}. "
            "Change it after backward()."
        )
