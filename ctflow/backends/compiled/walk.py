"""Everything that one object reaches, as a key: two of a key are alike for whoever follows them.

Names are what leads from code to values. Each name that any reached code uses is looked up in every
class and module that is reached, so a constant of a helper's class, or the function that a module
has now, counts; what no name leads to does not.
"""

from __future__ import annotations

import functools
import pickle
import sys
import sysconfig
import types
import weakref
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from operator import attrgetter, getitem, is_
from pathlib import PurePath
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from ctflow.backends.places import Place, globals_read, names_used
from ctflow.errors import Unsupported
from ctflow.solution import Stats

__all__ = ["Path", "Walk", "refuse_sparse"]

_MOST = 20_000  # objects that are looked at
_PLAIN = (str, bytes, int, bool, complex, type(None), torch.dtype, torch.device, torch.Size)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_STANDARD = frozenset(vars(nn.Module()))
_LIBRARIES = frozenset({"torch", "numpy", "math", "builtins", "functools", "typing", "operator"})

Path = tuple[object, ...]

_CONTENTS, _MODE = attrgetter("cell_contents"), attrgetter("training")
_CODE = attrgetter("__code__")
_PACKAGES = tuple({sysconfig.get_paths()[name] for name in ("purelib", "platlib")})
_INSTALLED = (sysconfig.get_paths()["stdlib"], *_PACKAGES)
# What runs without being named: operators, calls, and the parts of an autograd.Function.
_UNNAMED = frozenset({"forward", "backward", "setup_context", "jvp", "vmap"})
_NOT_BY_F = frozenset(
    {"__init__", "__new__", "__post_init__", "__init_subclass__", "__set_name__", "__del__",
     "__class_getitem__", "__repr__", "__str__", "__format__", "__sizeof__", "__dir__",
     "__reduce__", "__reduce_ex__", "__getstate__", "__setstate__", "__copy__", "__deepcopy__"}
)  # fmt: skip


class _Same:
    """One object, by identity: nothing made later at its address is taken for it."""

    def __init__(self, value: object) -> None:
        try:
            self._get: Callable[[], object] = weakref.ref(value)
        except TypeError:
            self._get = lambda: value
        self._hash = id(value)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Same):
            return False
        value = self._get()
        return value is not None and value is other._get()


class _Key:
    """Many things that are compared as one, and hashed once."""

    def __init__(self, parts: tuple[object, ...]) -> None:
        self._parts = parts
        self._hash = hash(parts)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, _Key) and self._parts == other._parts)


