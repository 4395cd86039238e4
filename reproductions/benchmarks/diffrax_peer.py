"""diffrax as a contestant: requests to a worker process in an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.diffrax_environment import PeerUnavailable
from benchmarks.measuring import Answer, Entry, Tally
from benchmarks.resident import ALLOCATOR
from benchmarks.workloads import Case

__all__ = ["ENTRIES", "Diffrax", "DiffraxWorker"]

_SCRIPTS = Path(__file__).parents[1]
ENTRIES = (
    Entry("diffrax", "forward", "forward"),
    Entry("diffrax", "checkpointed", "exact"),
    Entry("diffrax", "backsolve", "adjoint"),
)


class DiffraxWorker:
    """A context in which a worker process holds a case.

    XLA takes its number of threads from NPROC; the flags `--xla_cpu_multi_thread_eigen=false` and
    `intra_op_parallelism_threads=1`, which are often advised, change nothing in jax 0.10.2 (with
    them, a product of matrices kept two cores busy; with NPROC=1, one).

    Args:
        python: Interpreter of the environment.
        case: What to solve.
        threads: How many threads XLA may use.
        measures_memory: Whether memory goes back to the kernel as soon as it is free; slower.
    """

    def __init__(
        self, python: Path, case: Case, threads: int, *, measures_memory: bool = False
    ) -> None:
        """Start nothing yet."""
        self._python = python
        self._case = case
        single = "--xla_cpu_multi_thread_eigen=false " if threads == 1 else ""
        self._environment: Mapping[str, str] = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "NPROC": str(threads),
            "OMP_NUM_THREADS": str(threads),
            "XLA_FLAGS": f"{single}{os.environ.get('XLA_FLAGS', '')}".strip(),
            **(ALLOCATOR if measures_memory else {}),
        }

    def __enter__(self) -> DiffraxWorker:
        """Start the process and hand it the case.

        Raises:
            PeerUnavailable: If it does not start, or cannot take the case.
        """
        self._folder = tempfile.TemporaryDirectory()
        self._errors = (Path(self._folder.name) / "errors.txt").open("w+")
        self._process = subprocess.Popen(
            [str(self._python), "-m", "benchmarks.diffrax_worker"],
            cwd=_SCRIPTS,
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        path = self.file("case.npz")
        self._case.save(path)
        try:
            self.ask("load", path=str(path), kind=self._case.kind, tolerance=self._case.tolerance)
            self.versions: dict[str, str] = self.ask("versions")
        except PeerUnavailable:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()
        self._errors.close()
        self._folder.cleanup()

    def file(self, name: str) -> Path:
        """A file that both sides can reach, and that goes when the worker does."""
        return Path(self._folder.name) / name

    def ask(self, do: str, **arguments: object) -> Any:  # noqa: ANN401 - what JSON can hold
        """Send a request and wait for its answer.

        Raises:
            PeerUnavailable: If the worker has failed or ended.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        line = ""
        if stdin is not None and stdout is not None:
            try:
                stdin.write(json.dumps({"do": do, **arguments}) + "\n")
                stdin.flush()
                line = stdout.readline()
            except OSError:  # it has ended; what it said last says why
                line = ""
        if not line:
            self._errors.seek(0)
            said = self._errors.read().strip().splitlines()[-1:]
            raise PeerUnavailable(f"the worker ended: {' '.join(said) or 'it said nothing'}")
        reply = json.loads(line)
        if "error" in reply:
            raise PeerUnavailable(reply["error"])
        return reply["value"]


@dataclass(frozen=True)
class Diffrax:
    """One of diffrax's programs.

    Args:
        entry: Which.
        worker: Who runs it.
    """

    entry: Entry
    worker: DiffraxWorker

    @property
    def key(self) -> str:
        """Its name in the samples."""
        return self.entry.key

    def first(self) -> float:
        """Seconds of the first call, which compiles."""
        return self.worker.ask("first", task=self.entry.mode)

    def measure(self, seconds: float) -> float:
        """Milliseconds of one call, timed by the worker."""
        return self.worker.ask("measure", task=self.entry.mode, seconds=seconds)

    def answer(self) -> Answer:
        """What it computes, in torch's layout and order."""
        path = self.worker.file("answer.npz")
        self.worker.ask("answer", task=self.entry.mode, path=str(path))
        with np.load(path) as found:
            states = _joined(found, "s")
            gradients = [_joined(found, letter) for letter in "yp"]
        gradient = None if self.entry.task == "forward" else np.concatenate(gradients)
        return Answer(states, gradient)

    def tally(self) -> Tally:
        """Evaluations, counted by a callback in a run of its own."""
        return Tally(*self.worker.ask("tally", task=self.entry.mode))

    def memory(self) -> int | None:
        """Bytes by which the worker's resident memory rises in a call."""
        return self.worker.ask("memory", task=self.entry.mode)


def _joined(found: Mapping[str, NDArray[np.float64]], letter: str) -> NDArray[np.float64]:
    keys = [key for key in found if key[0] == letter]
    keys.sort(key=lambda key: int(key[1:]))
    if not keys:
        return np.zeros(0)
    return np.concatenate([found[key].astype(np.float64).ravel() for key in keys])
