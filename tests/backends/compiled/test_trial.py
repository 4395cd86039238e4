"""A program that gives other values than what it was made of is refused; rounding is not."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from ctflow import Unsupported
from ctflow.backends.compiled.trial import Looped, check, loop


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
