"""How much tensor storage is alive: every allocation seen, every release noticed."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

__all__ = ["LiveStorage", "peak_bytes", "without_collector"]


class LiveStorage(TorchDispatchMode):
    """A context that adds up the storage of the tensors that operations inside it made.

    Every operator of torch passes through it, in the forward and in the backward pass. A storage
    counts from the operator that made it until its last owner lets go of it, be that a variable, a
    view, or a node of autograd's graph. What existed before, such as parameters, does not count,
    nor does what an operator allocates and frees within itself.

    Attributes:
        live: Bytes alive now.
        peak: Most bytes that were alive at once.
    """

    def __init__(self) -> None:
        """Nothing is alive."""
        super().__init__()
        self.live = 0
        self.peak = 0
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Run an operator and look at what it took and gave."""
        del types
        named = kwargs or {}
        for storage in _storages((args, named)):  # of before: an alias of it is no allocation
            self._see(storage, 0)
        result = func(*args, **named)
        for storage in _storages(result):
            self._see(storage, storage.nbytes())
        return result

    def _see(self, storage: torch.UntypedStorage, n_bytes: int) -> None:
        key = storage._cdata
        if key in self._known:
            return

        def released(_: object) -> None:
            del self._known[key]
            self.live -= n_bytes

        self._known[key] = weakref.ref(storage, released)
        self.live += n_bytes
        self.peak = max(self.peak, self.live)


def peak_bytes(run: Callable[[], Sequence[Tensor]]) -> int:
    """Peak storage of a call, less that of the tensors it returns; no garbage collection helps it.

    Args:
        run: What to measure; returns tensors that would be needed in any case.
    """
    with without_collector(), LiveStorage() as storage:
        kept = run()
    return storage.peak - sum(x.untyped_storage().nbytes() for x in kept)


@contextmanager
def without_collector() -> Iterator[None]:
    """Leave reference cycles alone meanwhile, so that a tensor caught in one stays alive."""
    gc.collect()
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _storages(tree: object) -> Iterator[torch.UntypedStorage]:
    return (x.untyped_storage() for x in tree_iter(tree) if isinstance(x, Tensor))
