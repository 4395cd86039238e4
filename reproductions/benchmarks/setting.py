"""Who takes part in a run, and under which settings; what all workloads share."""

from __future__ import annotations

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
from _harness.records import environment

from benchmarks.diffrax_environment import PeerUnavailable, interpreter
from benchmarks.diffrax_peer import ENTRIES, Diffrax, DiffraxWorker
from benchmarks.measuring import Answer, Contestant, Tally
from benchmarks.memory import peak_of_diffrax, peak_of_torch, saved
from benchmarks.torch_peers import contestants, skipped
from benchmarks.workloads import Case
from ctflow.errors import GradientWarning

__all__ = [
    "PRESETS",
    "Config",
    "Found",
    "first_runs",
    "line_up",
    "origin",
    "peaks",
    "quiet",
]

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

    def record(self) -> dict[str, object]:
        """The settings as they stand in a result file: nothing of this machine's paths."""
        left_out = ("results", "diffrax_python", "command")
        return {key: value for key, value in asdict(self).items() if key not in left_out}

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


def first_runs(
    entered: Sequence[Contestant], truth: Answer | None, show: Callable[[str], None]
) -> tuple[list[Found], list[str]]:
    """First call, answer and cost of each; who fails is left out, with the reason."""
    found: list[Found] = []
    failed: list[str] = []
    for each in entered:
        show(f"first call of {each.key}")
        try:
            first = each.first()
            found.append(Found(each, first, each.tally(), _error(each, truth)))
        except Exception as error:  # a peer may fail in any way; it must not end the others
            message = " ".join(str(error).split())[:300]
            failed.append(f"{each.key}: {type(error).__name__}: {message}")
    return found, failed


def _error(contestant: Contestant, truth: Answer | None) -> float:
    if truth is None:
        return float("nan")
    answer = contestant.answer()
    got, right = answer.states, truth.states
    if answer.gradients is not None and truth.gradients is not None:
        got, right = answer.gradients, truth.gradients
    return float(np.linalg.norm(got - right) / np.linalg.norm(right))


def peaks(
    case: Case, found: Sequence[Found], config: Config, show: Callable[[str], None]
) -> dict[str, int | None]:
    """Peak memory of each, in bytes."""
    found_peaks: dict[str, int | None] = {}
    with saved(case) as path:
        for each in found:
            entry = each.contestant.entry
            show(f"memory of {entry.key}")
            if entry.library == "diffrax":
                python = Path(config.diffrax_python or interpreter(show))
                found_peaks[entry.key] = peak_of_diffrax(python, case, entry, config.threads)
            else:
                found_peaks[entry.key] = peak_of_torch(path, entry.key, config.threads)
    return found_peaks


def origin(found: Sequence[Found]) -> dict[str, object]:
    """What a result depends on, with diffrax's versions and the processor's name."""
    record = environment()
    versions, machine = _dict(record["versions"]), _dict(record["machine"])
    for each in found:
        if isinstance(each.contestant, Diffrax):
            versions = versions | each.contestant.worker.versions
    return record | {"versions": versions, "machine": machine | {"processor": _processor()}}


def _processor() -> str:
    """The processor's name where the system tells it, and the vectors that torch uses on it."""
    vectors = torch.backends.cpu.get_cpu_capability()
    return f"{_model() or platform.machine()} ({vectors})"


def _model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor())


def _dict(value: object) -> dict[str, object]:
    return dict(value) if isinstance(value, Mapping) else {}
