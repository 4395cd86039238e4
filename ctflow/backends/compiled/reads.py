"""What `f` reads beside t and y: every tensor, and every plain value its Python depends on.

A program was made for certain values of Python's attributes, and takes tensors as inputs. Before
each solve the present values are compared with those: the tensors of the present are handed in,
and a changed attribute (a scale, train/eval, a replaced submodule) finds or makes another program.
"""

from __future__ import annotations

import functools
import types
import weakref
from collections import OrderedDict
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from operator import attrgetter, getitem, is_
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from ctflow.backends.field import Field
from ctflow.backends.places import Place, globals_read, names_used
from ctflow.errors import InvalidProblem, Unsupported
from ctflow.problem import ODEProblem
from ctflow.solution import Stats
from ctflow.state import flatten_args

__all__ = ["Reads", "check_unchanged", "note_counters", "read"]

_MOST = 20_000  # objects that are looked at
_PLAIN = (str, bytes, int, bool, complex, type(None), torch.dtype, torch.device, torch.Size)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_STANDARD = frozenset(vars(nn.Module()))
_LIBRARIES = frozenset({"torch", "numpy", "math", "builtins", "functools", "typing", "operator"})

Path = tuple[object, ...]

_COUNTERS: dict[object, set[Path]] = {}  # what an `f` changes by itself when it is called
_SEEN: OrderedDict[int, Reads] = OrderedDict()  # which keep their `f` alive
_MET: OrderedDict[int, weakref.ref[Any]] = OrderedDict()
_REMEMBERED = 64
_CONTENTS, _MODE = attrgetter("cell_contents"), attrgetter("training")


class _Key:
    """Many things that are compared as one, and hashed once."""

    def __init__(self, parts: tuple[object, ...]) -> None:
        self._parts = parts
        self._hash = hash(parts)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, _Key) and self._parts == other._parts)