class Walk:
    """Everything in reach of one object, in a fixed order.

    Args:
        root: The object.
        ignored: Paths of plain values that it changes by itself.

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

    def __init__(self, root: object, ignored: Collection[Path] = ()) -> None:
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
        self._names: dict[str, None] = {}
        self._classes: dict[type, Path] = {}
        self._spaces: list[tuple[types.ModuleType, Path]] = []
        self._searched: set[tuple[type, str]] = set()
        self._entered: set[tuple[int, str]] = set()
        self._functions: list[types.FunctionType] = []
        self._ignored = ignored
        self.visit(root, None, ())
        self._settle()
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
        self._codes = [function.__code__ for function in self._functions]

    def unchanged(self) -> bool:
        """Whether everything still is what it was, by identity."""
        if not self.sure or list(map(len, self._sized)) != self._lengths:
            return False
        try:
            return (
                all(map(is_, map(getitem, self._containers, self._keys), self._values))
                and all(map(is_, map(_CONTENTS, self._cells), self._contents))
                and all(map(is_, map(_MODE, self._owners), self._modes))
                and all(map(is_, map(_CODE, self._functions), self._codes))
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
            self._classes.setdefault(value, path)
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
        refuse_sparse(x)
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
            if _is_of_library(value, _LIBRARIES) and value.__closure__ is None:
                self.parts.append(value)
            else:
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
            if type(cast("object", value)) not in (tuple, list, dict):
                self._attributes(value, path)
        elif isinstance(value, np.ndarray):
            self.sure = False
            array = cast("np.ndarray[Any, Any]", value)
            self.parts.append((array.shape, str(array.dtype), array.tobytes()))
        elif isinstance(value, types.ModuleType):
            self.parts.append(value.__name__)
            if value.__name__.partition(".")[0] not in _LIBRARIES:
                self._spaces.append((value, path))
        elif isinstance(value, set | frozenset):
            self.sure = False
            self.parts.append(repr(cast("object", value)))
        elif isinstance(value, PurePath):
            self.parts.append(str(value))
        elif isinstance(value, np.generic):
            self.parts.append((value.dtype.str, value.tobytes()))
        elif isinstance(value, types.BuiltinFunctionType | np.ufunc):
            self.parts.append(_Same(value))
        elif isinstance(value, deque):
            self.sure = False
            for i, item in enumerate(cast("deque[Any]", value)):
                self.visit(item, None, (*path, i))
        elif not self._attributes(value, path):
            self._opaque(value)

    def _attributes(self, value: Any, path: Path) -> bool:  # noqa: ANN401
        """Visit what an object keeps by name; whether it keeps anything so."""
        attributes = getattr(value, "__dict__", None)
        slots = [name for base in type(value).__mro__ for name in _slots(base)]
        if not (isinstance(attributes, dict) or slots):
            return False
        self._classes.setdefault(type(value), path)
        if isinstance(attributes, dict):
            self._items(cast("dict[str, Any]", attributes), path)
        for name in slots:
            self.sure = False
            self.parts.append(name)
            self.visit(getattr(value, name, None), None, (*path, name))
        return True

    def _opaque(self, value: object) -> None:
        """Something that is not written in Python.

        Python's own by what it would be pickled as; what belongs to a package, and what goes on
        by itself, as an iterator and a generator of random numbers do, by which object it is.
        """
        root = type(value).__module__.partition(".")[0]
        if isinstance(value, Iterator) or root not in sys.stdlib_module_names:
            self.parts.append(_Same(value))
            return
        self.sure = False
        try:
            self.parts.append(pickle.dumps(value))
        except Exception:  # whatever its own code raises
            self.parts.append(_Same(value))

    def _items(self, container: Any, path: Path) -> None:  # noqa: ANN401
        keys = list(container) if isinstance(container, Mapping) else range(len(container))
        self._sizes.append((container, len(container)))
        for key in keys:
            self.parts.append(key if isinstance(key, (*_PLAIN, float)) else _Same(key))
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
        self._classes.setdefault(type(module), path)

    def _function(self, function: types.FunctionType, path: Path) -> None:
        self.parts.append(function.__code__)
        self._functions.append(function)
        self._names.update(dict.fromkeys(names_used(function.__code__)))
        for i, cell in enumerate(function.__closure__ or ()):
            place = Place(cell, None)
            self.visit(place.get(), place, (*path, "closure", i))
        self._items(function.__defaults__ or (), (*path, "defaults"))
        self._items(function.__kwdefaults__ or {}, (*path, "kwdefaults"))
        self._items(vars(function), (*path, "attributes"))
        self._globals(function, path)

    def _globals(self, function: types.FunctionType, path: Path) -> None:
        names = names_used(function.__code__)
        space = function.__globals__
        for name in globals_read(function.__code__):
            if name not in space:
                continue
            value = space[name]
            self._named(value, Place(space, name), names, (*path, "globals", name))

    def _named(self, value: object, place: Place, names: Sequence[str], path: Path) -> None:
        """What a name of a module stands for."""
        if isinstance(value, types.ModuleType):
            self._watch.append((place, value))
            if value.__name__.partition(".")[0] not in _LIBRARIES:
                self._of_module(value, names, path)
        elif _is_of_library(value):
            self._watch.append((place, value))
            self.parts.append(value)
        else:
            self.visit(value, place, path)

    def _of_module(self, module: types.ModuleType, names: Sequence[str], path: Path) -> None:
        """What `f` may read as `module.name`."""
        space, installed = vars(module), _is_installed(module)
        for name in names:
            if name not in space or (id(module), name) in self._entered:
                continue
            self._entered.add((id(module), name))
            value, place = space[name], Place(space, name)
            if installed and not isinstance(value, (*_PLAIN, float, Tensor)):
                self._watch.append((place, value))
                self.parts.append(_Same(value))
            else:
                self._named(value, place, names, (*path, "module", module.__name__, name))

    def _settle(self) -> None:
        """Look up in every class and module met each name met, until there is nothing new."""
        before = (-1, -1)
        while before != (before := (len(self._names), len(self._classes))):
            for module, path in list(self._spaces):
                self._of_module(module, tuple(self._names), path)
            for kind, path in list(self._classes.items()):
                for base in kind.__mro__:
                    root = base.__module__.partition(".")[0]
                    if root not in _LIBRARIES and not _is_pythons(base.__module__):
                        self._class(base, path)

    def _class(self, base: type, path: Path) -> None:
        """Methods that a call may use, and constants of the class."""
        space = vars(base)
        for name, kept in list(space.items()):
            unnamed = name in _UNNAMED or (name[:2] == "__" and isinstance(kept, _METHODS))
            if (base, name) in self._searched or not (name in self._names or unnamed):
                continue
            self._searched.add((base, name))
            if name in _NOT_BY_F:
                continue
            value = _unwrapped(kept)
            where = (*path, base.__name__, name)
            if isinstance(value, types.FunctionType):
                self._watch.append((Place(space, name), kept))
                self.visit(value, None, where)
            elif isinstance(value, Tensor):
                self.visit(value, None, where)
            elif not isinstance(value, _DESCRIPTORS):
                self._named(value, Place(space, name), (), where)


_METHODS = (types.FunctionType, staticmethod, classmethod, property)
_DESCRIPTORS = (
    types.MemberDescriptorType, types.GetSetDescriptorType, types.WrapperDescriptorType,
    types.MethodDescriptorType, types.ClassMethodDescriptorType,
)  # fmt: skip


def _unwrapped(value: object) -> object:
    """The function of a property or of another kind of method."""
    if isinstance(value, property):
        return value.fget
    if isinstance(value, functools.cached_property):
        return cast("functools.cached_property[Any]", value).func
    if isinstance(value, staticmethod | classmethod):
        return cast("staticmethod[..., Any]", value).__func__
    return value


def _slots(base: type) -> tuple[str, ...]:
    """Names of attributes that a class keeps outside of `__dict__`."""
    own = vars(base).get("__slots__", ())
    names = (own,) if isinstance(own, str) else tuple(own)
    hidden = f"_{base.__name__.lstrip('_')}"
    return tuple(
        hidden + name if name[:2] == "__" and name[-2:] != "__" else name
        for name in names
        if name not in ("__dict__", "__weakref__")
    )


def _is_installed(module: types.ModuleType) -> bool:
    """Whether a module is Python's own or a package's, which does not change."""
    file = getattr(module, "__file__", None)
    return file.startswith(_INSTALLED) if file else module.__name__ in sys.builtin_module_names


@functools.lru_cache(maxsize=1024)
def _is_pythons(name: str) -> bool:
    """Whether a module is Python's own: by where it lies, for a user's may have the same name."""
    module = sys.modules.get(name)
    if module is None or not _is_installed(module):
        return False
    return not (getattr(module, "__file__", None) or "").startswith(_PACKAGES)


def _is_of_library(value: object, libraries: frozenset[str] = _LIBRARIES | {"ctflow"}) -> bool:
    """Functions and classes of torch and of Python itself: they do not change."""
    if isinstance(value, types.BuiltinFunctionType):
        return True
    if isinstance(value, type | types.FunctionType):
        return (value.__module__ or "").partition(".")[0] in libraries
    return False


def refuse_sparse(x: Tensor) -> None:
    """Programs take dense tensors.

    Raises:
        Unsupported: If it is not one.
    """
    if x.layout != torch.strided:
        raise Unsupported(
            f"backend 'compiled' takes dense tensors, and `f` reads one of {x.layout}. Use "
            "x.to_dense(), or backend='native'."
        )
