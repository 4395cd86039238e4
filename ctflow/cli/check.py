"""`ctflow check`: is a vector field sane?"""

from __future__ import annotations

import json
from typing import Annotated

import torch
import typer

from ctflow.cli.output import one_line_errors
from ctflow.cli.target import Dtype, find_field, find_function, parse_shape, parse_times
from ctflow.testing import (
    Autonomous,
    Conserves,
    DivergenceFree,
    FlowProperty,
    Law,
    Linear,
    inspect_dynamics,
)

__all__ = ["check"]


def check(
    context: typer.Context,
    target: Annotated[str, typer.Argument(help="package.module:field or file.py:field.")],
    shape: Annotated[str, typer.Option(help="Shape of a state, the batch first: 8,2.")],
    times: Annotated[str, typer.Option(help="Interval of the solve.")] = "0,1",
    low: Annotated[float, typer.Option(help="Least value of a component.")] = -2.0,
    high: Annotated[float, typer.Option(help="Largest value of a component.")] = 2.0,
    dtype: Annotated[Dtype, typer.Option(help="Dtype of the states.")] = Dtype.FLOAT64,
    batched: Annotated[
        bool | None,
        typer.Option("--batched/--one-system", help="Whether dimension 0 is a batch."),
    ] = None,
    conserves: Annotated[
        list[str] | None, typer.Option(help="Quantity Q(y) that is kept, as module:function.")
    ] = None,
    linear: Annotated[bool, typer.Option("--linear", help="It is linear in y.")] = False,
    autonomous: Annotated[
        bool, typer.Option("--autonomous", help="It does not depend on t.")
    ] = False,
    divergence_free: Annotated[
        bool, typer.Option("--divergence-free", help="It keeps volumes.")
    ] = False,
    flow: Annotated[bool, typer.Option("--flow", help="Two solves make one; back again.")] = False,
    compiled: Annotated[
        bool,
        typer.Option(
            "--compiled/--no-compiled", help="Whether the compiled backend must trace it."
        ),
    ] = True,
    examples: Annotated[int, typer.Option(min=1, help="Places to look at.")] = 10,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the examples.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Check a vector field: what solvers and gradients need of it, and the laws you declare.

    Exit code 0: no fault; 1: a fault; 2: it could not be checked.

    For example:

        ctflow check mypackage.models:Field --shape 8,2
        ctflow check pendulum.py:field --shape 8,2 --conserves pendulum.py:energy
    """
    with one_line_errors(context):
        declared: list[tuple[bool, Law]] = [
            (linear, Linear()),
            (autonomous, Autonomous()),
            (divergence_free, DivergenceFree()),
            (flow, FlowProperty()),
        ]
        laws = [law for wanted, law in declared if wanted]
        laws += [Conserves(find_function(name), f"conserves {name}") for name in conserves or []]
        report = inspect_dynamics(
            find_field(target, dtype.torch),
            torch.zeros(parse_shape(shape, target), dtype=dtype.torch),
            parse_times(times),
            laws=laws,
            box=(low, high),
            batched=batched,
            compiled=compiled,
            examples=examples,
            seed=seed,
        )
    typer.echo(json.dumps(report.as_dict(), indent=2) if as_json else str(report))
    if not report.ok:
        raise typer.Exit(1)
