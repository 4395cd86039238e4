"""How much tensor storage a call keeps alive at its peak."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ctflow.state import leaves_of

__all__ = ["peak_bytes"]


def peak_bytes(run: Callable[[], object]) -> int:
    """Most bytes of tensor storage alive at once, of what operators inside the call made.

    What an operator allocates and frees within itself does not count.
    """
    with _Alive() as alive:
        run()
    return alive.peak


class _Alive(TorchDispatchMode):
    """Sees every operator, and adds up the storages that came and have not gone."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._live = 0
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Run an operator and look at what it took and gave."""
        named = kwargs or {}
        for storage in _storages((args, named)):  # of before: an alias of it is no allocation
            self._see(storage, 0)
        result = func(*args, **named)
        for storage in _storages(result):
            self._see(storage, storage.nbytes())
        return result

    def _see(self, storage: torch.UntypedStorage, n_bytes: int) -> None:
        key = storage._cdata  # pyright: ignore
        if key in self._known:
            return

        def released(_: object) -> None:
            del self._known[key]
            self._live -= n_bytes

        self._known[key] = weakref.ref(storage, released)
        self._live += n_bytes
        self.peak = max(self.peak, self._live)


def _storages(tree: object) -> Iterator[torch.UntypedStorage]:
    return (x.untyped_storage() for x in leaves_of(tree) if isinstance(x, Tensor))
