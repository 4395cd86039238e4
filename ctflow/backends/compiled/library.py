"""The programs of this process: one for each kind of solve, and one more where sizes change."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from ctflow.backends.compiled.build import Program, built, hushed
from ctflow.backends.compiled.trial import Looped, check
from ctflow.errors import Unsupported

__all__ = ["Family", "Free", "Inputs", "Sketch", "Stage"]

logger = logging.getLogger("ctflow.compiled")

Sizes = tuple[tuple[int, ...], ...]
Make = Callable[["Sketch", Sequence[Tensor]], Looped]

_GUARDS = "torch.fx.experimental.symbolic_shapes"
_TORCH, _OURS = str(Path(torch.__file__).parent), str(Path(__file__).parents[2])
_LEAST = {"outputs": 3}  # start, end and one between; of others 2
# Sizes that free dimensions are followed with: none that a state or a network may have, for two
# sizes that are found equal once are taken to be one for ever.
_PROBES = (100_003, 100_019, 100_043, 100_049, 100_057)


class Free(NamedTuple):
    """A dimension of any size: `factor` times what `name` stands for."""

    name: str
    factor: int


Dimensions = tuple[tuple["Free | None", ...], ...]


class Inputs(NamedTuple):
    """What a program is called with.

    Attributes:
        tensors: Flat.
        names: For the first of them the names of dimensions that are free from the start.
        batch: Size of the state's first dimension.
    """

    tensors: list[Tensor]
    names: Sequence[Sequence[str | None]]
    batch: int


class Sketch:
    """Stand-ins of tensors, with free dimensions, for code to be followed with.

    Args:
        free: Names of free dimensions.
        sizes: What they are now.
    """

    def __init__(self, free: Sequence[str], sizes: Mapping[str, int] | None = None) -> None:
        self._environment = ShapeEnv()
        self.mode = FakeTensorMode(shape_env=self._environment)
        self._symbols: dict[str, Any] = {}
        self._names: dict[str, Any] = {}
        self._by_f = 0
        for name, size in zip(free, _PROBES[: len(free)], strict=True):
            context = StatelessSymbolicContext([DimDynamic.DYNAMIC])
            probe = torch.empty(size, dtype=torch.uint8)
            fake = self.mode.from_tensor(probe, symbolic_context=context)
            self._symbols[name] = fake.shape[0]
            self._names[name] = self._symbols[name].node.expr  # a number, once it is taken for one
        if sizes:
            self._environment.guards = _Heard(self, sizes)

    def size(self, own: int, free: Free | None) -> Any:  # noqa: ANN401
        """A dimension: a number, or a multiple of a symbol."""
        return own if free is None else free.factor * self._symbols[free.name]

    def tensor(self, like: Tensor, free: Sequence[Free | None]) -> Tensor:
        """A stand-in."""
        shape = [self.size(own, name) for own, name in zip(like.shape, free, strict=True)]
        with self.mode:
            return torch.empty(shape, dtype=like.dtype, device=like.device)

    def note_decisions(self) -> None:
        """What has been decided by free sizes up to now was decided by `f`."""
        self._environment.guards = list(self._environment.guards)
        self._by_f = len(self._environment.guards)

    @property
    def decisions(self) -> Decisions:
        """What `f` decided by free sizes: programs are for sizes that decide alike.

        Torch compares sizes for its own sake, and most of them do differ: that one is not another
        is taken for a decision only where the user's own line asked.
        """
        return self.those_in(self._environment.guards[: self._by_f])

    def those_in(self, guards: Sequence[Any]) -> Decisions:
        """Likewise of what torch has written down."""
        kept = (g.expr for g in guards if not (_relation(g) == "!=" and _by_torch(g.sloc)))
        return Decisions(tuple(kept), self._names)

    def check_free(self, names: Sequence[str]) -> bool:
        """Whether following the code left these dimensions free."""
        shown = [self._symbols[name].node.expr for name in names]  # what it is taken to be by now
        return all(x.is_symbol for x in shown) and len(set(shown)) == len(shown)


@dataclass(frozen=True)
class Decisions:
    """What Python asked about free sizes, and was told of the sizes it was followed with.

    Attributes:
        asked: What was true of them, in symbols.
        symbols: The symbol of each size.
    """

    asked: tuple[Any, ...]
    symbols: Mapping[str, Any]
    _known: dict[tuple[tuple[str, int], ...], bool] = field(default_factory=dict[Any, bool])

    def hold(self, sizes: Mapping[str, int]) -> bool:
        """Whether it is true of other sizes."""
        if not self.asked:
            return True
        key = tuple(sorted(sizes.items()))
        if key not in self._known:
            values = {self.symbols[name]: size for name, size in sizes.items()}
            self._known[key] = all(x.subs(values) == True for x in self.asked)  # noqa: E712
        return self._known[key]


class _Apart(Unsupported):
    """For other sizes there may be a program, for this one it would be another."""


class _Heard(list[Any]):
    """What torch writes down of decisions: refused where they are otherwise for the sizes of now.

    At once, for `f` may go on to loop over as many rows as it is followed with.
    """

    def __init__(self, sketch: Sketch, sizes: Mapping[str, int]) -> None:
        super().__init__()
        self._sketch, self._sizes = sketch, sizes

    def append(self, guard: Any) -> None:  # noqa: ANN401
        """Write down one more."""
        super().append(guard)
        if not self._sketch.those_in([guard]).hold(self._sizes):
            if _relation(guard) == "==":
                raise Unsupported("`f` has a size written into it")
            raise _Apart("`f` decides by it otherwise than for most")


def _relation(guard: Any) -> str | None:  # noqa: ANN401
    return getattr(guard.expr, "rel_op", None)


def _by_torch(place: Any) -> bool:  # noqa: ANN401
    """Whether a line is in torch, or ours."""
    name = str(getattr(place.framework_loc, "filename", place.framework_loc))
    return name.startswith((_TORCH, _OURS, "<eval_with_key>"))


@dataclass(frozen=True)
class Stage:
    """A program and the sizes it takes."""

    program: Program
    free: Dimensions
    sizes: Sizes
    batch: int
    decisions: Decisions

    def takes(self, sizes: Sizes) -> bool:
        """Whether inputs of these sizes may be given to it."""
        bound = _bound(self.free, self.sizes, sizes)
        return bound is not None and self.decisions.hold(bound)


def _bound(free: Dimensions, own: Sizes, other: Sizes) -> dict[str, int] | None:
    """What the free sizes are in `other`; None where these cannot be."""
    bound: dict[str, int] = {}
    for ours, names, theirs in zip(own, free, other, strict=True):
        if len(ours) != len(theirs):
            return None
        for a, name, b in zip(ours, names, theirs, strict=True):
            if name is None:
                if a != b:
                    return None
                continue
            value, rest = divmod(b, name.factor)
            least = _LEAST.get(name.name, 2)
            if rest or value < least or bound.setdefault(name.name, value) != value:
                return None
    return bound


@dataclass
class Family:
    """Programs that differ in sizes only.

    Args:
        name: For the log.

    Attributes:
        stages: The programs.
        longest: Most records that a run has needed.
        memory: How many numbers of each sample the control remembers, once it is known.
        spare: By their sizes: room for what a run records and nothing needs after it.
        kept: By the sizes of the state: what is kept of an evaluation, one (shape, dtype) each.
    """

    name: str
    stages: list[Stage] = field(default_factory=list[Stage])
    longest: int = 0
    memory: int | None = None
    kept: dict[object, list[tuple[torch.Size, torch.dtype]]] = field(default_factory=dict[Any, Any])
    spare: dict[object, tuple[Tensor, Tensor]] = field(default_factory=dict[Any, Any])
    lock: threading.Lock = field(default_factory=threading.Lock)
    _last: tuple[list[torch.Size], Stage] | None = None

    def get(self, inputs: Inputs, make: Make) -> Program:
        """The program for these inputs, made now if need be."""
        shapes = [x.shape for x in inputs.tensors]
        if self._last is not None and self._last[0] == shapes:
            return self._last[1].program
        sizes = tuple(map(tuple, shapes))
        with self.lock:
            for stage in self.stages:
                if stage.takes(sizes):
                    self._last = (shapes, stage)
                    return stage.program
            stage = self._new(inputs, sizes, make)
            self.stages.append(stage)
            self._last = (shapes, stage)
            return stage.program

    def _new(self, inputs: Inputs, sizes: Sizes, make: Make) -> Stage:
        named = [
            tuple(None if name is None else Free(name, 1) for name in names)
            for names in inputs.names
        ]
        fixed = (*named, *((None,) * x.dim() for x in inputs.tensors[len(named) :]))
        for earlier in self.stages:
            wider = _widened(earlier, fixed, sizes, inputs.batch)
            if wider is not None:
                try:
                    with hushed(_GUARDS, logging.CRITICAL):  # what is refused is said below
                        return self._make(inputs, sizes, wider, make)
                except _Apart as error:
                    logger.warning(
                        "%s: this batch size is compiled for itself, because %s", self.name, error
                    )
                    break
                except Unsupported as error:
                    logger.warning(
                        "%s: every batch size is compiled for itself, because %s; is there a "
                        "len(x) in it that could be x.shape[0]?", self.name, error,
                    )  # fmt: skip
                    break
        return self._make(inputs, sizes, fixed, make)

    def _make(self, inputs: Inputs, sizes: Sizes, free: Dimensions, make: Make) -> Stage:
        names = sorted({d.name for dimensions in free for d in dimensions if d is not None})
        sketch = Sketch(names, _bound(free, sizes, sizes))
        stand_ins = [
            sketch.tensor(x, dimensions) for x, dimensions in zip(inputs.tensors, free, strict=True)
        ]
        module = make(sketch, stand_ins)
        if not sketch.check_free(names):
            raise Unsupported("`f` has a size written into it")
        dims = {name: torch.export.Dim(name, min=_LEAST.get(name, 2)) for name in names}
        spec = tuple(
            {i: d.factor * dims[d.name] if d.factor > 1 else dims[d.name]
             for i, d in enumerate(dimensions) if d is not None}
            for dimensions in free
        )  # fmt: skip
        examples = [
            torch.zeros_like(x, memory_format=torch.contiguous_format) for x in inputs.tensors
        ]
        program = built(module, examples, (spec,), self.name)
        check(module, program, inputs.tensors)
        return Stage(program, free, sizes, inputs.batch, sketch.decisions)


def _widened(earlier: Stage, fixed: Dimensions, sizes: Sizes, batch: int) -> Dimensions | None:
    """The sizes that changed since an earlier program, as multiples of the batch; or None."""
    found: list[tuple[Free | None, ...]] = []
    for own, free, other in zip(earlier.sizes, fixed, sizes, strict=True):
        if len(own) != len(other):
            return None
        dimensions: list[Free | None] = []
        for a, name, b in zip(own, free, other, strict=True):
            if name is not None or a == b:
                dimensions.append(name)
                continue
            factor, rest = divmod(b, batch)
            if rest or a != factor * earlier.batch or min(batch, earlier.batch) < 2:
                return None
            dimensions.append(Free("batch", factor))
        found.append(tuple(dimensions))
    return tuple(found)
