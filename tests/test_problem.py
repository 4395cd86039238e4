"""A problem that makes no sense is refused when it is built, in a sentence that says what to do."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ctflow import CtflowError, InvalidProblem, ODEProblem, odeint
from tests.checks import check
from tests.problems import decay

Y0 = torch.ones(2)
T = torch.tensor([0.0, 1.0])


def check_refused(message: str, *, names: str, remedy: str) -> None:
    """Raise unless a message names the thing in backticks, what it got, and what to do."""
    check(f"`{names}`" in message, f"does not name {names}: {message}")
    check("got" in message, f"does not say what it got: {message}")
    check(remedy in message, f"does not say {remedy!r}: {message}")


STATES: dict[str, tuple[Any, str]] = {
    "nothing": ((), "Pass the initial state"),
    "a number": (1.0, "torch.as_tensor"),
    "a number in a tuple": ((Y0, 1.0), "torch.as_tensor"),
    "None": (None, "torch.as_tensor"),
    "integers": (torch.ones(2, dtype=torch.int64), "`.float()` or `.double()`"),
    "booleans": (torch.ones(2, dtype=torch.bool), "`.float()` or `.double()`"),
    "eight bits": (torch.ones(2).to(torch.float8_e4m3fn), "`.float()`"),
    "sparse": (torch.eye(2).to_sparse(), "`.to_dense()`"),
    "empty": (torch.ones(0, 2), "Skip the solve"),
    "empty leaf": ((Y0, torch.ones(0)), "Skip the solve"),
    "NaN": (torch.tensor([0.0, math.nan]), "Clean the input"),
    "infinity": (torch.tensor([[0.0, -math.inf]]), "Clean the input"),
    "mixed dtypes": ((Y0, Y0.double()), "Cast the leaves"),
    "mixed dtypes in a dict": ({"a": Y0, "b": [Y0.half()]}, "Cast the leaves"),
    "mixed devices": ((Y0, torch.ones(2, device="meta")), "Move the leaves"),
}


@pytest.mark.parametrize(("y0", "remedy"), STATES.values(), ids=STATES.keys())
def test_a_state_that_cannot_be_integrated_is_refused(y0: Any, remedy: str) -> None:  # noqa: ANN401
    """Before f is called."""
    with pytest.raises(InvalidProblem) as caught:
        ODEProblem(decay, y0, T)
    check_refused(str(caught.value), names="y0", remedy=remedy)


def test_the_place_of_a_bad_element_is_named() -> None:
    """Leaf, index, value and number of bad elements."""
    bad = torch.zeros(2, 3)
    bad[1, 2] = bad[0, 1] = math.nan
    with pytest.raises(InvalidProblem, match=r"leaf 1 of `y0`.*nan at index \[0, 1\] \(2 such"):
        ODEProblem(decay, (Y0, bad), T)


TIMES: dict[str, tuple[Any, str]] = {
    "a number": (1.0, "torch.linspace"),
    "a string": ("0 1", "torch.linspace"),
    "words": (["a", "b"], "torch.stack"),
    "ragged": ([[0.0, 1.0], [0.0]], "torch.stack"),
    "tensors that want a gradient": ([0.0, torch.tensor(1.0, requires_grad=True)], "torch.stack"),
    "integers": (torch.tensor([0, 1]), "`.double()`"),
    "complex": (torch.tensor([0j, 1j]), "`.double()`"),
    "no dimension": (torch.tensor(1.0), "at least one further time"),
    "three dimensions": (torch.zeros(1, 1, 2), "at least one further time"),
    "one time": (torch.tensor([0.0]), "t = [t0, t1]"),
    "no time": (torch.tensor([]), "t = [t0, t1]"),
    "one time for each sample": (torch.zeros(2, 1), "t = [t0, t1]"),
    "repeated": (torch.tensor([0.0, 0.5, 0.5, 1.0]), "Remove the repeated time"),
    "repeated start": (torch.tensor([0.0, 0.0, 1.0]), "Remove the repeated time"),
    "back and forth": (torch.tensor([0.0, 1.0, 0.5]), "Sort the times"),
    "NaN": (torch.tensor([0.0, math.nan]), "Remove NaN"),
    "infinity": (torch.tensor([0.0, math.inf]), "Remove NaN"),
    "another batch": (torch.tensor([[0.0, 1.0]] * 3), "dimension 0 of `y0`"),
}


@pytest.mark.parametrize(("t", "remedy"), TIMES.values(), ids=TIMES.keys())
def test_times_that_make_no_sense_are_refused(t: Any, remedy: str) -> None:  # noqa: ANN401
    """NaN, repeated, unsorted, too few, of the wrong type or shape."""
    with pytest.raises(InvalidProblem) as caught:
        ODEProblem(decay, Y0, t)
    check_refused(str(caught.value), names="t", remedy=remedy)


def test_the_repeated_time_is_named() -> None:
    """With both indices, and the sample where each has its own times."""
    t = torch.tensor([[0.0, 1.0, 2.0], [1.0, 0.5, 0.5]])
    with pytest.raises(InvalidProblem, match=r"got t\[1\]\[2\]=0\.5 after t\[1\]\[1\]=0\.5"):
        ODEProblem(decay, Y0, t)


class Field(nn.Module):
    """A module whose forward takes the state alone."""

    def forward(self, y: Tensor) -> Tensor:
        return y


FUNCTIONS: dict[str, tuple[Any, Any, str]] = {
    "no function": (3, None, "Pass a function or an nn.Module"),
    "a class instance": (object(), None, "Pass a function or an nn.Module"),
    "state alone": (lambda y: y, None, "Take time first, then the state"),
    "module of the state": (Field(), None, "Take time first, then the state"),
    "args not given": (lambda t, y, args: y, None, "`args=`"),
    "args not taken": (decay, {"u": 1}, "then `args`"),
    "keyword needed": (lambda t, y, *, u: y, None, "`args=`"),
}


@pytest.mark.parametrize(("f", "args", "remedy"), FUNCTIONS.values(), ids=FUNCTIONS.keys())
def test_a_function_of_other_arguments_is_refused(f: Any, args: Any, remedy: str) -> None:  # noqa: ANN401
    """By its signature, before it is called."""
    with pytest.raises(InvalidProblem) as caught:
        ODEProblem(f, Y0, T, args=args)
    check_refused(str(caught.value), names="f", remedy=remedy)


@pytest.mark.parametrize(
    ("params", "remedy"), [(Y0, "params=(theta,)"), (3, "params=(theta,)"), ([1.0], "`args=`")]
)
def test_params_must_be_tensors(params: Any, remedy: str) -> None:  # noqa: ANN401
    """One tensor is no iterable of tensors, though it can be iterated over."""
    with pytest.raises(InvalidProblem) as caught:
        ODEProblem(decay, Y0, T, params=params)
    check_refused(str(caught.value), names="params", remedy=remedy)


@pytest.mark.parametrize("y0", [torch.tensor(1.0), (torch.ones(2), torch.ones(3))])
def test_a_batch_has_its_samples_in_dimension_0(y0: Any) -> None:  # noqa: ANN401
    """Of every leaf."""
    with pytest.raises(InvalidProblem, match=r"batched `y0`.*Add or expand it"):
        ODEProblem(decay, y0, T, batched=True)


@pytest.mark.parametrize(
    "t", [[0, 1], (0.0, 1.0), np.array([0.0, 1.0]), [torch.tensor(0.0), torch.tensor(1.0)]]
)
def test_numbers_become_times_in_double_precision(t: Any) -> None:  # noqa: ANN401
    """Lists, tuples and arrays of numbers are as good as a tensor."""
    problem = ODEProblem(decay, Y0, t)
    assert torch.equal(problem.t, torch.tensor([0.0, 1.0], dtype=torch.float64))


def test_params_may_be_a_generator() -> None:
    """Such as module.parameters(), which can be read once only."""
    layer = nn.Linear(2, 2)
    problem = ODEProblem(decay, Y0, T, params=layer.parameters())  # type: ignore[arg-type]
    assert problem.params == tuple(layer.parameters())


def test_a_callable_without_a_signature_is_left_to_its_call() -> None:
    """Some builtins tell nothing of their arguments."""
    assert ODEProblem(torch.mul, Y0, T).f is torch.mul


@pytest.mark.parametrize("make", [lambda: ODEProblem(decay, Y0, 3.0), lambda: odeint(3, Y0, T)])
def test_every_refusal_is_a_ctflow_error_and_a_value_error(make: Callable[[], Any]) -> None:
    """So that either may be caught."""
    with pytest.raises(CtflowError) as caught:
        make()
    assert isinstance(caught.value, ValueError)


def test_vmap_over_a_solve_is_refused() -> None:
    """And the remedy is per-sample coupling."""
    with pytest.raises(CtflowError, match="per_sample"):
        torch.vmap(lambda y: odeint(decay, y, T))(torch.ones(3, 2))
