"""User state (a tensor, or tensors in tuples, lists and dicts) as one flat real tensor [B, N]."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, TypeAlias, TypeGuard, cast

import torch
from torch import Tensor
from torch.utils import _pytree as pytree  # pyright: ignore[reportPrivateUsage]

from ctflow.errors import InvalidProblem

__all__ = [
    "Layout",
    "State",
    "as_real",
    "expand_time",
    "flatten_args",
    "leaves_of",
    "map_leaves",
    "widest",
]

State: TypeAlias = "Tensor | tuple[State, ...] | list[State] | dict[str, State]"
"""What can be integrated: tensors of one dtype and device, bare or in tuples, lists and dicts."""

_WITHOUT_FLOAT64 = frozenset({"mps"})  # types of devices


def widest(device: torch.device) -> torch.dtype:
    """The widest real dtype that a device has, which times have there: float64, on MPS float32.

    Example:
        >>> import torch
        >>> widest(torch.device("cpu"))
        torch.float64
    """
    return torch.float32 if device.type in _WITHOUT_FLOAT64 else torch.float64


def expand_time(t: Tensor, leaf: Tensor) -> Tensor:
    """Reshape the time that `f` received so that it broadcasts against another leaf of the state.

    Under shared steps `t` is 0-dim and comes back as it is. Under per-sample steps `t` is
    [B, 1, ..., 1] with the rank of the state's first leaf, and comes back with the rank of `leaf`.

    Args:
        t: Time as `f` receives it: 0-dim, or [B, 1, ..., 1].
        leaf: Any leaf of the state.

    Returns:
        0-dim, or [B, 1, ..., 1] with `leaf.dim()` dimensions.

    Example:
        >>> import torch
        >>> expand_time(torch.zeros(5, 1), torch.zeros(5, 3, 8, 8)).shape
        torch.Size([5, 1, 1, 1])
        >>> expand_time(torch.tensor(0.5), torch.zeros(5, 3)).shape
        torch.Size([])
    """
    if t.dim() == 0:
        return t
    return t.reshape(t.shape[:1] + (1,) * (leaf.dim() - 1))


def leaves_of(tree: object) -> list[Any]:
    """Leaves of a nested tuple, list or dict, in torch's pytree order."""
    if isinstance(tree, Tensor):
        return [tree]
    return list(tree) if _is_row(tree) else pytree.tree_leaves(cast("Any", tree))


def map_leaves(function: Callable[[Any], Any], tree: Any) -> Any:  # noqa: ANN401
    """The same structure with `function` applied to each leaf."""
    return function(tree) if isinstance(tree, Tensor) else pytree.tree_map(function, tree)


def flatten_args(tree: object) -> tuple[list[Any], Callable[[Sequence[Any]], Any]]:
    """Leaves of `tree`, and the function that puts a list of as many leaves back in its shape."""
    leaves, treespec = _flatten(tree)
    return leaves, lambda new: pytree.tree_unflatten(list(new), treespec)


_LONE = pytree.tree_flatten(0)[1]


def _is_row(tree: object) -> TypeGuard[tuple[Tensor, ...]]:
    """Whether it is a tuple of tensors, the usual state in parts."""
    return type(tree) is tuple and all(isinstance(x, Tensor) for x in cast("Any", tree))


@lru_cache(maxsize=64)
def _row(n: int) -> Any:  # noqa: ANN401
    """The structure of a tuple of n tensors."""
    return pytree.tree_flatten((0,) * n)[1]


def _flatten(tree: object) -> tuple[list[Any], Any]:
    """Leaves and structure; torch's function is slow, and leaves a reference cycle behind."""
    if isinstance(tree, Tensor):
        return [tree], _LONE
    return (
        (list(tree), _row(len(tree))) if _is_row(tree) else pytree.tree_flatten(cast("Any", tree))
    )


