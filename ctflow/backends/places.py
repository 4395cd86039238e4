"""Where an object keeps what it reads: attributes, closures, defaults, globals, containers."""

from __future__ import annotations

import dis
import functools
import types
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

__all__ = ["Place", "globals_read", "names_used", "places_in", "tensors_in"]

_LONGEST = 1_000  # entries of a container that are looked at; a data set is not a parameter
_MOST = 50_000  # objects that are looked at
_MODULE_PARTS = frozenset(vars(nn.Module()))
_NOTHING = object()


class Place(NamedTuple):
    """One place where a tensor is kept: a dict or list with a key, or a closure's cell."""

    container: Any
    key: Any

    @property
    def is_cell(self) -> bool:
        """Whether it is a closure's, which has no key."""
        return isinstance(self.container, types.CellType)

    def get(self) -> object:
        """What is there now; `_NOTHING` if that was removed."""
        try:
            return self.container.cell_contents if self.is_cell else self.container[self.key]
        except (KeyError, IndexError, ValueError):
            return _NOTHING

    def put(self, value: object) -> None:
        """Put something there, past any property or setter; `_NOTHING` removes it."""
        if self.is_cell and value is _NOTHING:
            del self.container.cell_contents
        elif self.is_cell:
            self.container.cell_contents = value
        elif value is _NOTHING:
            del self.container[self.key]
        else:
            self.container[self.key] = value

    @property
    def settable(self) -> bool:
        """Whether `put` works: not in a tuple, nor beyond the end of a list that was shortened."""
        if isinstance(self.container, list):
            return self.key < len(cast("list[object]", self.container))
        return not isinstance(self.container, tuple | frozenset)


def tensors_in(*roots: object) -> Iterator[tuple[Tensor, Place]]:
    """Every tensor in reach of the roots by attribute, closure, default, global or item."""
    seen: set[int] = set()
    stack: list[object] = list(roots)
    while stack and len(seen) < _MOST:
        owner = stack.pop()
        if id(owner) in seen:
            continue
        seen.add(id(owner))
        for place in places_in(owner):
            value = place.get()
            if isinstance(value, Tensor):
                yield value, place
            elif not isinstance(value, _DULL):
                stack.append(value)


_DULL = (
    str,
    bytes,
    int,
    float,
    complex,
    bool,
    type(None),
    type,
    types.ModuleType,
    torch.dtype,
    torch.device,
    torch.Size,
    torch.Generator,
)


def places_in(owner: object) -> Iterator[Place]:
    """Places of an object that may hold a tensor, or something that holds one."""
    if isinstance(owner, nn.Module):
        attributes = vars(owner)
        for part in ("_parameters", "_buffers", "_modules"):
            yield from _items(attributes.get(part, {}))  # torch.jit keeps them out of Python
        yield from (Place(attributes, key) for key in list(attributes) if key not in _MODULE_PARTS)
    elif isinstance(owner, types.FunctionType):
        yield from (Place(cell, None) for cell in owner.__closure__ or ())
        yield from _items(owner.__defaults__ or ())
        yield from _items(owner.__kwdefaults__ or {})
        names = [name for name in globals_read(owner.__code__) if name in owner.__globals__]
        yield from (Place(owner.__globals__, name) for name in names)
    elif isinstance(owner, types.MethodType):
        yield from _items((owner.__self__, owner.__func__))
    elif isinstance(owner, functools.partial):
        partial = cast("functools.partial[Any]", owner)
        yield from _items((partial.func,))
        yield from _items(partial.args)
        yield from _items(partial.keywords)
    elif isinstance(owner, Mapping | list | tuple):
        yield from _items(cast("Any", owner))
    elif isinstance(attributes := getattr(owner, "__dict__", None), dict):
        yield from _items(cast("dict[str, Any]", attributes))
        call = vars(type(owner)).get("__call__")
        if isinstance(call, types.FunctionType):
            yield from _items((call,))


def _items(container: Any) -> Iterator[Place]:  # noqa: ANN401
    if len(container) > _LONGEST:
        return
    keys = list(container) if isinstance(container, Mapping) else range(len(container))
    for key in keys:
        yield Place(container, key)


@functools.lru_cache(maxsize=1024)
def names_used(code: types.CodeType) -> tuple[str, ...]:
    """Names of globals and attributes in a function and the functions inside it."""
    inner = (const for const in code.co_consts if isinstance(const, types.CodeType))
    return (*code.co_names, *(name for other in inner for name in names_used(other)))


@functools.lru_cache(maxsize=1024)
def globals_read(code: types.CodeType) -> tuple[str, ...]:
    """Names that a function and the functions inside it look up as globals."""
    own = (x.argval for x in dis.get_instructions(code) if x.opname in ("LOAD_GLOBAL", "LOAD_NAME"))
    inner = (const for const in code.co_consts if isinstance(const, types.CodeType))
    return tuple(dict.fromkeys((*own, *(name for other in inner for name in globals_read(other)))))
