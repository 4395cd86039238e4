"""What a run of one workload found, as a record, a table on the terminal, and Markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.measuring import ABSOLUTE, Entry, Spread, Tally

__all__ = ["Row", "markdown", "summary", "table", "wide_enough"]

_HEAD = (
    "solver", "mode", "ms", "quartiles", "evaluations", "steps", "vs torchdiffeq", "vs diffrax",
    "limit ms", "overhead", "error", "compile s", "peak MiB",
)  # fmt: skip
_NOTES = (
    "ms: median and quartiles over rounds in which each contestant has a turn. evaluations of f: "
    "forward + backward (diffrax's counted by a callback). steps: accepted + rejected. vs: the "
    "peer's fastest time in the same task over this one, round by round; more is better. limit: "
    "evaluations times the cost of f, and of f with its VJP, in a compiled chain of calls; "
    "overhead: time over limit; below 1, that program has a faster f inside. "
    "error: relative, of the states or of the gradient, against a "
    "float64 solve. compile: first call less a warm one. peak: rise of resident memory in a warm "
    "call, in a process of its own. (!): warned that its gradient is in doubt."
)

_UNIT_NOTE = (
    " adjoint: the absolute tolerance is in units of the incoming gradient with ours, and of the "
    "gradient's own unit with the peers, which is far above the gradient here. adjoint, absolute: "
    'ours with theirs, Tolerances(unit="absolute"); it counts against a peer only where its error '
    "is not the larger. adjoint, scaled: torchdiffeq with ours."
)


@dataclass(frozen=True)
class Row:
    """One contestant's line.

    Args:
        entry: Who it is.
        times: Milliseconds.
        tally: What a run cost.
        versus: The fastest time of a peer in the same task over this one, by peer.
        limit: Milliseconds of the evaluations alone; None where not known.
        error: Relative error of the gradient, or of the states in a forward pass.
        compile_seconds: First call less a warm one.
        peak_bytes: Rise of resident memory; None where not measured.
    """

    entry: Entry
    times: Spread
    tally: Tally
    versus: Mapping[str, float]
    limit: float | None
    error: float
    compile_seconds: float
    peak_bytes: int | None

    @property
    def overhead(self) -> float | None:
        """Time over limit."""
        return self.times.median / self.limit if self.limit else None

    def record(self) -> dict[str, object]:
        """The row as it stands in a result file."""
        return {
            **self.entry._asdict(),
            "milliseconds": self.times._asdict(),
            "evaluations": {"forward": self.tally.forward, "backward": self.tally.backward},
            "steps": {"accepted": self.tally.accepted, "rejected": self.tally.rejected},
            "doubted": self.tally.doubted,
            "versus": dict(self.versus),
            "limit_ms": self.limit,
            "overhead": self.overhead,
            "error": self.error,
            "compile_seconds": self.compile_seconds,
            "peak_bytes": self.peak_bytes,
        }

    def cells(self) -> tuple[str, ...]:
        """The row as text."""
        tally, times = self.tally, self.times
        backward = "" if self.entry.task == "forward" else f" + {_text(tally.backward)}"
        return (
            self.entry.library,
            self.entry.mode + (" (!)" if tally.doubted else ""),
            _number(times.median),
            f"{_number(times.low)}-{_number(times.high)}",
            f"{_text(tally.forward)}{backward}",
            f"{_text(tally.accepted)} + {_text(tally.rejected)}",
            *(_times(self.versus.get(peer)) for peer in ("torchdiffeq", "diffrax")),
            _number(self.limit),
            _times(self.overhead),
            f"{self.error:.1e}",
            f"{self.compile_seconds:.1f}",
            "-" if self.peak_bytes is None else _number(self.peak_bytes / 2**20),
        )


def table(title: str, rows: Sequence[Row], skipped: Sequence[str]) -> Table:
    """The rows for the terminal, forward passes first."""
    found = Table(title=title, title_justify="left", caption_justify="left", box=None)
    for i, head in enumerate(_HEAD):
        found.add_column(head, justify="left" if i < 2 else "right", no_wrap=True)
    last = None
    for row in rows:
        if last not in (None, row.entry.task):
            found.add_section()
        found.add_row(*row.cells())
        last = row.entry.task
    found.caption = _notes(rows) + "".join(f"\nskipped: {line}" for line in skipped)
    return found


def wide_enough(console: Console, table: Table) -> Console:
    """A console that the table fits in: a narrow terminal breaks its lines, but shows them all."""
    cells = ([column.header, *column.cells] for column in table.columns)
    needed = sum(2 + max(len(str(cell)) for cell in column) for column in cells)
    return console if console.width >= needed else Console(width=needed, file=console.file)


def markdown(record: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """One workload's page.

    Args:
        record: What the JSON file holds.
        rows: Its rows.
    """
    workload, targets = record["workload"], record["targets"]
    states = " and ".join(str(shape) for shape in workload["state"])
    lines = [
        f"# {workload['name']}, {_threads(record)}",
        "",
        f"State {states} in {workload['dtype']}, {workload['n_parameters']} parameters, "
        f"{workload['n_times']} times on {workload['t']}, dopri5 at tolerance "
        f"{workload['tolerance']:g}. Gradient: forward and backward of the mean of y squared, with "
        "respect to start and parameters.",
        "",
        *_rows(_HEAD, [row.cells() for row in rows]),
        "",
        _notes(rows),
        "",
        *(f"Skipped: {line}" for line in record["skipped"]),
        "",
        *_targets(targets),
        "",
        *_origin(record),
    ]
    return "\n".join(lines) + "\n"


def summary(records: Sequence[Mapping[str, Any]]) -> str:
    """Every committed workload in one table: ours beside the peers', and the targets.

    With the peers' absolute tolerance ours stands for the task only where no peer's gradient is
    the better one.

    Args:
        records: What the JSON files hold.
    """
    head = ("workload", "threads", "task", "ctflow", "torchdiffeq", "diffrax", "limit")
    cells: list[tuple[str, ...]] = []
    for record in records:
        for task in ("forward", "exact", "adjoint"):
            own = [row for row in record["rows"] if row["task"] == task]
            peers = [_best(own, library) for library in ("torchdiffeq", "diffrax")]
            most = min((row["error"] for row in peers if row is not None), default=math.inf)
            able = [row for row in own if row["mode"] != ABSOLUTE or row["error"] <= most]
            best = [_best(able, "ctflow"), *peers]
            if best[0] is None:
                continue
            cells.append(
                (
                    record["workload"]["name"],
                    str(record["config"]["threads"]),
                    {"exact": "gradient"}.get(task, task),
                    *(_cell(row) for row in best),
                    _number(best[0]["limit_ms"]),
                )
            )
    lines = [
        "# Benchmarks",
        "",
        "Milliseconds of one call, median over interleaved rounds; the fastest of each library in "
        "the task. Written by `ctflow bench`; each folder has the whole table of its workload.",
        "",
        *_rows(head, cells),
    ]
    for record in records:
        lines += ["", f"## {record['workload']['name']}, {_threads(record)}", ""]
        lines += [*_targets(record["targets"]), "", *_origin(record)]
    return "\n".join(lines) + "\n"


def _notes(rows: Sequence[Row]) -> str:
    return _NOTES + (_UNIT_NOTE if any(row.entry.mode == ABSOLUTE for row in rows) else "")


def _best(rows: Sequence[Mapping[str, Any]], library: str) -> Mapping[str, Any] | None:
    own = [row for row in rows if row["library"].startswith(library)]
    return min(own, key=lambda row: row["milliseconds"]["median"], default=None)


def _cell(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "-"
    backend = row["library"].partition(" ")[2]  # of ours
    mode = "" if row["mode"] == "forward" else row["mode"]
    name = f"{backend} {mode}".strip()
    number = _number(row["milliseconds"]["median"])
    return f"{number} ({name})" if name else number


def _targets(targets: Sequence[Mapping[str, Any]]) -> list[str]:
    if not targets:
        return ["No target was asked of this run."]
    cells = [
        (
            each["name"],
            "not measured" if each["value"] is None else f"{each['value']:.3g}x",
            f"at least {each['low']:g}x" if each["low"] is not None else f"at most {each['high']}x",
            "reached" if each["passed"] else "missed",
        )
        for each in targets
    ]
    return _rows(("target", "measured", "wanted", ""), cells)


def _origin(record: Mapping[str, Any]) -> list[str]:
    environment, config = record["environment"], record["config"]
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
    machine = environment["machine"]
    return [
        f"`{record['command']}`, seed {config['seed']}, {config['rounds']} rounds, commit "
        f"{environment['commit']}. {machine['processor'] or machine['architecture']}, "
        f"{machine['cpus']} CPUs, {machine['system']}. {versions}."
    ]


def _threads(record: Mapping[str, Any]) -> str:
    n = record["config"]["threads"]
    return "one thread" if n == 1 else f"{n} threads"


def _rows(head: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *cells]
    return [f"| {' | '.join(line)} |" for line in lines]


def _text(count: int | None) -> str:
    return "?" if count is None else str(count)


def _times(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.2f}x"


def _number(value: float | None) -> str:
    """Three digits, without an exponent."""
    if value is None or math.isnan(value):
        return "-"
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3
    return f"{value:.{digits}f}"
