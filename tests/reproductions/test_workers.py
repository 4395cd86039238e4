"""Processes that train end with the one that they work for, however that ends."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Two tasks that go on until they are asked to stop, as a training does, and say who does them.
DRIVER = """
import sys
from functools import partial
from _harness.workers import on_processes
TASK = '''
import os, pathlib, time
from _harness import stopping
with stopping.heeded():
    pathlib.Path({path!r}).write_text(str(os.getpid()))
    while not stopping.asked_to_stop():
        time.sleep(0.05)
    time.sleep(1.0)  # the step that it is in
'''
paths = sys.argv[1:]
on_processes({p: partial(exec, TASK.format(path=p), {}) for p in paths}, len(paths), print)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "times"), [(signal.SIGINT, 1), (signal.SIGINT, 3), (signal.SIGKILL, 1)]
)
def test_no_process_outlives_the_one_that_it_works_for(
    number: int, times: int, tmp_path: Path
) -> None:
    """After Ctrl-C, after impatient ones, and where it was killed; the signals go to it alone."""
    if shutil.which("ps") is None:
        pytest.skip("there is no `ps` to ask whether a process is there")
    files = [tmp_path / "one", tmp_path / "other"]
    path = os.pathsep.join([str(ROOT), str(ROOT / "reproductions")])
    main = subprocess.Popen(
        [sys.executable, "-c", DRIVER, *map(str, files)], start_new_session=True,
        env=os.environ | {"PYTHONPATH": path}, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        _wait(lambda: all(file.exists() and file.read_text() for file in files))
        for _ in range(times):
            main.send_signal(number)
            time.sleep(0.05)
        assert main.wait(timeout=30) != 0
        _wait(lambda: not any(_runs(int(file.read_text())) for file in files))
    finally:
        with suppress(ProcessLookupError):
            os.killpg(main.pid, signal.SIGKILL)
        main.wait()


def _wait(until: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end
        time.sleep(0.1)


def _runs(pid: int) -> bool:
    """Whether it is there and not a dead one that no one has asked about."""
    found = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False
    ).stdout.strip()
    return bool(found) and not found.startswith("Z")
