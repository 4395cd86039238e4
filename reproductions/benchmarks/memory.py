"""Peak memory of a contestant, measured in a process of its own.

What is measured: the rise of the resident memory during one warm call, above what was resident just
before it, with an allocator that returns free memory at once (`resident.growth`). So neither the
libraries nor a compiled program counts; states, records, graphs and temporaries do.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from benchmarks.diffrax_environment import PeerUnavailable
from benchmarks.diffrax_peer import Diffrax, DiffraxWorker
from benchmarks.measuring import Entry
from benchmarks.resident import ALLOCATOR, growth
from benchmarks.torch_peers import contestants
from benchmarks.workloads import Case

__all__ = ["peak_of_diffrax", "peak_of_torch", "saved"]

_SCRIPTS = Path(__file__).parents[1]


@contextmanager
def saved(case: Case) -> Iterator[Path]:
    """A file that holds the case, for processes that measure it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "case.pickle"
        path.write_bytes(pickle.dumps(case))
        yield path


def peak_of_torch(path: Path, key: str, threads: int) -> int | None:
    """Bytes that a contestant of ours or of torch's takes for a saved case; None if not known."""
    process = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "benchmarks.memory", str(path), key, str(threads)],
        cwd=_SCRIPTS,
        env={**os.environ, **ALLOCATOR},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = process.stdout.splitlines()
    return json.loads(lines[-1]) if process.returncode == 0 and lines else None


def peak_of_diffrax(python: Path, case: Case, entry: Entry, threads: int) -> int | None:
    """Bytes that one of diffrax's programs takes; None if not known."""
    try:
        with DiffraxWorker(python, case, threads, measures_memory=True) as worker:
            return Diffrax(entry, worker).memory()
    except PeerUnavailable:
        return None


def main(path: str, key: str, threads: str) -> None:
    """Measure, and print bytes as JSON."""
    torch.set_num_threads(int(threads))
    case = pickle.loads(Path(path).read_bytes())
    contestant = next(each for each in contestants(case) if each.key == key)
    contestant.run()
    contestant.run()
    sys.stdout.write(f"{json.dumps(growth(contestant.run))}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
