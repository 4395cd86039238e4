"""`ctflow bench`: workload by workload, from a drawn case to its results."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from _harness.bands import Band
from _harness.live import LiveLine
from _harness.records import run_as, write_json
from rich.console import Console

from benchmarks.limits import Cost, chains, cost, limit
from benchmarks.measuring import Pace, Spread, Timed, in_rounds, ratio
from benchmarks.report import Row, markdown, summary, table, wide_enough
from benchmarks.scaling import SWEEPS, run_sweep
from benchmarks.setting import PRESETS, Config, Found, first_runs, line_up, origin, quiet
from benchmarks.setting import peaks as measured_peaks
from benchmarks.targets import compared, fastest, overheads
from benchmarks.torch_peers import reference
from benchmarks.workloads import WORKLOADS, Case, Workload
from ctflow.errors import CtflowError

__all__ = ["PRESETS", "Config", "main", "passed", "run"]


def main(names: Sequence[str], config: Config) -> list[Mapping[str, object]]:
    """Run the workloads, print and write what was found.

    Raises:
        CtflowError: If there is no such workload.
    """
    known = (*WORKLOADS, *SWEEPS)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise CtflowError(
            f"there is no workload {unknown[0]!r}; there are: {', '.join(known)}. "
            "Give one of these names."
        )
    console = Console()
    with quiet(config.threads):
        return [
            run_sweep(SWEEPS[name], config, console)
            if name in SWEEPS
            else run(WORKLOADS[name], config, console)
            for name in names or WORKLOADS
        ]


def passed(record: Mapping[str, object]) -> bool:
    """Whether every number of a record is where it should be, targets included."""
    bands = [*_list(record.get("targets", [])), *_list(record["bands"])]
    return all(band["passed"] for band in bands)


def run(workload: Workload, config: Config, console: Console) -> dict[str, object]:
    """One workload."""
    run_as(config.command)
    torch._dynamo.reset()
    case = workload.case(config.seed, config.rows)
    with LiveLine(console) as line, ExitStack() as stack:

        def show(text: str) -> None:
            line.show(f"{case.name}: {text}")

        entered, absent = line_up(case, config, stack, show)
        show("reference in float64")
        truth = reference(
            workload.case(config.seed, config.rows, torch.float64),
            gradients=config.only != "forward",
        )
        found, failed = first_runs(entered, truth, show)
        probes, unlimited = _probes(case, config, show)
        timed: list[Timed] = [*(each.contestant for each in found), *probes]
        samples = in_rounds(timed, Pace(config.rounds, config.seconds), show)
        peaks = measured_peaks(case, found, config, show) if config.memory else {}
    price = cost(samples)
    rows = _rows(found, samples, price, peaks)
    entries = [row.entry for row in rows]
    limits = {row.entry.key: row.limit for row in rows}
    asked = (*config.tasks, *config.peers)
    errors = {row.entry.key: row.error for row in rows}
    targets = compared(workload.name, entries, samples, asked, errors)
    targets += overheads(entries, samples, limits, price.f)
    bands = _accuracy(rows, case)
    absentees = [*absent, *failed, *unlimited]
    lines = table(f"{case.name}, {config.threads} thread(s)", rows, absentees)
    wide_enough(console, lines).print(
        lines, *map(str, [*targets, *bands]), sep="\n", highlight=False
    )
    record: dict[str, object] = {
        "workload": case.record(),
        "config": config.record(),
        "command": config.command,
        "environment": origin(found),
        "rows": [row.record() for row in rows],
        "cost_ms": {"f": _finite(price.f), "f_and_vjp": _finite(price.f_and_vjp)},
        "skipped": absentees,
        "targets": [band.record() for band in targets],
        "bands": [band.record() for band in bands],
        "samples_ms": samples,
    }
    _write(case.name, config, record, rows)
    return record


def _probes(
    case: Case, config: Config, show: Callable[[str], None]
) -> tuple[list[Timed], list[str]]:
    """What the limit is measured with, compiled; nothing where it cannot be compiled."""
    if not config.limits:
        return [], []
    probes = chains(case, gradients=config.only != "forward")
    try:
        for probe in probes:
            show(f"compiling {probe.key}")
            probe.first()
    except Exception as error:  # no compiler, or an operation that it cannot do
        reason = (str(error).splitlines() or [""])[0][:300]
        return [], [f"limit: {type(error).__name__}: {reason}"]
    return probes, []


def _rows(
    found: Sequence[Found],
    samples: Mapping[str, Sequence[float | None]],
    price: Cost,
    peaks: Mapping[str, int | None],
) -> list[Row]:
    entries = [each.contestant.entry for each in found]
    rows = []
    for each in found:
        entry = each.contestant.entry
        versus = {}
        for peer in ("torchdiffeq", "diffrax"):
            other = fastest(entries, samples, {"library": [peer], "task": [entry.task]})
            if other is not None and entry.library != peer:
                versus[peer] = ratio(samples, other.key, entry.key).median
        times, least = Spread.of(samples[entry.key]), limit(entry, each.tally, price)
        rows.append(
            Row(
                entry,
                times,
                each.tally,
                versus,
                None if least is None else _finite(least),
                each.error,
                max(0.0, each.first - times.median / 1e3),
                peaks.get(entry.key),
            )
        )
    return rows


def _accuracy(rows: Sequence[Row], case: Case) -> list[Band]:
    """Speed is not bought with accuracy: our errors beside the largest of the peers'."""
    rounding = 10 * torch.finfo(case.leaves[0].dtype).eps
    bands = []
    for row in rows:
        peers = [
            other.error
            for other in rows
            if other.entry.task == row.entry.task and not other.entry.library.startswith("ctflow")
        ]
        if row.entry.library.startswith("ctflow") and peers:
            value = row.error / max(rounding, *peers)
            bands.append(Band(f"{row.entry.key}, error over the peers' largest", value, high=3.0))
    return bands


def _write(name: str, config: Config, record: Mapping[str, object], rows: Sequence[Row]) -> None:
    threads = "1-thread" if config.threads == 1 else f"{config.threads}-threads"
    folder = config.results / f"{name}-{threads}"
    write_json(folder / f"{config.preset}.json", record)
    (folder / f"{config.preset}.md").write_text(markdown(record, rows), encoding="utf-8")
    if config.preset == "smoke":
        return
    best: dict[str, Path] = {}  # of each folder, the preset that measures longest
    for preset in ("quick", "full"):
        best |= {p.parent.name: p for p in sorted(config.results.glob(f"*-thread*/{preset}.json"))}
    records = [json.loads(best[key].read_text(encoding="utf-8")) for key in sorted(best)]
    (config.results / "README.md").write_text(summary(records), encoding="utf-8")


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) and value > 0 else None


def _list(value: object) -> list[dict[str, object]]:
    return list(value) if isinstance(value, list) else []
