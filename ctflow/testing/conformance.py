"""`run_backend_conformance`: is this backend right?"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ctflow.backends import registry
from ctflow.backends.protocol import Backend, Solver
from ctflow.backends.tableau import Tableau
from ctflow.testing import conduct_demands as conduct
from ctflow.testing import gradient_demands as gradients
from ctflow.testing import value_demands as values
from ctflow.testing.bench import Bench
from ctflow.testing.random_problems import random_problems
from ctflow.testing.report import Finding, Report, reporting
from ctflow.testing.routes import label
from ctflow.testing.subject import said

__all__ = ["inspect_backend", "run_backend_conformance"]


@dataclass(frozen=True)
class _Demand:
    """One demand on a backend.

    Args:
        name: Its name in reports.
        wrong: What is wrong with one route, or None.
        cause: The usual cause.
        routes: "forward" for each coupling; "gradient" for each coupling and gradient method.
    """

    name: str
    wrong: Callable[[Bench, Solver], str | None]
    cause: str
    routes: str = "forward"


_FORWARD = (
    _Demand("honest", conduct.honest, "`features` and `refuse` say different things."),
    _Demand("inputs", values.inputs_kept, "a buffer of the caller is used for the result."),
    _Demand(
        "closed_form",
        values.closed_form,
        "a wrong coefficient, a step that is not cut at t1, or tolerances that are not passed on.",
    ),
    _Demand("sample_times", values.sample_times, "the times of the first sample stand for all."),
    _Demand(
        "precision",
        values.precision,
        "states or times pass through float32, or tolerances have a floor.",
    ),
    _Demand(
        "between_steps",
        values.between_steps,
        "an interpolant of lower order than the steps; end a step at every output instead.",
    ),
    _Demand("methods", values.methods, "a method under a name that means another one."),
    _Demand("fixed_steps", values.fixed_steps, "`step` is not passed on, or sets a maximum."),
    _Demand("inside", conduct.inside, "the last step is not cut at t1 before it is tried."),
    _Demand("failures", conduct.failures, "a failure is not looked for, or told as a number."),
    _Demand("max_steps", conduct.max_steps, "the library counts anew in each output interval."),
    _Demand("per_sample", conduct.per_sample, "one norm or one step size for the whole batch."),
    _Demand("statistics", conduct.statistics, "evaluations of the first step are not counted."),
    _Demand("uncontrolled", conduct.uncontrolled, "`problem.uncontrolled` is not looked at."),
    _Demand("local_error", conduct.local_error, "the feature is declared by mistake."),
    _Demand(
        "structures", values.structures, "leaves are packed in one order, unpacked in another."
    ),
)
_CAPTURES = (
    "autograd.Function was given fewer tensors than `f` reads: use ctflow.backends.captures."
)
_GRADIENTS = (
    _Demand(
        "no_grad", gradients.no_grad, "the gradient method runs whether or not it is asked for."
    ),
    _Demand("gradient_y0", gradients.gradient_of_y0, "outputs inside the interval are left out."),
    _Demand("gradient_params", gradients.gradient_of_params, _CAPTURES),
    _Demand("gradient_args", gradients.gradient_of_args, _CAPTURES),
    _Demand("gradient_captured", gradients.gradient_of_captured, _CAPTURES),
    _Demand(
        "gradient_t0", gradients.gradient_of_t0, "dL/dt0 = -a(t0+) . f(t0, y0): mind the sign."
    ),
    _Demand("gradient_times", gradients.gradient_of_times, "dL/dt_i = g_i . f(t_i, y_i)."),
    _Demand(
        "gradient_sample_times",
        gradients.gradient_of_sample_times,
        "dL/dt_i = g_i . f(t_i, y_i), sample by sample.",
    ),
    _Demand(
        "gradient_output_0",
        gradients.gradient_of_output_0,
        "the gradient of output 0 is added where it has been added before.",
    ),
    _Demand(
        "late_branch",
        gradients.late_branch,
        "what `f` reads is looked for at the start only; look again in the backward pass.",
    ),
    _Demand(
        "second_order",
        gradients.second_order,
        "the backward pass is not recorded; refuse a second one (ctflow.backends.captures).",
    ),
    _Demand(
        "quadrature",
        gradients.quadrature,
        "the parameters' integral has no part in the error control, and nothing says so.",
    ),
)


def run_backend_conformance(
    backend: str | Backend,
    *,
    method: str | Tableau | None = None,
    examples: int = 20,
    kinds: int | None = None,
    seed: int = 0,
) -> Report:
    """Raise unless a backend is right: values, failures, statistics, and every gradient.

    Every demand is made of every combination of coupling and gradient method that the backend
    declares. Two lines in a test file:

        def test_conformance():
            run_backend_conformance("mysolver")

    Args:
        backend: Its name, or an object.
        method: Its method, where it has no dopri5.
        examples: Random problems at the end, compared with our own solver at 1e-11.
        kinds: Draw these from so many kinds of fields, structures and routes, with values, batch
            sizes, times and directions of their own; None: from all. For a backend that compiles
            a program for each kind.
        seed: Of these.

    Returns:
        The report, where nothing failed.

    Raises:
        CheckFailed: If a demand is not met; names it, the route and the usual cause.
        BackendUnavailable: If there is no such backend.

    Cost:
        A few hundred solves; and for each example one at 1e-11 and one at 1e-7, with gradients.
        The demands before the examples share their fields: a backend that compiles makes some
        twenty programs for each coupling, and two for each kind.

    Example:
        >>> run_backend_conformance("native", examples=2).ok
        True
    """
    bench = Bench(registry.get(backend), method, examples, seed, kinds)
    findings = [_look(bench, demand, tuple(bench.forward_routes())) for demand in _FORWARD]
    routes = tuple(bench.gradient_routes())
    if any(finding.outcome == "failed" for finding in findings):
        what = "says nothing while the forward pass is wrong"
        findings += [Finding(demand.name, "skipped", what) for demand in _GRADIENTS]
    else:
        findings += [_look(bench, demand, routes) for demand in _GRADIENTS]
    findings.append(_random(bench, routes, findings))
    couplings = ", ".join(bench.couplings)
    methods = ", ".join(bench.gradients) or "no gradients"
    report = Report(f"backend {bench.backend.name!r} ({couplings}; {methods})", tuple(findings))
    return report.raise_if_failed()


inspect_backend = reporting(run_backend_conformance)
"""The report of `run_backend_conformance`, whatever it says; takes its arguments."""


def _look(bench: Bench, demand: _Demand, routes: Iterable[Solver]) -> Finding:
    for solver in routes:
        try:
            wrong = demand.wrong(bench, solver)
        except Exception as error:  # whatever the backend raises is the finding
            wrong = said(error)
        if wrong is not None:
            return Finding(demand.name, "failed", f"{wrong} [{label(solver)}]", cause=demand.cause)
    return Finding(demand.name, "passed")


def _random(bench: Bench, routes: tuple[Solver, ...], findings: list[Finding]) -> Finding:
    if any(finding.outcome == "failed" for finding in findings) or not routes:
        return Finding("random_problems", "skipped", "there is enough to see above")
    for recipe, wrong in random_problems(bench, routes):
        if wrong is not None:
            cause = "a combination of structure, batch and times that nothing above has."
            return Finding("random_problems", "failed", wrong, str(recipe), cause)
    return Finding("random_problems", "passed")
