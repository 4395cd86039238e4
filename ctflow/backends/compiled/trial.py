"""Machine code is not trusted: it is compared with the operations it was made of, once.

The compiler has turned loops into code with other values without a word: it freed a tensor at the
first turn of the loop that reads it in every turn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from ctflow.errors import Unsupported

__all__ = ["Looped", "check", "distances", "loop", "nudged"]

_STEPS = 6  # of the trial
_FEW = 3  # steps after which a fault of the loop has shown
_STARTS = (1, 2, 3, 4)  # how far each lies from the first, in units of rounding
_ROUGH = 1e-2
_ROUGHEST = 0.1  # where the operations alone are as far apart, by rounding
_MARGIN = 2.0  # over the scatter of a few starts
_FLOOR = 1e-2  # of the largest, as which smaller ones are treated
_EXCEPTIONS = 0.1  # share of the samples that may have taken other steps

Run = Callable[[list[Tensor]], Sequence[Tensor]]
_Pair: TypeAlias = tuple[Tensor, Tensor]


class Looped(nn.Module):
    """A module that becomes a program: its forward takes and returns flat tensors.

    Attributes:
        RESULTS: Which of what it returns is the answer, and not how it was found.
        GUESSES: Which of what it returns may hang on rounding after a single step.
        COUNTS: Which of what it returns counts the steps of each sample, [..., B].
        SAMPLES: The axis along which samples lie, in what it returns.
        WRITTEN_SAMPLES: The same in the inputs that it writes to.
    """

    RESULTS: ClassVar[tuple[int, ...]] = ()
    GUESSES: ClassVar[tuple[int, ...]] = ()
    COUNTS: ClassVar[tuple[int, ...]] = ()
    SAMPLES: ClassVar[Mapping[int, int]] = {}
    WRITTEN_SAMPLES: ClassVar[Mapping[int, int]] = {}

    def limited(self, inputs: Sequence[Tensor], n_steps: int) -> list[Tensor]:
        """The inputs with another limit of steps."""
        raise NotImplementedError


def loop(
    going: Callable[..., Tensor],
    step: Callable[..., tuple[Tensor, ...]],
    carry: tuple[Tensor, ...],
) -> tuple[Tensor, ...]:
    """Repeat a step: as one operation where a program is made, else by Python."""
    if torch.compiler.is_compiling():
        return torch.while_loop(going, step, carry)
    while bool(going(*carry)):
        carry = step(*carry)
    return carry


def check(module: Looped, program: Run, inputs: Sequence[Tensor]) -> None:
    """Compare a program with its module, on the inputs of its first solve.

    Over six steps they must agree to half the digits. They may not, where a decision stood on the
    edge, where an estimated error is nothing but rounding, which decides about the next step, or
    where rounding moves an activation over a kink: of the millions in a network of convolutions and
    ReLUs some at every step, and each changes the gradient by a thousandth. Then they must agree
    over three steps from starts that differ by rounding alone, one of which may stand on an edge
    again, or else over one step: to half the digits, or about as closely as the operations agree
    with themselves from one start to another. The size of the next step is left out of this, and
    the results of the whole walk must be about the same: to a percent, from the given start or from
    half of the others, or again as closely as those of the operations. (Backwards through a network
    of ReLUs at a tolerance of 1e-3 two gradients, both right to the tolerance, were 1.4 percent
    apart.)
    Of many samples that step by themselves some stand on an edge at every step: a few of which
    other steps were taken are left out.

    Raises:
        Unsupported: If they do not.

    Cost:
        A few steps, operator by operator; once for each program and process.
    """
    found = _compared(module, program, module.limited(inputs, _STEPS), ())
    if max(distances(found.pairs), default=0.0) <= _half_the_digits(found.pairs):
        return
    starts = [nudged(inputs, n) for n in _STARTS]
    if _mostly_alike(module, program, inputs, starts, _FEW):
        good = _alike_from_half(module, program, inputs, starts)
    else:
        one = _mostly_alike(module, program, inputs, starts, 1)
        good = one and _about_the_same(module, _both(module, program, inputs)[0], _ROUGH)
    if not good:
        raise Unsupported(
            "backend 'compiled' got machine code that gives other values than the operations of "
            "`f` (a fault of the compiler). Use backend='native'."
        )


def _mostly_alike(
    module: Looped,
    program: Run,
    inputs: Sequence[Tensor],
    starts: Sequence[list[Tensor]],
    n_steps: int,
) -> bool:
    """Whether a few steps agree from all starts but one, as far as the operations do themselves."""
    given = _compared(module, program, module.limited(inputs, n_steps), module.GUESSES)
    least = _half_the_digits(given.pairs)
    scatter = [0.0] * len(given.pairs)
    apart: list[list[float]] = []
    for start in starts:
        found = _compared(module, program, module.limited(start, n_steps), module.GUESSES)
        apart.append(distances(found.pairs))
        moved = distances(list(zip(given.whole, found.whole, strict=True)))
        if math.inf not in moved:  # else it took other steps
            scatter = [max(two) for two in zip(scatter, moved, strict=True)]
    most = [max(least, min(_MARGIN * far, _ROUGHEST)) for far in scatter]
    alike = [all(a <= b for a, b in zip(each, most, strict=True)) for each in apart]
    return sum(alike) >= len(starts) - 1


def _alike_from_half(
    module: Looped, program: Run, inputs: Sequence[Tensor], starts: Sequence[list[Tensor]]
) -> bool:
    """Whether whole walks agree from the given start, or from half of those beside it."""
    given, _, _ = _both(module, program, inputs)
    if _about_the_same(module, given, _ROUGH):
        return True
    found = [_both(module, program, start)[0] for start in starts]
    scatter = max(
        max(distances([(given[i][0], other[i][0]) for i in module.RESULTS]), default=0.0)
        for other in found
    )
    share = min(max(_ROUGH, scatter), _ROUGHEST)
    near = [_about_the_same(module, each, share) for each in found]
    return sum(near) >= len(near) / 2


def _about_the_same(module: Looped, returned: Sequence[_Pair], share: float) -> bool:
    """Whether the answers are, but for a few samples of many."""
    results = [returned[i] for i in module.RESULTS]
    return all(
        far <= share or _few_differ(*pair, module.SAMPLES.get(i))
        for i, pair, far in zip(module.RESULTS, results, distances(results), strict=True)
    )


def nudged(inputs: Sequence[Tensor], n: int) -> list[Tensor]:
    """The same but for rounding: equal numbers stay equal, and times that rise go on rising.

    Some numbers become larger and some smaller, as their digits have it: where all are multiplied
    by one factor, no sum changes its sign.
    """
    return [_moved(x, n) if x.is_floating_point() else x for x in inputs]


def _moved(x: Tensor, n: int) -> Tensor:
    digits = torch.frexp(x.double()).mantissa
    by_chance = torch.cos(1e4 * n * digits)
    return (x * (1 + 4 * n * torch.finfo(x.dtype).eps * by_chance)).to(x.dtype)


class _Compared(NamedTuple):
    """What is returned and what is written in place.

    Attributes:
        pairs: By the module and by the program, of the samples of which both took as many steps.
        whole: By the module, of all samples.
    """

    pairs: list[_Pair]
    whole: list[Tensor]


def _compared(
    module: Looped, program: Run, inputs: Sequence[Tensor], guesses: Sequence[int]
) -> _Compared:
    returned, ours, theirs = _both(module, program, inputs)
    alike = _alike(module, returned)
    kept = [i for i in range(len(returned)) if i not in guesses]
    written = [_written(*each) for each in zip(inputs, ours, theirs, strict=True)]
    axes = [
        *(module.SAMPLES.get(i) for i in kept),
        *(module.WRITTEN_SAMPLES.get(i) for i in range(len(written))),
    ]
    both = [*(returned[i] for i in kept), *written]
    pairs = [_of(pair, alike, axis) for pair, axis in zip(both, axes, strict=True)]
    return _Compared(pairs, [x for x, _ in both])


def _half_the_digits(pairs: Sequence[_Pair]) -> float:
    """Of the coarsest numbers: times are float64 also where errors are rounded to less."""
    return max(torch.finfo(x.dtype).eps for x, _ in pairs if x.is_floating_point()) ** 0.5


def _few_differ(x: Tensor, y: Tensor, axis: int | None) -> bool:
    """Whether most samples are about the same: a step more or less changes what was reached."""
    if axis is None or x.shape != y.shape or x.dtype != y.dtype or not x.numel():
        return False
    ours, theirs = (_finite(z).movedim(axis, 0).flatten(1) for z in (x, y))
    other = (x.isfinite() != y.isfinite()).movedim(axis, 0).flatten(1).any(1)
    size = ours.norm(dim=1)
    other |= (ours - theirs).norm(dim=1) > _ROUGH * size.clamp(min=_FLOOR * float(size.max()))
    return int(other.sum()) <= _EXCEPTIONS * len(other)


def _alike(module: Looped, returned: Sequence[_Pair]) -> Tensor | None:
    """The samples of which as many steps were taken, [n]; None: all, or too few for exceptions."""
    same = [(x == y).flatten(end_dim=-2).all(0) for x, y in (returned[i] for i in module.COUNTS)]
    if not same:
        return None
    kept = torch.stack(same).all(0)
    others = len(kept) - int(kept.sum())
    return kept.nonzero()[:, 0] if 0 < others <= _EXCEPTIONS * len(kept) else None


def _of(pair: _Pair, alike: Tensor | None, axis: int | None) -> _Pair:
    """Two tensors without the samples that are left out."""
    x, y = pair
    if alike is None or axis is None or not x.numel():  # a record that is not kept
        return pair
    return x.index_select(axis, alike), y.index_select(axis, alike)


def _both(
    module: Looped, program: Run, inputs: Sequence[Tensor]
) -> tuple[list[_Pair], list[Tensor], list[Tensor]]:
    """What module and program return, in pairs; and the inputs that each has written to."""
    ours, theirs = [x.clone() for x in inputs], [x.clone() for x in inputs]
    with torch.no_grad(), _whole_products():
        wanted: Any = module(*ours)
        got = program(theirs)
    wanted = [wanted] if isinstance(wanted, Tensor) else list(wanted)
    return list(zip(wanted, got, strict=True)), ours, theirs


@contextmanager
def _whole_products() -> Generator[None]:
    """Products of float32 numbers with all their digits, where a GPU would take ten bits (TF32).

    A convolution in TF32 agrees with itself to three digits, and by another algorithm to no more.
    """
    backends: Any = torch.backends
    places = (backends.cudnn.conv, backends.cuda.matmul)
    before = [place.fp32_precision for place in places]
    try:
        for place in places:
            place.fp32_precision = "ieee"
        yield
    finally:
        for place, precision in zip(places, before, strict=True):
            place.fp32_precision = precision


def _written(before: Tensor, x: Tensor, y: Tensor) -> _Pair:
    """What either wrote; the rest of a record may hold anything, and is left out."""
    changed = (x != before) | (y != before)
    return torch.where(changed, x, 0), torch.where(changed, y, 0)


def _size(x: Tensor) -> float:
    return float(_finite(x).norm()) if x.is_floating_point() else 0.0


def _finite(x: Tensor) -> Tensor:
    return torch.nan_to_num(x.double(), 0.0, 0.0, 0.0)


def distances(pairs: Sequence[tuple[Tensor, Tensor]]) -> list[float]:
    """Of two tensors, as a share of their own size or of some of the largest of all.

    A gradient that is zero but for rounding, as that of a bias before a normalisation, has no
    digits of its own. Infinite where they are no match: shapes, whole numbers, what is finite.
    """
    largest = max((_size(x) for x, _ in pairs), default=0.0)
    return [_distance(x, y, largest) for x, y in pairs]


def _distance(x: Tensor, y: Tensor, largest: float) -> float:
    if x.shape != y.shape or x.dtype != y.dtype:
        return math.inf
    if not x.is_floating_point():
        return 0.0 if torch.equal(x, y) else math.inf
    if not torch.equal(x.isfinite(), y.isfinite()):
        return math.inf
    far = float((_finite(x) - _finite(y)).norm())
    size = max(_size(x), _FLOOR * largest)
    return far / size if size else math.inf if far else 0.0
