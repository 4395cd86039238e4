"""`ctflow bench`: workload by workload, from a drawn case to its results."""

from __future__ import annotations

import json
import os
import platform
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from _harness.bands import Band
from _harness.live import LiveLine
from _harness.records import environment, write_json
from rich.console import Console

from benchmarks.diffrax_environment import PeerUnavailable, interpreter
from benchmarks.diffrax_peer import ENTRIES, Diffrax, DiffraxWorker
from benchmarks.limits import Cost, chains, cost, limit
from benchmarks.measuring import Answer, Contestant, Pace, Spread, Tally, Timed, in_rounds, ratio
from benchmarks.memory import peak_of_diffrax, peak_of_torch, saved
from benchmarks.report import Row, markdown, summary, table, wide_enough
from benchmarks.targets import compared, fastest, overheads
from benchmarks.torch_peers import contestants, reference, skipped
from benchmarks.workloads import WORKLOADS, Case, Workload
from ctflow.errors import CtflowError, GradientWarning

__all__ = ["PRESETS", "Config", "Found", "line_up", "main", "passed", "quiet", "run"]

RESULTS = Path(__file__).parents[1] / "results" / "benchmarks"
_TASKS = {"forward": ("forward",), "gradient": ("exact", "adjoint")}
_PEERS = ("torchdiffeq", "torchode", "diffrax")


@dataclass(frozen=True)
class Config:
    """Everything that the result depends on, beside the code and the machine."""

    preset: str
    seed: int = 0
    threads: int = 1
    rounds: int = 15
    seconds: float = 0.1  # of a turn
    rows: int | None = None  # most rows of a state
    only: str | None = None  # "forward" or "gradient"
    skip: tuple[str, ...] = ()  # peers
    limits: bool = True
    memory: bool = True
    diffrax_python: str | None = None  # otherwise an environment of our own
    command: str = "ctflow bench"
    results: Path = RESULTS

    @property
    def tasks(self) -> tuple[str, ...]:
        """What is measured."""
        return tuple(t for name, own in _TASKS.items() if self.only in (None, name) for t in own)

    @property
    def peers(self) -> tuple[str, ...]:
        """Who is asked to take part."""
        return tuple(peer for peer in _PEERS if peer not in self.skip)


PRESETS = {
    "smoke": Config("smoke", rounds=2, seconds=0.0, rows=4, limits=False, memory=False),
    "quick": Config("quick"),
    "full": Config("full", rounds=60, seconds=0.25),
}


@dataclass(frozen=True)
class Found:
    """A contestant that ran, and what its first runs said."""

    contestant: Contestant
    first: float
    tally: Tally
    error: float


def main(names: Sequence[str], config: Config) -> list[Mapping[str, object]]:
    """Run the workloads, print and write what was found.

    Raises:
        CtflowError: If there is no such workload.
    """
    unknown = [name for name in names if name not in WORKLOADS]
    if unknown:
        raise CtflowError(
            f"there is no workload {unknown[0]!r}; there are: {', '.join(WORKLOADS)}. "
            "Give one of these names."
        )
    console = Console()
    with quiet(config.threads):
        return [run(WORKLOADS[name], config, console) for name in names or WORKLOADS]


def passed(record: Mapping[str, object]) -> bool:
    """Whether every number of a record is where it should be, targets included."""
    bands = [*_list(record["targets"]), *_list(record["bands"])]
    return all(band["passed"] for band in bands)


