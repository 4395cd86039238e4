"""`ctflow certify`: is a tolerance good enough?"""

from __future__ import annotations

import json
from typing import Annotated

import typer

from ctflow.backends.protocol import Gradient, Solver
from ctflow.cli.output import one_line_errors
from ctflow.cli.target import Dtype, load_problem, users_code
from ctflow.testing import certify as certify_solver

__all__ = ["certify"]


def certify(
    context: typer.Context,
    target: Annotated[
        str, typer.Argument(help="package.module:name or file.py:name of a field or a problem.")
    ],
    shape: Annotated[str, typer.Option(help="Shape of a state, unless it is a problem.")] = "",
    times: Annotated[str, typer.Option(help="Output times, the start first.")] = "0,1",
    backend: Annotated[str, typer.Option(help="Backend that solves now.")] = "native",
    method: Annotated[str | None, typer.Option(help="Its method.")] = None,
    gradient: Annotated[str | None, typer.Option(help="direct, checkpointed or adjoint.")] = None,
    rtol: Annotated[float | None, typer.Option(help="Its relative tolerance.")] = None,
    atol: Annotated[float | None, typer.Option(help="Its absolute tolerance.")] = None,
    accuracy: Annotated[
        float, typer.Option(help="Relative error of outputs and gradient that is good enough.")
    ] = 1e-2,
    dtype: Annotated[Dtype, typer.Option(help="Dtype of the state.")] = Dtype.FLOAT64,
    seed: Annotated[int, typer.Option(min=0, help="Seed of state and loss.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the certificate as JSON.")] = False,
) -> None:
    """Certify a solver's tolerance for a problem, and recommend one that is good enough.

    Exit code 0: adequate; 1: not adequate; 2: it could not be certified.

    For example:

        ctflow certify mypackage.models:Field --shape 8,2 --rtol 1e-3 --atol 1e-6
        ctflow certify model.py:problem --backend torchdiffeq --gradient adjoint
    """
    with one_line_errors(context):
        problem = load_problem(target, shape, times, dtype.torch, seed)
        chosen: Gradient | None = gradient  # pyright: ignore[reportAssignmentType] - Solver checks it
        solver = Solver(backend, method, rtol, atol, gradient=chosen)
        with users_code(target):
            found = certify_solver(problem, solver, accuracy=accuracy, seed=seed)
    typer.echo(json.dumps(found.as_dict(), indent=2) if as_json else str(found))
    if not found.adequate:
        raise typer.Exit(1)
