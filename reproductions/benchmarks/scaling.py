"""How time, accuracy, memory and compile time grow: one figure for each question."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Literal

import torch
from _harness.bands import Band
from _harness.live import LiveLine
from _harness.records import need, run_as, write_figure, write_json
from rich.console import Console
from rich.table import Table
from torch import nn

from benchmarks.measuring import Entry, Pace, Spread, in_rounds
from benchmarks.setting import Config, Found, first_runs, line_up, origin, peaks
from benchmarks.torch_peers import reference
from benchmarks.workloads import WORKLOADS, Case, Plain, Workload

__all__ = ["SWEEPS", "Point", "Sweep", "run_sweep"]


@dataclass(frozen=True)
class Sweep:
    """One question.

    Args:
        name: What it is called.
        title: Title of its figure.
        axis: What stands on the horizontal axis.
        sizes: What is swept, smallest first.
        make: Draws the case of one size, from the size and the settings.
        y: What stands on the vertical axis.
        modes: Which modes take part.
        libraries: Whose.
    """

    name: str
    title: str
    axis: str
    sizes: Sequence[float]
    make: Callable[[float, Config], Case]
    y: Literal["milliseconds", "peak_bytes", "compile_seconds"] = "milliseconds"
    modes: Sequence[str] = ("forward", "checkpointed", "direct")
    libraries: Sequence[str] = ("ctflow native", "ctflow compiled", "torchdiffeq", "diffrax")

    def takes(self, entry: Entry) -> bool:
        """Whether a contestant has a line; ours has the exact gradient that needs less memory."""
        if entry.mode not in self.modes or entry.library not in self.libraries:
            return False
        ours = entry.library.startswith("ctflow")
        return self.y == "peak_bytes" or not (ours and entry.mode == "direct")


@dataclass(frozen=True)
class Point:
    """One contestant at one size.

    Args:
        size: What was swept.
        entry: Who.
        milliseconds: Time of a call; None where it was not asked.
        error: Relative error; None where it was not asked.
        compile_seconds: First call less a warm one.
        peak_bytes: Rise of resident memory; None where it was not asked.
        steps: Accepted forward steps.
    """

    size: float
    entry: Entry
    milliseconds: Spread | None
    error: float | None
    compile_seconds: float
    peak_bytes: int | None
    steps: int | None

    def record(self) -> dict[str, object]:
        """The point as it stands in a result file."""
        return {
            "size": self.size,
            **self.entry._asdict(),
            "milliseconds": None if self.milliseconds is None else self.milliseconds._asdict(),
            "error": self.error,
            "compile_seconds": self.compile_seconds,
            "peak_bytes": self.peak_bytes,
            "steps": self.steps,
        }


def run_sweep(sweep: Sweep, config: Config, console: Console) -> dict[str, object]:
    """Measure every size, print, and write JSON and PNG."""
    need("matplotlib")
    run_as(config.command)
    from benchmarks.scaling_figure import figure_of  # matplotlib is optional

    sizes = [sweep.sizes[0], sweep.sizes[1]] if config.preset == "smoke" else sweep.sizes
    points: list[Point] = []
    lines: list[str] = []
    found: list[Found] = []
    with LiveLine(console) as line:
        for size in sizes:

            def show(text: str, size: float = size) -> None:
                line.show(f"{sweep.name} {size:g}: {text}")

            found, more, absent = _points(sweep, size, config, show)
            points += more
            lines += [each for each in absent if each not in lines]
    native = [point for point in points if point.entry.library == "ctflow native"]
    modes = {point.entry.mode for point in points if point.entry.library == "ctflow native"}
    compiled_only = "ctflow native" not in sweep.libraries
    wanted = len(sizes) * len(modes)
    bands = (
        [Band("sizes that anybody solved", float(len({p.size for p in points})), low=1.0)]
        if compiled_only
        else [Band("points of ctflow native", float(len(native)), low=float(max(1, wanted)))]
    )
    console.print(_table(sweep, points, lines), *map(str, bands), sep="\n", highlight=False)
    record: dict[str, object] = {
        "sweep": sweep.name,
        "axis": sweep.axis,
        "y": sweep.y,
        "config": config.record(),
        "command": config.command,
        "environment": origin(found),
        "points": [point.record() for point in points],
        "skipped": lines,
        "bands": [band.record() for band in bands],
    }
    suffix = "" if config.threads == 1 else f"-{config.threads}-threads"
    folder = config.results / f"{sweep.name}{suffix}"
    write_json(folder / f"{config.preset}.json", record)
    write_figure(folder / f"{config.preset}.png", figure_of(sweep, points))
    return record


def _points(
    sweep: Sweep, size: float, config: Config, show: Callable[[str], None]
) -> tuple[list[Found], list[Point], list[str]]:
    """Everybody at one size."""
    torch._dynamo.reset()
    case = sweep.make(size, config)
    if "diffrax" not in sweep.libraries:
        config = replace(config, skip=(*config.skip, "diffrax"))
    with ExitStack() as stack:
        entered, absent = line_up(case, config, stack, show)
        truth = None
        if sweep.name == "scaling-tolerance":
            show("reference")
            truth = reference(case, gradients=config.only != "forward")
        taken = [each for each in entered if sweep.takes(each.entry)]
        found, failed = first_runs(taken, truth, show)
        samples: Mapping[str, Sequence[float | None]] = {}
        if sweep.y != "peak_bytes":
            pace = Pace(max(1, config.rounds // 3), config.seconds / 2)
            samples = in_rounds([each.contestant for each in found], pace, show)
    bytes_ = peaks(case, found, config, show) if sweep.y == "peak_bytes" else {}
    return found, [_point(size, each, samples, bytes_) for each in found], absent + failed


def _point(
    size: float,
    found: Found,
    samples: Mapping[str, Sequence[float | None]],
    bytes_: Mapping[str, int | None],
) -> Point:
    key = found.contestant.key
    times = Spread.of(samples[key]) if key in samples else None
    warm = 0.0 if times is None else times.median / 1e3
    return Point(
        size,
        found.contestant.entry,
        times,
        None if math.isnan(found.error) else found.error,
        max(0.0, found.first - warm),
        bytes_.get(key),
        found.tally.accepted,
    )


def _table(sweep: Sweep, points: Sequence[Point], lines: Sequence[str]) -> Table:
    head = {"milliseconds": "ms", "peak_bytes": "peak MiB", "compile_seconds": "compile s"}
    table = Table(sweep.axis, "solver", head[sweep.y], "error", title=sweep.title, box=None)
    for point in points:
        value = {
            "milliseconds": point.milliseconds.median if point.milliseconds else None,
            "peak_bytes": None if point.peak_bytes is None else point.peak_bytes / 2**20,
            "compile_seconds": point.compile_seconds,
        }[sweep.y]
        shown = "-" if value is None else f"{value:.3g}"
        error = "-" if point.error is None else f"{point.error:.1e}"
        table.add_row(f"{point.size:g}", point.entry.key, shown, error)
    table.caption = "\n".join(f"skipped: {line}" for line in lines) or None
    return table


def _plain(
    name: str,
    widths: Sequence[int],
    rows: int,
    t: tuple[float, float, int],
    tolerance: float,
) -> Workload:
    def make() -> tuple[nn.Module, nn.Module]:
        field = Plain(*widths)
        return field, field

    return Workload(name, "plain", make, [(rows, widths[0])], t, tolerance)


def _batch(size: float, config: Config) -> Case:
    times = (0.0, 6.0, 10)
    return _plain("scaling-batch", (4, 20, 20, 4), int(size), times, 1e-6).case(config.seed)


def _parameters(size: float, config: Config) -> Case:
    width = round(math.sqrt(size + 17**2) - 17)  # w (w + 34) + 16 parameters
    widths = (16, max(width, 1), max(width, 1), 16)
    return _plain("scaling-parameters", widths, 32, (0.0, 1.0, 2), 1e-5).case(config.seed)


def _tolerance(size: float, config: Config) -> Case:
    case = WORKLOADS["spiral-mlp"].case(config.seed, dtype=torch.float64)
    return replace(case, name="scaling-tolerance", tolerance=size, reference=1e-12)


def _memory(size: float, config: Config) -> Case:
    workload = _plain("scaling-memory", (16, 64, 16), 256, (0.0, 5.0, 2), size)
    case = workload.case(config.seed, dtype=torch.float64)
    with torch.no_grad():
        for parameter in case.field.parameters():
            parameter.mul_(3.0)  # wound up enough to need many steps at tight tolerances
    return case


def _depth(size: float, config: Config) -> Case:
    widths = (4, *[32] * int(size), 4)
    return _plain("scaling-depth", widths, 32, (0.0, 1.0, 2), 1e-5).case(config.seed)


SWEEPS = {
    sweep.name: sweep
    for sweep in (
        Sweep(
            "scaling-batch",
            "Time against batch (4-20-20-4 tanh, tolerance 1e-6, float32)",
            "rows of the state",
            (1, 10, 100, 1_000, 10_000, 100_000),
            _batch,
        ),
        Sweep(
            "scaling-parameters",
            "Time against parameters (16-w-w-16 tanh, 32 rows, tolerance 1e-5, float32)",
            "parameters",
            (1e3, 1e4, 1e5, 1e6, 1e7),
            _parameters,
        ),
        Sweep(
            "scaling-tolerance",
            "Work against precision (spiral-mlp, tolerances 1e-2 to 1e-10, float64)",
            "tolerance",
            tuple(10.0**-k for k in range(2, 11)),
            _tolerance,
        ),
        Sweep(
            "scaling-memory",
            "Memory against steps (16-64-16 tanh, 256 rows, float64)",
            "tolerance",
            tuple(10.0**-k for k in range(2, 8)),
            _memory,
            y="peak_bytes",
            modes=("checkpointed", "direct", "adjoint"),
            libraries=("ctflow native", "ctflow compiled"),
        ),
        Sweep(
            "scaling-depth",
            "Compile time against depth (hidden layers of 32 units)",
            "hidden layers",
            (1, 2, 4, 8, 16, 32),
            _depth,
            y="compile_seconds",
            modes=("forward", "checkpointed"),
            libraries=("ctflow compiled", "diffrax"),
        ),
    )
}
