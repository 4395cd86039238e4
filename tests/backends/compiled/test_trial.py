"""A program that gives other values than what it was made of is refused; rounding is not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from ctflow import Unsupported
from ctflow.backends.compiled.trial import Looped, check, loop, nudged


class Doubling(Looped):
    """Doubles a value n times and writes each down; and a value that is zero but for noise."""

    RESULTS = (1,)
    GUESSES = (3,)

    def __init__(
        self,
        factor: float = 2.0,
        wrong_record: float = 0.0,
        noise: float = 0.0,
        guess: float = 0.0,
    ) -> None:
        super().__init__()
        self.factor, self.wrong_record, self.noise = factor, wrong_record, noise
        self.guess = guess

    def limited(self, inputs: Sequence[Tensor], n_steps: int) -> list[Tensor]:
        """The inputs with fewer doublings."""
        return [inputs[0].clamp(max=n_steps), *inputs[1:]]

    def forward(self, n: Tensor, x: Tensor, record: Tensor) -> tuple[Tensor, ...]:
        """The count and the value at the end."""

        def step(i: Tensor, x: Tensor) -> tuple[Tensor, ...]:
            record.index_copy_(0, i, x * (1 + self.wrong_record))
            return i + 1, x * self.factor

        i, x = loop(lambda i, _: (i < n).all(), step, (torch.zeros_like(n), x.clone()))
        return i, x, torch.full_like(x, self.noise), x * (1 + self.guess)


def _inputs(n: int = 9) -> list[Tensor]:
    return [torch.tensor([n]), torch.ones(1, dtype=torch.float64), torch.empty(n).double()]


def _program(module: Looped) -> object:
    return lambda inputs: list(module(*inputs))


@pytest.mark.parametrize(
    "wrong",
    [Doubling(factor=2.001), Doubling(wrong_record=0.5), Doubling(noise=float("nan"))],
    ids=["value", "record", "not finite"],
)
def test_other_values_are_refused(wrong: Doubling) -> None:
    """Those returned, and those written in place."""
    with pytest.raises(Unsupported, match=r"machine code.*backend='native'"):
        check(Doubling(), _program(wrong), _inputs(300))  # pyright: ignore


@pytest.mark.parametrize("noise", [1e-16, -1e-13])
def test_rounding_is_not_refused(noise: float) -> None:
    """Not even where a value is nothing but rounding."""
    check(Doubling(), _program(Doubling(factor=2 + 1e-14, noise=noise)), _inputs())  # pyright: ignore


class Deciding(Doubling):
    """From some turn on it grows by another factor each turn: as if other steps were taken.

    Args:
        turn: The last one that is equal.
        factor: How much more it grows.
        starts: Of which starts this is so; the given one is 0.
    """

    def __init__(self, turn: int, factor: float, starts: Sequence[int] = range(5)) -> None:
        super().__init__()
        self.turn, self.other, self.starts = turn, factor, starts
        self.seen: list[float] = []

    def forward(self, n: Tensor, x: Tensor, record: Tensor) -> tuple[Tensor, ...]:
        """The count and the value at the end."""
        found = super().forward(n, x, record)
        if float(x) not in self.seen:
            self.seen.append(float(x))
        late = (n - self.turn).clamp(min=0) * (self.seen.index(float(x)) in self.starts)
        return found[0], found[1] * self.other**late, found[2], found[3] * self.other**late


@pytest.mark.parametrize(
    ("other", "refused"),
    [
        (Deciding(1, 1.01, starts=[0, 1]), False),  # the given start and one of four; 8 percent
        (Deciding(1, 1.01, starts=[0, 1, 2]), True),  # and two of four
        (Deciding(0, 1.1, starts=[0]), False),  # by 136 percent in the end, from this one alone
        (Deciding(3, 1.01), True),  # 6 percent from every start
        (Deciding(3, 1.01, starts=[0, 1, 2]), False),  # from two of four
        (Deciding(3, 1.01, starts=[0, 1, 2, 3]), True),  # from three
        (Deciding(3, 1.001), False),  # 0.6 percent
        (Deciding(1, 1.001), False),  # 0.8 percent
        (Deciding(0, 1.001), True),  # not a single step is equal
    ],
)
def test_decisions_of_rounding_are_told_from_faults(other: Deciding, refused: bool) -> None:
    """A fault shows from every start, a decision on the edge from few."""
    if not refused:
        check(Doubling(), _program(other), _inputs())  # pyright: ignore
        return
    with pytest.raises(Unsupported, match="machine code"):
        check(Doubling(), _program(other), _inputs())  # pyright: ignore


@pytest.mark.parametrize(("factor", "refused"), [(1.008, False), (1.03, True)])
def test_answers_may_be_as_far_apart_as_those_of_the_operations_alone(
    factor: float, refused: bool
) -> None:
    """By 6 percent from two of four starts; a program by 5 percent from each, or by 19."""
    operations, program = Deciding(3, 1.01, [1, 3]), Deciding(3, factor)
    if not refused:
        check(operations, _program(program), _inputs())  # pyright: ignore
        return
    with pytest.raises(Unsupported, match="machine code"):
        check(operations, _program(program), _inputs())  # pyright: ignore


class Kinked(Doubling):
    """Each turn it is off by a share that hangs on the last digits of where it began.

    Args:
        share: How much.
        shift: Which digits count; another one is another rounding.
    """

    def __init__(self, share: float, shift: float) -> None:
        super().__init__()
        self.share, self.shift = share, shift

    def forward(self, n: Tensor, x: Tensor, record: Tensor) -> tuple[Tensor, ...]:
        """The count and the value at the end."""
        found = super().forward(n, x, record)
        digits = torch.cos(1e15 * (x - 1) * self.shift + self.shift)
        off = 1 + self.share * n.clamp(max=6) * digits
        return found[0], found[1] * off, found[2], found[3] * off


@pytest.mark.parametrize(
    ("operations", "program", "refused"),
    [
        (1e-3, 1e-3, False),  # as far apart as the operations from start to start
        (1e-3, 0.0, False),
        (0.0, 1e-3, True),  # nothing else says that this is rounding
        (1e-6, 1e-3, True),
        (1e-3, 3e-2, True),
    ],
)
def test_kinks_are_told_from_faults_by_the_scatter_of_the_operations(
    operations: float, program: float, refused: bool
) -> None:
    """An activation that rounding moves over its kink changes the gradient at any start."""
    module, other = Kinked(operations, 1.0), Kinked(program, 2.0)
    if not refused:
        check(module, _program(other), _inputs())  # pyright: ignore
        return
    with pytest.raises(Unsupported, match="machine code"):
        check(module, _program(other), _inputs())  # pyright: ignore


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_nudged_numbers_differ_by_rounding_alone(dtype: torch.dtype) -> None:
    """Some up and some down; equal ones stay equal, and times go on rising."""
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0)).to(dtype)
    times = torch.linspace(0, 10, 50, dtype=torch.float64)
    inputs = [x, x.clone(), times, torch.arange(3), torch.zeros(2, dtype=dtype)]
    for n in (1, 2, 3, 4):
        one, other, rising, whole, zero = nudged(inputs, n)
        assert torch.equal(one, other)
        change = ((one - x) / x).double()[x != 0]
        assert float(change.abs().max()) <= (4 * n + 1) * torch.finfo(dtype).eps
        assert 0.2 < float((change > 0).double().mean()) < 0.8
        assert bool((rising.diff() > 0).all())
        assert torch.equal(whole, inputs[3])
        assert torch.equal(zero, inputs[4])


def test_the_trial_leaves_its_inputs_alone() -> None:
    """They are those of a solve that is still to be made."""
    inputs = _inputs()
    before = [x.clone() for x in inputs]
    check(Doubling(), _program(Doubling()), inputs)  # pyright: ignore
    for x, y in zip(inputs, before, strict=True):
        assert torch.equal(x.view(torch.uint8), y.view(torch.uint8))


def test_what_hangs_on_rounding_alone_is_not_refused() -> None:
    """The size of the next step where the error estimate is rounding."""
    check(Doubling(), _program(Doubling(guess=0.1)), _inputs())  # pyright: ignore


def test_float32_is_multiplied_with_all_its_digits_in_the_trial_alone() -> None:
    """On a GPU a convolution in TF32 agrees with another algorithm's to three digits."""
    seen: set[str] = set()

    def program(inputs: list[Tensor]) -> list[Tensor]:
        seen.update((torch.backends.cudnn.conv.fp32_precision, matmul.fp32_precision))
        return list(Doubling()(*inputs))

    matmul = torch.backends.cuda.matmul
    before = torch.backends.cudnn.allow_tf32, matmul.allow_tf32
    check(Doubling(), program, _inputs())
    assert seen == {"ieee"}
    assert (torch.backends.cudnn.allow_tf32, matmul.allow_tf32) == before


