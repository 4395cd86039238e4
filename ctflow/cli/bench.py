"""`ctflow bench`: the solvers side by side."""

from __future__ import annotations

import shlex
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from ctflow.cli.checkout import find_root, load_shared
from ctflow.cli.options import Check, Preset, Root, configured
from ctflow.cli.output import one_line_errors
from ctflow.errors import CtflowError

__all__ = ["bench"]


class Part(StrEnum):
    """Which half of the work to measure."""

    FORWARD = "forward"
    GRADIENT = "gradient"


class Peer(StrEnum):
    """Whose solvers are measured beside ours."""

    TORCHDIFFEQ = "torchdiffeq"
    TORCHODE = "torchode"
    DIFFRAX = "diffrax"


def bench(
    context: typer.Context,
    workloads: Annotated[
        list[str] | None,
        typer.Argument(
            help="spiral-mlp, cnf-2d, latent-ode, odenet-conv (none: these four); or scaling-batch,"
            " scaling-parameters, scaling-tolerance, scaling-memory, scaling-depth."
        ),
    ] = None,
    preset: Annotated[
        Preset,
        typer.Option(
            help="smoke: seconds, no claim; quick: minutes a workload; full: up to an hour."
        ),
    ] = Preset.QUICK,
    threads: Annotated[int, typer.Option(min=1, help="Threads of every contestant.")] = 1,
    repeats: Annotated[
        int | None, typer.Option(min=1, help="Rounds; otherwise the preset's.")
    ] = None,
    only: Annotated[Part | None, typer.Option(help="Measure this half alone.")] = None,
    skip: Annotated[
        list[Peer] | None, typer.Option(help="Leave a peer out; may be given several times.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of weights and initial states.")] = 0,
    diffrax_python: Annotated[
        Path | None,
        typer.Option(
            help="Python of an environment with jax and diffrax; otherwise one is made once, under"
            " the user's cache directory."
        ),
    ] = None,
    root: Root = None,
    check: Check = False,
) -> None:
    """Time ctflow's backends beside torchdiffeq, torchode and diffrax, interleaved.

    Needs a source checkout of ctflow. Results go to reproductions/results/benchmarks/. A peer that
    is not there is left out, with one line that says so.

    For example:

        ctflow bench spiral-mlp --preset smoke --skip diffrax
        ctflow bench --check
        ctflow bench latent-ode --only gradient --threads 2
    """
    with one_line_errors(context):
        driver = load_shared(find_root(Path.cwd(), root), "benchmarks.driver", "has no benchmarks")
        if preset.value not in driver.PRESETS:
            raise CtflowError(
                f"the benchmarks have no preset {preset.value!r}; there are: "
                f"{', '.join(driver.PRESETS)}. Take one of these."
            )
        given = {
            "threads": threads,
            "rounds": repeats,
            "only": None if only is None else only.value,
            "skip": tuple(peer.value for peer in skip or ()),
            "seed": seed,
            "diffrax_python": None if diffrax_python is None else str(diffrax_python),
            "command": _command(workloads or [], preset, threads, repeats, only, skip or [], seed),
        }
        changes = {key: value for key, value in given.items() if value is not None}
        config: Any = configured(driver, "bench", preset.value, changes)
        records = driver.main(workloads or [], config)
    if check and not all(driver.passed(record) for record in records):
        raise typer.Exit(1)


def _command(
    workloads: list[str],
    preset: Preset,
    threads: int,
    repeats: int | None,
    only: Part | None,
    skip: list[Peer],
    seed: int,
) -> str:
    """The command line that gives this run again, without paths of this machine."""
    words = ["ctflow", "bench", *workloads, "--preset", preset.value, "--threads", str(threads)]
    words += [] if repeats is None else ["--repeats", str(repeats)]
    words += [] if only is None else ["--only", only.value]
    words += [word for peer in skip for word in ("--skip", peer.value)]
    return shlex.join([*words, "--seed", str(seed)])
