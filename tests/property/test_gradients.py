"""Every backend and gradient method gives the same gradient of everything, at any problem."""

from __future__ import annotations

import pytest

pytest.importorskip("hypothesis")

from hypothesis import example, given, settings

from ctflow import Solver, Unsupported
from ctflow.backends import Feature, get
from ctflow.testing.routes import prompt
from tests.checks import check_relative
from tests.property.strategies import trials
from tests.property.trial import (
    Choices,
    gradient_of,
    make_trial,
    reference,
    reference_second,
    second_of,
)

RTOL = 1e-8
BETWEEN_STEPS = Choices("Forced", "matrix", None, (0.0, 0.1875, 0.375, 0.5625, 0.75), "interior", 0)
"""The gradient at an output inside a long step, 43 tolerances off as is the interpolant."""

OFFERED = {
    "direct": Feature.DIRECT,
    "checkpointed": Feature.CHECKPOINTED,
    "adjoint": Feature.ADJOINT,
}
ROUTES = [
    Solver(backend=name, gradient=gradient, rtol=RTOL, atol=RTOL)
    for name in prompt()
    for gradient, feature in OFFERED.items()
    if feature in get(name).features
]
"""What is installed joins by itself; what compiles has its own draws of few fields."""

routes = pytest.mark.parametrize(
    "route", ROUTES, ids=lambda route: f"{route.backend}-{route.gradient}"
)


@routes
@settings(max_examples=8)
@given(choices=trials())
@example(choices=BETWEEN_STEPS)
def test_every_route_gives_the_same_gradient(route: Solver, choices: Choices) -> None:
    """For y0, parameters, args and times; per sample for a batch where the backend can."""
    trial = make_trial(choices)
    found = gradient_of(trial, route)
    check_relative(found, reference(choices), rtol=trial.amplified(RTOL))


@settings(max_examples=30)
@given(choices=trials())
def test_checkpointed_is_direct(choices: Choices) -> None:
    """Redoing the accepted steps gives the numbers of back-propagating through them."""
    trial = make_trial(choices)
    direct = gradient_of(trial, Solver(gradient="direct", rtol=1e-6, atol=1e-6))
    found = gradient_of(trial, Solver(gradient="checkpointed", rtol=1e-6, atol=1e-6))
    check_relative(found, direct, rtol=1e-9)


@settings(max_examples=10)
@given(choices=trials(batched=True))
def test_coupling_does_not_change_the_gradient(choices: Choices) -> None:
    """A batch with a step size for each sample has the gradient of one with a common size."""
    trial = make_trial(choices)
    shared = gradient_of(trial, Solver(coupling="shared", rtol=RTOL, atol=RTOL))
    check_relative(shared, reference(choices), rtol=trial.amplified(RTOL))


@routes
@settings(max_examples=4)
@given(choices=trials(longest=2.0))
def test_a_second_differentiation_is_right_or_refused(route: Solver, choices: Choices) -> None:
    """For y0, parameters, args and times together; never a part that is silently missing."""
    trial = make_trial(choices)
    if Feature.SECOND_ORDER in get(route.backend).features and route.gradient == "direct":
        found = second_of(trial, route)
        check_relative(found, reference_second(choices), rtol=trial.amplified(RTOL))
    else:
        with pytest.raises(Unsupported, match="a second time"):
            second_of(trial, route)
