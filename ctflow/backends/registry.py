"""Backends by name: "module:attr" strings that import nothing until they are asked for."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from ctflow.backends.protocol import Backend
from ctflow.errors import BackendUnavailable, InvalidProblem

__all__ = ["available", "get", "names", "register"]

GROUP = "ctflow.backends"
"""Entry-point group under which a package of yours announces a backend."""

_BUILT_IN = {
    "native": "ctflow.backends.native.backend:NativeBackend",
    "compiled": "ctflow.backends.compiled.backend:CompiledBackend",
    "torchdiffeq": "ctflow.backends.torchdiffeq:TorchdiffeqBackend",
    "scipy": "ctflow.backends.scipy:ScipyBackend",
}
_registered: dict[str, str] = {}
_made: dict[str, Backend] = {}


def register(name: str, target: str) -> None:
    """Make a backend known under a name, for this process.

    A package does better to announce it in its metadata (entry-point group "ctflow.backends").

    Args:
        name: What users will write in `backend=`.
        target: "module:attr"; `attr` is a Backend class without required arguments, or an object.

    Raises:
        InvalidProblem: If the name is a built-in one, or the target has no colon.
    """
    if name in _BUILT_IN:
        raise InvalidProblem(f"`name` must be new, got the built-in {name!r}. Choose another.")
    module, colon, attribute = target.partition(":")
    if not (name and module and colon and attribute):
        raise InvalidProblem(
            f"`target` must read 'module:attr', got {target!r}. Name the class in its module."
        )
    _registered[name] = target
    _made.pop(name, None)


def names() -> tuple[str, ...]:
    """Every known name, built-in first, whether or not its library is installed."""
    found = (point.name for point in entry_points(group=GROUP))
    return tuple(dict.fromkeys([*_BUILT_IN, *_registered, *found]))


def available() -> tuple[str, ...]:
    """Names of the backends that can be imported here.

    Cost:
        Imports the library behind every known backend.

    Example:
        >>> "native" in available()
        True
    """
    return tuple(name for name in names() if _imports(name))


def get(backend: str | Backend) -> Backend:
    """The backend of this name; an object is itself.

    Raises:
        BackendUnavailable: If the name is unknown, or its library is missing or broken.
        InvalidProblem: If the argument is neither a name nor a backend.
    """
    if not isinstance(backend, str):
        if isinstance(backend, type) or not isinstance(backend, Backend):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidProblem(
                f"`backend` must be a name or a backend object, got {backend!r}. "
                "A backend has name, features, refuse and solve; pass an instance, not the class."
            )
        return backend
    if backend not in _made:
        _made[backend] = _load(backend)
    return _made[backend]


def _imports(name: str) -> bool:
    try:
        get(name)
    except BackendUnavailable:
        return False
    return True


def _load(name: str) -> Backend:
    target = _BUILT_IN.get(name) or _registered.get(name) or _announced(name)
    if target is None:
        raise BackendUnavailable(
            f"no backend is called {name!r}; known here: {', '.join(map(repr, names()))}. "
            f"Check the spelling, or install the package that announces it in {GROUP!r}."
        )
    module, _, attribute = target.partition(":")
    try:
        found: Any = getattr(import_module(module), attribute)
        made = found() if isinstance(found, type) else found
    except BackendUnavailable:
        raise
    except Exception as error:  # a plug-in may fail in any way; it must not break the others
        raise BackendUnavailable(
            f"backend {name!r} cannot be loaded from {target!r}: {type(error).__name__}: {error}. "
            f"Install or repair the package behind it; others known: "
            f"{', '.join(repr(other) for other in names() if other != name)}."
        ) from error
    if not isinstance(made, Backend):
        raise BackendUnavailable(
            f"backend {name!r} from {target!r} is no backend: {type(made).__name__} lacks name, "
            "features, refuse or solve. Implement ctflow.backends.Backend."
        )
    return made


def _announced(name: str) -> str | None:
    return next((p.value for p in entry_points(group=GROUP) if p.name == name), None)