class _Walk:
    """Everything in reach of one object, in a fixed order.

    Attributes:
        tensors: Each tensor once.
        places: Where each of them is kept.
        holders: Places of tuples with tensors in them.
        parts: What the Python of `f` can depend on; hashable.
        key: The same as one object, which is quick to look up.
        plain: Plain values by their path.
        modules: Each with its mode.
        sure: Whether `unchanged` sees every change.
    """

    def __init__(self, root: object) -> None:
        self.tensors: list[Tensor] = []
        self.places: list[list[Place]] = []
        self.holders: list[Place] = []
        self.parts: list[object] = []
        self.plain: dict[Path, object] = {}
        self.modules: list[tuple[nn.Module, bool]] = []
        self.alive: list[object] = []
        self.sure = True
        self._watch: list[tuple[Place, object]] = []
        self._sizes: list[tuple[Any, int]] = []
        self._index: dict[int, int] = {}
        self._seen: dict[int, int] = {}
        self._ignored = _COUNTERS.get(_kind(root), frozenset())
        self.visit(root, None, ())
        self.key = _Key(tuple(self.parts))
        # Each solve looks at all of it: in columns, which need no line of Python an entry.
        cells = [(place, value) for place, value in self._watch if place.is_cell]
        items = [(place, value) for place, value in self._watch if not place.is_cell]
        self._cells = [place.container for place, _ in cells]
        self._containers = [place.container for place, _ in items]
        self._keys = [place.key for place, _ in items]
        self._contents, self._values = [value for _, value in cells], [value for _, value in items]
        self._sized, self._lengths = [x for x, _ in self._sizes], [n for _, n in self._sizes]
        self._owners, self._modes = [x for x, _ in self.modules], [mode for _, mode in self.modules]

    def unchanged(self) -> bool:
        """Whether everything still is what it was, by identity."""
        if not self.sure or list(map(len, self._sized)) != self._lengths:
            return False
        try:
            return (
                all(map(is_, map(getitem, self._containers, self._keys), self._values))
                and all(map(is_, map(_CONTENTS, self._cells), self._contents))
                and all(map(is_, map(_MODE, self._owners), self._modes))
            )
        except (KeyError, IndexError, ValueError):
            return False

    def visit(self, value: object, place: Place | None, path: Path) -> None:
        """Note one value and all that it leads to."""
        if place is not None:
            self._watch.append((place, value))
        if isinstance(value, Tensor):
            self._tensor(value, place)
        elif isinstance(value, Stats):  # of an earlier solve, kept beside `f` by its owner
            self._plain(path, (type(None), None))
        elif isinstance(value, float):
            self._plain(path, (float, value.hex()))
        elif isinstance(value, _PLAIN):
            self._plain(path, (type(value), value))
        elif isinstance(value, type):
            self.parts.append(value)
        elif id(value) in self._seen:
            self.parts.append(("again", self._seen[id(value)]))
        else:
            self._seen[id(value)] = len(self._seen)
            self.alive.append(value)
            if len(self._seen) > _MOST:
                raise Unsupported(
                    "backend 'compiled' cannot tell what `f` depends on: it reaches more than "
                    f"{_MOST} objects. Keep data out of its attributes, or use backend='native'."
                )
            self._object(value, place, path)

    def _plain(self, path: Path, value: object) -> None:
        if path in self._ignored:
            self.parts.append("counter")
        else:
            self.plain[path] = value
            self.parts.append(value)

    def _tensor(self, x: Tensor, place: Place | None) -> None:
        index = self._index.get(id(x))
        if index is None:
            index = self._index[id(x)] = len(self.tensors)
            self.tensors.append(x)
            self.places.append([])
        if place is not None:
            self.places[index].append(place)
        self.parts.append(("tensor", index))

    def _object(self, value: Any, place: Place | None, path: Path) -> None:  # noqa: ANN401
        self.parts.append(type(value))
        if isinstance(value, nn.Module):
            self._module(value, path)
        elif isinstance(value, types.FunctionType):
            self._function(value, path)
        elif isinstance(value, types.MethodType):
            self.visit(value.__func__, None, (*path, "__func__"))
            self.visit(value.__self__, None, (*path, "__self__"))
        elif isinstance(value, functools.partial):
            partial = cast("functools.partial[Any]", value)
            self.visit(partial.func, None, (*path, "func"))
            self._items(partial.args, (*path, "args"))
            self._items(partial.keywords, (*path, "keywords"))
        elif isinstance(value, tuple | list | Mapping):
            before = len(self.tensors)
            self._items(cast("Any", value), path)
            if isinstance(value, tuple) and place is not None and len(self.tensors) > before:
                self.holders.append(place)
        elif isinstance(value, np.ndarray):
            self.sure = False
            array = cast("np.ndarray[Any, Any]", value)
            self.parts.append((array.shape, str(array.dtype), array.tobytes()))
        elif isinstance(value, types.ModuleType):
            self.parts.append(value.__name__)
        elif isinstance(attributes := getattr(value, "__dict__", None), dict):
            self._items(cast("dict[str, Any]", attributes), path)
            self._class(type(value), ("__call__",), path)
        elif isinstance(value, set | frozenset):
            self.sure = False
            self.parts.append(repr(cast("object", value)))
        else:
            self.parts.append(("id", id(value)))

    def _items(self, container: Any, path: Path) -> None:  # noqa: ANN401
        keys = list(container) if isinstance(container, Mapping) else range(len(container))
        self._sizes.append((container, len(container)))
        for key in keys:
            self.parts.append(key if isinstance(key, _PLAIN) else id(key))
            self.visit(container[key], Place(container, key), (*path, key))

    def _module(self, module: nn.Module, path: Path) -> None:
        if isinstance(module, torch.jit.ScriptModule):
            raise Unsupported(
                "backend 'compiled' cannot look into a module of torch.jit. Pass the one it was "
                "made from, or use backend='native'."
            )
        self.parts.append(module.training)
        self.modules.append((module, module.training))
        attributes = vars(module)
        for part in ("_parameters", "_buffers", "_modules", *_HOOKS):
            self._items(attributes[part], (*path, part))
        own = [key for key in attributes if key not in _STANDARD]
        self._sizes.append((attributes, len(attributes)))
        for key in own:
            self.parts.append(key)
            self.visit(attributes[key], Place(attributes, key), (*path, key))
        self._class(type(module), ("forward",), path)

    def _function(self, function: types.FunctionType, path: Path) -> None:
        self.parts.append(function.__code__)
        for i, cell in enumerate(function.__closure__ or ()):
            place = Place(cell, None)
            self.visit(place.get(), place, (*path, "closure", i))
        self._items(function.__defaults__ or (), (*path, "defaults"))
        self._items(function.__kwdefaults__ or {}, (*path, "kwdefaults"))
        self._globals(function, path)

    def _globals(self, function: types.FunctionType, path: Path) -> None:
        names = names_used(function.__code__)
        space = function.__globals__
        for name in globals_read(function.__code__):
            if name not in space:
                continue
            value = space[name]
            if isinstance(value, types.ModuleType):
                if value.__name__.partition(".")[0] not in _LIBRARIES:
                    self._of_module(value, names, path)
            elif not _is_of_library(value):
                self.visit(value, Place(space, name), (*path, "globals", name))

    def _of_module(self, module: types.ModuleType, names: Sequence[str], path: Path) -> None:
        """What `f` may read as `module.name`."""
        space = vars(module)
        for name in names:
            if name in space and isinstance(space[name], (*_PLAIN, float, Tensor)):
                where = (*path, "module", module.__name__, name)
                self.visit(space[name], Place(space, name), where)

    def _class(self, kind: type, starts: tuple[str, ...], path: Path) -> None:
        """Methods that a call may use, and constants of the class."""
        for base in kind.__mro__:
            if base.__module__.partition(".")[0] in _LIBRARIES:
                continue
            space = vars(base)
            todo, known = list(starts), set(starts)
            while todo:
                value = space.get(todo.pop())
                value = value.fget if isinstance(value, property) else value
                value = value.__func__ if isinstance(value, staticmethod | classmethod) else value
                if not isinstance(value, types.FunctionType):
                    continue
                self.visit(value, None, (*path, base.__name__, value.__name__))
                for name in names_used(value.__code__):
                    if name in known or name not in space:
                        continue
                    known.add(name)
                    todo.append(name)
                    if isinstance(space[name], (*_PLAIN, float)):
                        place = Place(space, name)
                        self.visit(space[name], place, (*path, base.__name__, name))


