"""On a device without float64, whose backward passes run in threads of their own, all is the same.

No such device need be here: `narrow.py` makes one.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.once

ROOT = Path(__file__).parents[2]
ROUNDING = 2e-5  # float32, over some tens of steps
CASES = (
    "direct", "checkpointed", "adjoint", "shared", "rk4", "scipy", "torchdiffeq", "running cost",
    "dense", "event", "rodas5p", "flow, probes", "flow, exact", "flow, adjoint",
)  # fmt: skip


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """What every case gave on the CPU and there."""
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.backends.narrow"],
        capture_output=True, text=True, timeout=300, cwd=ROOT,
    )  # fmt: skip
    if run.returncode:
        raise RuntimeError(run.stderr)
    return json.loads(run.stdout)


def test_every_case_of_the_script_is_asked_for(found: dict[str, Any]) -> None:
    """None is forgotten here."""
    assert tuple(found) == CASES


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_the_cpu(found: dict[str, Any], case: str) -> None:
    """To float32's rounding: times are float32 there, and float64 on the CPU."""
    assert not isinstance(found[case], str), found[case]
    for wanted, got in found[case]:
        assert flat(got) == pytest.approx(flat(wanted), rel=ROUNDING, abs=ROUNDING)


def flat(values: object) -> list[float]:
    """Numbers of nested lists."""
    return [x for each in values for x in flat(each)] if isinstance(values, list) else [values]
