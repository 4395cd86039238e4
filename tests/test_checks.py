"""The raising helpers raise, under `python -O` too."""

from __future__ import annotations

import math

import pytest
import torch

from tests.checks import check, check_close, check_relative


def test_a_false_condition_raises_its_message() -> None:
    """A helper's check is not an assert statement."""
    with pytest.raises(AssertionError, match="three is not two"):
        check(3 == 2, "three is not two")


def test_unequal_tensors_are_not_close() -> None:
    """A difference above the tolerance raises."""
    with pytest.raises(AssertionError, match="not close"):
        check_close(torch.ones(2), torch.zeros(2), rtol=1e-3)


@pytest.mark.parametrize("value", [1.01, math.nan, math.inf])
def test_a_far_or_non_finite_value_is_refused(value: float) -> None:
    """One per cent off and non-finite both raise at a tolerance of a thousandth."""
    with pytest.raises(AssertionError):
        check_relative(torch.tensor([value]), torch.tensor([1.0]), rtol=1e-3)


def test_a_tiny_entry_is_judged_by_the_whole_norm() -> None:
    """An entry that should be zero may differ by rounding of its neighbours."""
    check_relative(
        (torch.tensor([100.0]), torch.tensor([1e-6])),
        (torch.tensor([100.0]), torch.tensor([0.0])),
        rtol=1e-7,
    )


def test_shapes_must_agree() -> None:
    """Broadcasting does not hide a wrong shape."""
    with pytest.raises(AssertionError, match="shapes differ"):
        check_relative(torch.ones(2, 1), torch.ones(2), rtol=1.0)