@dataclass(frozen=True)
class Layout:
    """Where each leaf of a state lies in the flat tensor [B, N], real and imaginary parts apart.

    Args:
        treespec: Structure of the user's state.
        shapes: Shape of each leaf.
        dtype: Their one dtype.
        device: Their one device.
        per_sample: True: dimension 0 of each leaf is B, and N counts what is left of the leaves.
            False: B is 1, and N counts everything.
    """

    treespec: Any
    shapes: tuple[torch.Size, ...]
    dtype: torch.dtype
    device: torch.device
    per_sample: bool

    @classmethod
    def of(cls, y0: State, per_sample: bool) -> Layout:
        """Layout of a state that `ODEProblem` has already checked."""
        leaves, treespec = _flatten(y0)
        first: Tensor = leaves[0]
        shapes = tuple(leaf.shape for leaf in leaves)
        about = (treespec, shapes, first.dtype, first.device, per_sample)
        try:
            return _known(*about)
        except TypeError:  # sizes that are symbols, while a program is made
            return cls(*about)

    @cached_property
    def batch(self) -> int:
        """B: the number of systems with a step size of their own."""
        return self.shapes[0][0] if self.per_sample else 1

    @cached_property
    def size(self) -> int:
        """N: real variables of one system."""
        return self.width(self.shapes)

    @property
    def is_complex(self) -> bool:
        """Whether the leaves are complex; the flat tensor never is."""
        return self.dtype.is_complex

    @cached_property
    def real_dtype(self) -> torch.dtype:
        """Dtype of the flat tensor, and of the time that `f` gets."""
        return self.dtype.to_real() if self.is_complex else self.dtype

    def width(self, shapes: Sequence[torch.Size]) -> int:
        """Real variables of one system in leaves of such shapes."""
        # Not shape.numel(), which would write a free size into a program as the number it is now.
        return sum(math.prod(shape) for shape in shapes) * (1 + self.is_complex) // self.batch

    @cached_property
    def _widths(self) -> list[int]:
        return [self.width([shape]) for shape in self.shapes]

    def pack(self, y: State) -> Tensor:
        """The user's state as [B, N]; a view where the state is one contiguous tensor."""
        flat = [as_real(leaf).reshape(self.batch, -1) for leaf in leaves_of(y)]
        return flat[0] if len(flat) == 1 else torch.cat(flat, dim=1)

    @cached_property
    def is_tensor(self) -> bool:
        """Whether the state is one bare tensor: the case worth a short way."""
        return bool(self.treespec.is_leaf())

    @cached_property
    def _is_plain(self) -> bool:
        return self.is_tensor and not self.is_complex

    @cached_property
    def _plain_shape(self) -> tuple[int, ...]:
        return tuple(self.shapes[0])  # torch takes twice as long over a torch.Size

    def unpack(self, flat: Tensor) -> Any:  # noqa: ANN401
        """The flat tensor [..., B, N] as the user's state, leading dimensions kept on each leaf."""
        if self._is_plain and flat.dim() == 2:
            return flat.reshape(self._plain_shape)
        if self._is_plain and flat.dim() == 3:
            return flat.reshape(-1, *self._plain_shape)
        lead = flat.shape[:-2]
        if self.is_tensor:
            return self._shaped(flat, lead + self.shapes[0])
        if len(self.shapes) == 1:
            leaf = self._shaped(flat, lead + self.shapes[0])
            return pytree.tree_unflatten([leaf], self.treespec)
        parts = torch.split_with_sizes(flat, self._widths, -1)
        pairs = zip(parts, self.shapes, strict=True)
        leaves = [self._shaped(part, lead + shape) for part, shape in pairs]
        if self.treespec is _row(len(leaves)):
            return tuple(leaves)
        return pytree.tree_unflatten(leaves, self.treespec)

    def _shaped(self, part: Tensor, shape: torch.Size) -> Tensor:
        if not self.is_complex:
            return part.reshape(shape)
        return torch.view_as_complex(part.reshape((*shape, 2)).contiguous())

    def time(self, t: Tensor) -> Tensor:
        """Times [B] in the shape in which `f` gets them: 0-dim, or [B, 1, ..., 1]."""
        if not self.per_sample:
            return t.squeeze()  # half of what reshape(()) takes
        return t.reshape((self.batch,) + (1,) * (len(self.shapes[0]) - 1))

    def pack_derivative(self, dy: object) -> Tensor:
        """What `f` returned as [B, N], after checking that it has the state's structure.

        Raises:
            InvalidProblem: If structure, a shape, the dtype or the device differs from the state's.
        """
        if self.is_tensor and isinstance(dy, Tensor):
            return self._checked(dy, 0)
        leaves, treespec = _flatten(dy)
        if treespec != self.treespec:
            like = pytree.tree_unflatten([None] * len(self.shapes), self.treespec)
            leaves = _in_order(dy, like, "")
        flat = [self._checked(leaf, i) for i, leaf in enumerate(leaves)]
        return flat[0] if len(flat) == 1 else torch.cat(flat, dim=1)

    def _checked(self, leaf: object, i: int) -> Tensor:
        if (
            isinstance(leaf, Tensor)
            and leaf.shape == self.shapes[i]
            and leaf.dtype == self.dtype
            and leaf.device == self.device
        ):
            return as_real(leaf).reshape(self.batch, -1)
        name = "" if len(self.shapes) == 1 else f" (leaf {i})"
        if not isinstance(leaf, Tensor):
            raise InvalidProblem(
                f"`f` must return a tensor{name}, got {type(leaf).__name__}. "
                "Return dy/dt as a tensor with the shape of `y`."
            )
        if leaf.shape != self.shapes[i]:
            raise InvalidProblem(
                f"`f` must return the shape of `y`{name}, got {list(leaf.shape)} for "
                f"{list(self.shapes[i])}. Return dy/dt for every component."
            )
        if leaf.device != self.device:
            raise InvalidProblem(
                f"`f` must return a tensor on the device of `y`{name}, got {leaf.device} for "
                f"{self.device}. Move its parameters there."
            )
        if not torch.is_autocast_enabled(self.device.type):
            raise InvalidProblem(
                f"`f` must return the dtype of `y`{name}, got {leaf.dtype} for {self.dtype}. "
                "Give `y0` the dtype of the parameters, or cast inside `f`."
            )
        # Autocast lowers products; the state keeps its precision.
        return as_real(leaf.to(self.dtype)).reshape(self.batch, -1)


