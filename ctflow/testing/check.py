"""`check_dynamics`: is my vector field sane?"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from ctflow.backends import registry
from ctflow.errors import CtflowError
from ctflow.problem import ODEProblem
from ctflow.state import State, leaves_of
from ctflow.testing import notes
from ctflow.testing.derivatives import reach
from ctflow.testing.examples import Box, Case, shrink
from ctflow.testing.laws import Law
from ctflow.testing.properties import PROPERTIES, Property
from ctflow.testing.report import Finding, Report, reporting
from ctflow.testing.subject import Subject, said, untouched_copy
from ctflow.testing.tracing import follow

__all__ = ["check_dynamics", "inspect_dynamics"]


def check_dynamics(
    f: Callable[..., Any],
    states: State,
    times: Sequence[float] = (0.0, 1.0),
    *,
    args: Any = None,  # noqa: ANN401 - handed to f as it is
    laws: Iterable[Law] = (),
    box: tuple[float, float] = (-2.0, 2.0),
    batched: bool | None = None,
    compiled: bool = True,
    examples: int = 10,
    seed: int = 0,
) -> Report:
    """Raise unless a vector field is what solvers and gradients need it to be.

    Looked at: structure, shapes, dtype and device; inputs left alone; results not overwritten;
    two calls agree; no hidden state; a sample alone equals it in its batch; scalar and broadcast
    times agree; no_grad; torch.func; finite values and derivatives; vector-Jacobian products
    against finite differences; every tensor that wants a gradient is reached; the compiled backend
    can trace it. For information: behaviour outside the interval, kinks, stiffness.

    Args:
        f: `f(t, y)`, or `f(t, y, args)` where `args` is given.
        states: One state. Examples have its structure, shapes, dtype and device; it is the first.
        times: Start and end of the interval on which `f` will be solved.
        args: Third argument of `f`.
        laws: What the field is declared to obey, for example `Conserves(energy)`.
        box: Range of the values of the examples.
        batched: Whether dimension 0 is a batch of independent samples. None: it is where every
            leaf has two dimensions or more and the same first one.
        compiled: Whether to ask if the compiled backend can trace it.
        examples: How many places to look at.
        seed: Seed of the examples.

    Returns:
        The report, where nothing failed.

    Raises:
        CheckFailed: If a property failed: its name, the smallest example, the usual cause.

    Cost:
        About 40 evaluations for each example, and up to three solves. Nothing is compiled.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout())
        >>> try:
        ...     check_dynamics(lambda t, y: net(y), torch.zeros(4, 2), compiled=False)
        ... except AssertionError as error:
        ...     print(error.report.failed)
        ('repeatable',)
    """
    problem = ODEProblem(f, states, torch.tensor([times[0], times[-1]]), args=args)
    leaves = leaves_of(problem.y0)
    if batched is None:
        batched = all(x.dim() > 1 and x.shape[0] == leaves[0].shape[0] for x in leaves)
    low, high = box
    where = Box(states, low, high, float(times[0]), float(times[-1]), batched)
    subject = Subject(f, args, where, where.cases(examples, seed), seed, untouched_copy(f))
    declared = [Property(x.name, x.wrong, x.cause, _COMPARED) for x in laws]
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", _NOT_A_LEAF)  # from torch.compile, inside `f`
        torch.manual_seed(seed)
        findings = [*_each(subject, PROPERTIES), *_whole(subject, compiled)]
        failed = [finding.name for finding in findings if finding.outcome == "failed"]
        findings += _each(subject, declared, failed)
        findings += [] if "structure" in failed else _information(subject, failed)
    title = (
        f"{subject.name}, {examples} examples with t in [{where.t0:g}, {where.t1:g}] and y in "
        f"[{where.low:g}, {where.high:g}]"
    )
    return Report(title, tuple(findings)).raise_if_failed()


inspect_dynamics = reporting(check_dynamics)
"""The report of `check_dynamics`, whatever it says; takes its arguments."""

_NOT_A_LEAF = "The .grad attribute of a Tensor that is not a leaf"
_COMPARED = ("structure", "repeatable", "inputs", "finite")


class _Fault(NamedTuple):
    """What is wrong at an example, and whether `f` raised it."""

    what: str
    raised: bool


def _each(
    subject: Subject, properties: Iterable[Property], failed: Iterable[str] = ()
) -> list[Finding]:
    """One finding for each property that is looked at example by example."""
    without = {name: name for name in failed}  # -> the failure that it goes back to
    findings: list[Finding] = []
    for prop in properties:
        missing = [name for name in prop.after if name in without]
        if missing:
            root = without[prop.name] = without[missing[0]]
            findings.append(Finding(prop.name, "skipped", f"says nothing without {root}"))
        elif prop.batched and not subject.box.batched:
            findings.append(Finding(prop.name, "skipped", "dimension 0 is no batch"))
        else:
            finding = _look(subject, prop)
            findings.append(finding)
            if finding.outcome == "failed":
                without[prop.name] = prop.name
    return findings


def _look(subject: Subject, prop: Property) -> Finding:
    for case in subject.cases:
        fault = _fault(subject, prop, case)
        if fault is not None:
            break
    else:
        return Finding(prop.name, "passed")

    def fails_too(other: Case) -> bool:
        found = _fault(subject, prop, other)
        return found is not None and found.raised == fault.raised

    box = subject.box if subject.args is None else replace(subject.box, batched=False)
    smallest = shrink(case, box, fails_too)  # `args` may have a row for each sample
    last = _fault(subject, prop, smallest) or fault
    return Finding(prop.name, "failed", last.what, str(smallest), prop.cause)


def _fault(subject: Subject, prop: Property, case: Case) -> _Fault | None:
    try:
        found = prop.wrong(subject, case)
    except CtflowError as error:
        return _Fault(str(error), raised=False)
    except Exception as error:  # whatever the user's code raises is the finding
        return _Fault(said(error), raised=True)
    return None if found is None else _Fault(found, raised=False)


def _whole(subject: Subject, compiled: bool) -> list[Finding]:
    """Findings about the field as a whole, where it can be evaluated at all."""
    try:
        found = reach(subject)
    except Exception as error:  # the properties have said what is wrong with it
        why = f"it cannot be evaluated ({type(error).__name__})"
        return [Finding(name, "skipped", why) for name in ("reached", "captured", "compiled")]
    reached = Finding("reached", "passed")
    if found.unused:
        reached = Finding(
            "reached",
            "failed",
            f"no gradient reaches {', '.join(found.unused)} at any example",
            cause="a layer that is made and not used, `.detach()` or `.data`, a context that an "
            "encoder computed under no_grad, or the last bias of an energy of which the field is "
            "the gradient. Remove what is not used (bias=False); compute the context with "
            "gradients on.",
        )
    captured = Finding("captured", "passed")
    if found.lost:
        captured = Finding(
            "captured",
            "failed",
            found.lost,
            cause="a tensor with a history is kept where no attribute, closure or container "
            "shows it (a set, a generator, a foreign object).",
        )
    findings = [reached, captured, _compiled(subject) if compiled else _not_asked()]
    if found.computed:
        shapes = ", ".join(str(list(shape)) for shape in found.computed)
        what = f"`f` reads tensors computed elsewhere (of shape {shapes}); ctflow sends their "
        what += "gradient on, but an adjoint given only `f.parameters()` would drop it"
        findings.append(Finding("context", "note", what))
    return findings


def _not_asked() -> Finding:
    return Finding("compiled", "skipped", "not asked for")


def _compiled(subject: Subject) -> Finding:
    """Whether the compiled backend can trace the field: nothing is compiled for it."""
    if "compiled" not in registry.names():
        return Finding("compiled", "skipped", "there is no compiled backend here")
    try:
        follow(subject)
    except CtflowError as error:
        what = " ".join(str(error).split())
    except Exception as error:  # of torch's own tracer
        what = said(error)
    else:
        return Finding("compiled", "passed")
    return Finding("compiled", "failed", what, cause=_UNTRACEABLE)


_UNTRACEABLE = (
    "Python control flow by values, `.item()`, a 0-dim tensor as an index, NumPy, prints, "
    "torch.jit or torch.compile inside. Who does not use backend='compiled' says compiled=False."
)


def _information(subject: Subject, failed: Sequence[str]) -> list[Finding]:
    findings: list[Finding] = []
    noisy = "repeatable" in failed
    looks: dict[str, Callable[[], Finding | None]] = {
        "outside": lambda: notes.outside(subject, noisy),
        "precision": lambda: None if noisy else notes.precision(subject),
        "smoothness": lambda: notes.smoothness(subject, noisy),
        "stiffness": lambda: notes.stiffness(subject),
    }
    for name, look in looks.items():
        try:
            found = look()
            findings += [] if found is None else [found]
        except Exception as error:  # information about a broken field must not hide its faults
            findings.append(Finding(name, "skipped", f"{type(error).__name__} was raised"))
    return findings
