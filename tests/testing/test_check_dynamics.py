"""`check_dynamics` fails broken fields on the property that names their fault, and no right one."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from ctflow import CtflowError, InvalidProblem
from ctflow.testing import CheckFailed, check_dynamics, inspect_dynamics
from tests.problems import FLOAT
from tests.testing.broken_dynamics import BROKEN, RIGHT, OnState, network, state


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_field_fails_on_the_property_that_names_its_fault(fault: str) -> None:
    """On that one, and on no other; for each there is a usual cause."""
    broken = BROKEN[fault]
    with pytest.raises(CheckFailed) as caught:
        check_dynamics(broken.make(), broken.states(), compiled=False)
    report = caught.value.report
    assert report.failed == broken.fails, str(report)  # pyright: ignore
    assert all(finding.cause for finding in report.failures)  # pyright: ignore


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_field_passes(name: str) -> None:
    """Networks, structures, one system, float32, time."""
    right = RIGHT[name]
    report = check_dynamics(right.make(), right.states(), compiled=False)
    assert report.ok
    assert not report.failures


def test_the_error_is_an_assertion_and_a_ctflow_error() -> None:
    """Test runners show the one, callers catch the other."""
    with pytest.raises(AssertionError) as caught:
        check_dynamics(lambda t, y: y[:1], state(), compiled=False)
    assert isinstance(caught.value, CtflowError)


def test_the_example_is_the_smallest_that_fails() -> None:
    """A field that is wrong above 1 alone is shown one sample, and round numbers."""

    def wrong_above_one(t: Tensor, y: Tensor) -> Tensor:
        return torch.where(y > 1, torch.nan, -y)

    report = inspect_dynamics(wrong_above_one, torch.zeros(8, 2, dtype=FLOAT), compiled=False)
    (finding,) = report.failures
    assert finding.example in ("t=0, y=[[2.0, 0.0]]", "t=0, y=[[2.0, 2.0]]")


def test_the_report_prints_name_example_and_cause() -> None:
    """In that order, before what passed."""
    text = str(inspect_dynamics(lambda t, y: y.mean(0) - y, state(), compiled=False))
    pattern = r": 1 fault\n\n  FAILED batch: .*smallest example: t=0, y=.*usual cause: .*passed str"
    assert re.search(pattern, text, re.DOTALL), text


def test_unused_parameters_are_listed_by_name() -> None:
    """All of them, by the names that the module gives them."""
    report = inspect_dynamics(BROKEN["an unused layer"].make(), state(), compiled=False)
    assert "forgotten.weight, forgotten.bias" in report.failures[0].what


def test_a_captured_context_is_told() -> None:
    """ctflow sends its gradient on; others would drop it."""
    report = inspect_dynamics(RIGHT["encoder with gradients"].make(), state(), compiled=False)
    assert "[2]" in report.note("context")


def test_the_field_is_left_as_it_was() -> None:
    """Finite differences move parameters, and put them back bit for bit."""
    f = RIGHT["network"].make()
    before = [p.clone() for p in f.parameters()]  # pyright: ignore
    random = torch.get_rng_state()
    check_dynamics(f, state(), compiled=False)
    after = list(f.parameters())  # pyright: ignore
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert torch.equal(random, torch.get_rng_state())


def test_args_reach_the_field() -> None:
    """As its third argument, and their gradient is looked at."""
    rate = torch.tensor(2.0, dtype=FLOAT, requires_grad=True)
    report = check_dynamics(lambda t, y, k: -k * y, state(), args=rate, compiled=False)
    assert report.ok
    with pytest.raises(CheckFailed, match="no gradient reaches"):
        check_dynamics(lambda t, y, k: -k.detach() * y, state(), args=rate, compiled=False)


def test_args_may_have_a_row_for_each_sample() -> None:
    """As the noise of a trace estimator has: a sample alone then has its own row."""
    noise = torch.linspace(-1, 1, 8, dtype=FLOAT).reshape(4, 2)
    check_dynamics(lambda t, y, e: torch.tanh(y) * e, state(), args=noise, compiled=False)
    report = inspect_dynamics(lambda t, y, e: y.sum(0) * e, state(), args=noise + 2, compiled=False)
    assert report.failed == ("batch",)


def test_args_that_are_changed_are_seen_and_given_back() -> None:
    """By the same property as the state."""
    scale = torch.ones(2, dtype=FLOAT)

    def f(t: Tensor, y: Tensor, args: dict[str, Tensor]) -> Tensor:
        if not torch.is_grad_enabled():
            args["scale"].mul_(2)
        return -y * args["scale"]

    report = inspect_dynamics(f, state(), args={"scale": scale}, compiled=False)
    assert report.failed == ("inputs",), str(report)
    assert report.failures[0].what == "it changed `args` in place"


def test_args_that_are_exchanged_are_seen() -> None:
    """What is put into the caller's own dict stays there."""

    def f(t: Tensor, y: Tensor, args: dict[str, Tensor]) -> Tensor:
        args["rate"] = args["rate"] * 1.1
        return -args["rate"] * y

    report = inspect_dynamics(f, state(), args={"rate": torch.tensor(1.0)}, compiled=False)
    assert report.failed == ("inputs",), str(report)
    assert report.failures[0].what == "it put something else into the container `args`"