def as_real(leaf: Tensor) -> Tensor:
    """Real and imaginary part as a last dimension; a real leaf itself."""
    return torch.view_as_real(leaf.resolve_conj()) if leaf.is_complex() else leaf


def _in_order(dy: object, like: object, path: str) -> list[Any]:
    """Leaves of dy in the order of the state's, for an equivalent structure.

    The order of a dict's keys, and list against tuple, make no difference.
    """
    if isinstance(like, Mapping) and isinstance(dy, Mapping):
        ours, theirs = cast("Mapping[Any, Any]", like), cast("Mapping[Any, Any]", dy)
        if ours.keys() == theirs.keys():
            pairs = [(theirs[key], ours[key], f"{path}[{key!r}]") for key in ours]
            return [leaf for pair in pairs for leaf in _in_order(*pair)]
    elif isinstance(like, tuple | list) and isinstance(dy, tuple | list):
        ours, theirs = cast("Sequence[Any]", like), cast("Sequence[Any]", dy)
        if len(ours) == len(theirs):
            pairs = [(theirs[i], ours[i], f"{path}[{i}]") for i in range(len(ours))]
            return [leaf for pair in pairs for leaf in _in_order(*pair)]
    elif like is None:
        return [dy]
    raise InvalidProblem(
        f"`f` must return the structure of `y0`, got {_describe(dy)} for {_describe(like)}"
        f"{f' at {path}' if path else ''}. Return one derivative for each leaf of the state."
    )


def _describe(value: object) -> str:
    """A structure in few words."""
    if isinstance(value, Mapping):
        keys = ", ".join(repr(key) for key in cast("Mapping[Any, Any]", value))
        return f"a {type(value).__name__} with keys {keys}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(cast('Sequence[Any]', value))}"
    return "a tensor" if value is None or isinstance(value, Tensor) else type(value).__name__


@lru_cache(maxsize=256)
def _known(*about: Any) -> Layout:  # noqa: ANN401
    """The same object for the same state: it then holds what it was asked before."""
    return Layout(*about)