class Stepping(Looped):
    """Samples that count and grow, each until its own bound, and write down where they were."""

    RESULTS = (1,)
    COUNTS = (0,)
    SAMPLES: ClassVar[Mapping[int, int]] = {0: 1, 1: 0}
    WRITTEN_SAMPLES: ClassVar[Mapping[int, int]] = {2: 1}

    def __init__(self, others: int = 0, factor: float = 2.0) -> None:
        super().__init__()
        self.others, self.factor = others, factor

    def limited(self, inputs: Sequence[Tensor], n_steps: int) -> list[Tensor]:
        """The inputs with fewer steps."""
        return [inputs[0].clamp(max=n_steps), *inputs[1:]]

    def forward(self, n: Tensor, x: Tensor, record: Tensor) -> tuple[Tensor, ...]:
        """Counts [1, B] and values [B]; the first few samples take a step less."""
        held = torch.arange(len(x)) < self.others

        def step(i: Tensor, x: Tensor) -> tuple[Tensor, ...]:
            record.index_copy_(0, i, x.unsqueeze(0))
            return i + 1, x * torch.where(held & (i == 0), 1.0, self.factor)

        i, x = loop(lambda i, _: (i < n).all(), step, (torch.zeros_like(n), x.clone()))
        return (i - held.long()).unsqueeze(0), x


def _samples(n: int) -> list[Tensor]:
    return [torch.tensor([9]), torch.ones(n).double(), torch.empty(9, n).double()]


@pytest.mark.parametrize(
    ("n", "other", "refused"),
    [
        (1000, Stepping(7), False),
        (1000, Stepping(300), True),
        (5, Stepping(1), True),
        (1000, Stepping(7, factor=2.1), True),
    ],
    ids=["a few of many", "many", "one of few", "a few of many, and other values"],
)
def test_a_few_samples_of_many_may_take_other_steps(n: int, other: Stepping, refused: bool) -> None:
    """At every step some stand on the edge of being rejected, and rounding decides."""
    if not refused:
        check(Stepping(), _program(other), _samples(n))  # pyright: ignore
        return
    with pytest.raises(Unsupported, match="machine code"):
        check(Stepping(), _program(other), _samples(n))  # pyright: ignore
