"""How much tensor storage is alive: every allocation seen, every release noticed."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ctflow.state import leaves_of

__all__ = ["LiveStorage"]


class LiveStorage(TorchDispatchMode):
    """A context that adds up the storage of the tensors that operations inside it made.

    Every operator of torch passes through it, in the forward and in the backward pass. A storage
    counts from the operator that made it until its last owner lets go of it, be that a variable, a
    view, or a node of autograd's graph. What existed before, such as parameters, does not count,
    nor does what an operator allocates and frees within itself.

    Attributes:
        live: Bytes alive now.
        peak: Most bytes that were alive at once.

    Example:
        >>> x = torch.ones(100, dtype=torch.float64)
        >>> with LiveStorage() as storage:
        ...     y = (2 * x).sum()
        >>> storage.live, storage.peak
        (8, 808)
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
        key = storage._cdata  # pyright: ignore
        if key in self._known:
            return

        def released(_: object) -> None:
            del self._known[key]
            self.live -= n_bytes

        self._known[key] = weakref.ref(storage, released)
        self.live += n_bytes
        self.peak = max(self.peak, self.live)


def _storages(tree: object) -> Iterator[torch.UntypedStorage]:
    return (x.untyped_storage() for x in leaves_of(tree) if isinstance(x, Tensor))