@contextmanager
def quiet(threads: int) -> Iterator[None]:
    """So many threads, no warnings of doubted gradients, and a compiler that remembers nothing."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore", GradientWarning)  # the table marks them
        cache = os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", folder)
        try:
            yield
        finally:
            torch.set_num_threads(before)
            if cache == folder:
                del os.environ["TORCHINDUCTOR_CACHE_DIR"]


def run(workload: Workload, config: Config, console: Console) -> dict[str, object]:
    """One workload."""
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
        found, failed = _first_runs(entered, truth, show)
        probes, unlimited = _probes(case, config, show)
        timed: list[Timed] = [*(each.contestant for each in found), *probes]
        samples = in_rounds(timed, Pace(config.rounds, config.seconds), show)
        peaks = _peaks(case, found, config, show) if config.memory else {}
    price = cost(samples)
    rows = _rows(found, samples, price, peaks)
    entries = [row.entry for row in rows]
    limits = {row.entry.key: row.limit for row in rows}
    asked = (*config.tasks, *config.peers)
    targets = compared(workload.name, entries, samples, asked)
    targets += overheads(entries, samples, limits, price.f)
    bands = _accuracy(rows, case)
    absentees = [*absent, *failed, *unlimited]
    lines = table(f"{case.name}, {config.threads} thread(s)", rows, absentees)
    wide_enough(console, lines).print(
        lines, *map(str, [*targets, *bands]), sep="\n", highlight=False
    )
    record: dict[str, object] = {
        "workload": case.record(),
        "config": {k: v for k, v in asdict(config).items() if k not in _UNRECORDED},
        "command": config.command,
        "environment": _environment(found),
        "rows": [row.record() for row in rows],
        "cost_ms": {"f": _finite(price.f), "f_and_vjp": _finite(price.f_and_vjp)},
        "skipped": absentees,
        "targets": [band.record() for band in targets],
        "bands": [band.record() for band in bands],
        "samples_ms": samples,
    }
    _write(case.name, config, record, rows)
    return record


_UNRECORDED = ("results", "diffrax_python", "command")


def line_up(
    case: Case, config: Config, stack: ExitStack, show: Callable[[str], None]
) -> tuple[list[Contestant], list[str]]:
    """Who takes part, forward passes first; and who does not, with the reason."""
    left_out = [peer for peer in _PEERS if peer not in config.peers]
    lines = [line for line in skipped(case) if not line.startswith(tuple(left_out))]
    entered: list[Contestant] = [*contestants(case)]
    if "diffrax" in config.peers:
        try:
            python = Path(config.diffrax_python or interpreter(show))
            worker = stack.enter_context(DiffraxWorker(python, case, config.threads))
            entered += [Diffrax(entry, worker) for entry in ENTRIES]
        except (PeerUnavailable, OSError) as error:
            lines.append(f"diffrax: {error}")
    wanted = [
        each
        for each in entered
        if each.entry.task in config.tasks and each.entry.library not in left_out
    ]
    return sorted(wanted, key=lambda each: config.tasks.index(each.entry.task)), lines


def _first_runs(
    entered: Sequence[Contestant], truth: Answer, show: Callable[[str], None]
) -> tuple[list[Found], list[str]]:
    """First call, answer and cost of each; who fails is left out, with the reason."""
    found: list[Found] = []
    failed: list[str] = []
    for each in entered:
        show(f"first call of {each.key}")
        try:
            first = each.first()
            found.append(Found(each, first, each.tally(), _error(each.answer(), truth)))
        except Exception as error:  # a peer may fail in any way; it must not end the others
            message = " ".join(str(error).split())[:300]
            failed.append(f"{each.key}: {type(error).__name__}: {message}")
    return found, failed


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


def _error(answer: Answer, truth: Answer) -> float:
    got, right = answer.states, truth.states
    if answer.gradients is not None and truth.gradients is not None:
        got, right = answer.gradients, truth.gradients
    return float(np.linalg.norm(got - right) / np.linalg.norm(right))


def _peaks(
    case: Case, found: Sequence[Found], config: Config, show: Callable[[str], None]
) -> dict[str, int | None]:
    peaks: dict[str, int | None] = {}
    with saved(case) as path:
        for each in found:
            entry = each.contestant.entry
            show(f"memory of {entry.key}")
            if entry.library == "diffrax":
                python = Path(config.diffrax_python or interpreter(show))
                peaks[entry.key] = peak_of_diffrax(python, case, entry, config.threads)
            else:
                peaks[entry.key] = peak_of_torch(path, entry.key, config.threads)
    return peaks


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


def _environment(found: Sequence[Found]) -> dict[str, object]:
    record = environment()
    versions, machine = _dict(record["versions"]), _dict(record["machine"])
    for each in found:
        if isinstance(each.contestant, Diffrax):
            versions = versions | each.contestant.worker.versions
    return record | {"versions": versions, "machine": machine | {"processor": _processor()}}


def _processor() -> str:
    """The processor's name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor())


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


def _dict(value: object) -> dict[str, object]:
    return dict(value) if isinstance(value, Mapping) else {}


def _list(value: object) -> list[dict[str, object]]:
    return list(value) if isinstance(value, list) else []