def _is_of_library(value: object) -> bool:
    """Functions and classes of torch and of Python itself: they do not change."""
    if isinstance(value, types.BuiltinFunctionType):
        return True
    if isinstance(value, type | types.FunctionType):
        return value.__module__.partition(".")[0] in {*_LIBRARIES, "ctflow"}
    return False


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
    _walk: _Walk
    _args: tuple[Any, ...]
    _rebuild: Callable[[Sequence[Any]], Any]
    _positions: tuple[int, ...]

    @contextmanager
    def replaced(self, field: Field, stand_ins: Sequence[Tensor]) -> Generator[None]:
        """Put other tensors in the places of `tensors`, and back afterwards."""
        walk = self._walk
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
    positions = tuple(i for i, x in enumerate(leaves) if isinstance(x, Tensor))
    rest = _Walk([None if isinstance(x, Tensor) else x for x in leaves])
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


def _of_f(f: object) -> Reads:
    """What `f` holds, without `args`; from its third solve on looked through where it changed."""
    known = _SEEN.get(id(f))
    if known is not None and known._walk.unchanged():  # pyright: ignore[reportPrivateUsage]
        return known
    walk = _Walk(f)
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
    old, new = before._walk.plain, _Walk(f).plain  # pyright: ignore[reportPrivateUsage]
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
    old, new = walk.plain, _Walk(f).plain
    changed = [p for p in old.keys() | new.keys() if p not in counters and old.get(p) != new.get(p)]
    if changed or any(module.training is not mode for module, mode in walk.modules):
        where = ".".join(str(step) for step in changed[0]) if changed else "train/eval"
        raise InvalidProblem(
            f"`f` must stay as it is between a solve and its backward pass, got another {where}. "
            "Change it after backward()."
        )
