"""`ctflow compare`: the same problem under several solvers."""

from __future__ import annotations

from typing import Annotated

import typer

from ctflow.backends import get
from ctflow.backends.protocol import Gradient, Solver
from ctflow.cli.output import one_line_errors
from ctflow.cli.target import Dtype, load_problem, users_code
from ctflow.errors import CtflowError
from ctflow.testing import compare as compare_solvers

__all__ = ["compare"]

_GRADIENTS: dict[str, Gradient] = {
    "direct": "direct",
    "checkpointed": "checkpointed",
    "adjoint": "adjoint",
}


def compare(
    context: typer.Context,
    target: Annotated[
        str, typer.Argument(help="package.module:name or file.py:name of a field or a problem.")
    ],
    shape: Annotated[str, typer.Option(help="Shape of a state, unless it is a problem.")] = "",
    times: Annotated[str, typer.Option(help="Output times, the start first.")] = "0,1",
    solver: Annotated[
        list[str] | None,
        typer.Option(
            help="backend or backend:gradient; again for more; else all that do not compile first."
        ),
    ] = None,
    rtol: Annotated[
        float | None, typer.Option(help="Tolerance, relative and absolute; else the default.")
    ] = None,
    dtype: Annotated[Dtype, typer.Option(help="Dtype of the state.")] = Dtype.FLOAT64,
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs.")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="Seed of state and loss.")] = 0,
    most: Annotated[
        float | None, typer.Option(help="Exit with code 1 where a difference is larger.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON.")] = False,
) -> None:
    """Compare solvers on a problem: values, gradients, evaluations, time, memory.

    Exit code 0: done; 1: a difference is larger than `--most`, or a solver failed; 2: it could not
    be compared.

    For example:

        ctflow compare mypackage.models:Field --shape 8,2 --times 0,0.5,1
        ctflow compare model.py:problem --solver native:adjoint --solver torchdiffeq --most 1e-4
    """
    with one_line_errors(context):
        problem = load_problem(target, shape, times, dtype.torch, seed)
        solvers = [_solver(text) for text in solver] if solver else None
        with users_code(target):
            table = compare_solvers(problem, solvers, rtol=rtol, repeats=repeats, seed=seed)
    typer.echo(table.to_json() if as_json else str(table))
    failed = any(row.failure for row in table.rows)
    if failed or (most is not None and not table.widest <= most):
        raise typer.Exit(1)


def _solver(text: str) -> Solver:
    backend, _, gradient = text.partition(":")
    if gradient and gradient not in _GRADIENTS:
        raise CtflowError(
            f"`--solver` must read backend or backend:gradient, got {text!r}. "
            f"The gradients are {', '.join(_GRADIENTS)}."
        )
    get(backend)  # raises if there is no such backend
    return Solver(backend=backend, gradient=_GRADIENTS.get(gradient))