def test_what_a_sample_alone_raises_is_told_as_that() -> None:
    """The message of a call that nobody made would be a riddle."""
    report = inspect_dynamics(lambda t, y: y.squeeze() * 1.0, state(), compiled=False)
    (finding,) = report.failures
    assert finding.name == "batch"
    assert finding.what.startswith("sample 0 alone cannot be evaluated: InvalidProblem: `f` must")


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_field_of_torch_jit_is_looked_at_like_any_other() -> None:
    """Its parameters are found in the graph."""
    net = torch.jit.trace(network(), state())
    report = check_dynamics(lambda t, y: net(y), state(), compiled=False)
    assert report.ok


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_narrower_dtype_inside_is_noted(dtype: torch.dtype) -> None:
    """Solves cannot be more accurate; a field in its own dtype has no such note."""
    net = network().to(dtype)
    wide = FLOAT if dtype == torch.float32 else torch.float32
    y = state().to(wide)
    report = check_dynamics(lambda t, y: net(y.to(dtype)).to(y.dtype), y, compiled=False)
    assert "between neighbouring states" in report.note("precision")
    assert check_dynamics(OnState(network()), state(), compiled=False).note("precision") == ""


def test_a_field_under_torch_compile_can_be_looked_at() -> None:
    """What dynamo looks up on states that are no leaves is no fault; torch.func may not follow."""
    net = torch.compile(network(), backend="eager")
    report = inspect_dynamics(lambda t, y: net(y), state(), compiled=False, examples=3)
    assert set(report.failed) <= {"transforms"}, str(report)


def test_small_units_are_no_fault() -> None:
    """The step of a difference is as small as the box."""
    micro = 1e-6
    y = micro * state()
    check_dynamics(
        lambda t, y: micro * torch.sin(y / micro), y, box=(-micro, micro), compiled=False
    )


def test_a_batch_that_is_none_can_be_declared() -> None:
    """Coupled particles are one system."""
    check_dynamics(lambda t, y: y.mean(0) - y, state(), batched=False, compiled=False)


@pytest.mark.parametrize(
    ("times", "box"), [((1.0, 1.0), (-1, 1)), ((0.0, 1.0), (1, -1))], ids=["times", "box"]
)
def test_an_empty_box_is_refused(times: tuple[float, float], box: tuple[float, float]) -> None:
    """With what to give instead."""
    with pytest.raises(InvalidProblem):
        check_dynamics(lambda t, y: -y, state(), times, box=box)


def test_the_notes_tell_kinks_stiffness_and_the_outside() -> None:
    """Information, which fails nothing."""
    rates = torch.tensor([1.0, 1e3], dtype=FLOAT)

    def stiff(t: Tensor, y: Tensor) -> Tensor:
        return torch.where(t > 1, torch.nan, -rates * y + torch.relu(y))

    report = check_dynamics(stiff, state(), compiled=False)
    assert "after the interval it is not finite" in report.note("outside")
    assert "its derivative jumps" in report.note("smoothness")
    assert "explicit methods need at least" in report.note("stiffness")
