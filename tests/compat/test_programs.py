"""torchdiffeq's own tests and examples, unmodified, where a checkout of them is named."""

from __future__ import annotations

import json
import os
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.compat.programs import (
    COMMITS,
    PROGRAMS,
    ROOT,
    SUITES,
    Program,
    checkout,
    failures,
    ran,
    table,
)

RESULTS = ROOT / "docs/compat_results.json"
PAGE = ROOT / "docs/compat.md"

# What fails with torchdiffeq's own code too, by the chance of rounding, or for a private attribute.
_EXPECTED = {
    "odeint_tests": {"test_min_max_step"},
    "event_tests": {
        "test_odeint (reverse=False, dtype=torch.float32, device='cpu', ode='sine', "
        "method='explicit_adams')"
    },
    "norm_tests": {"test_adjoint_norm (shape="},
    "torchcde's own tests": {
        "test_example.py::test_logsignature_example",
        "test_log_ode.py::test_with_linear_interpolation",
    },
}


def _skip_without(program: Program) -> None:
    """Say what is to be named for this one to run."""
    if checkout(program.of) is None:
        named = f"CTFLOW_{program.of.upper()}_CHECKOUT"
        pytest.skip(f"{named} names no checkout of {program.of} at {COMMITS[program.of]}")
    for name in program.needs:
        beside = Path(os.environ.get("CTFLOW_COMPAT_PACKAGES", "")) / name
        if find_spec(name) is None and not beside.is_dir():
            pytest.skip(f"{name} is not installed, and not in CTFLOW_COMPAT_PACKAGES")


@pytest.mark.slow
@pytest.mark.parametrize("program", SUITES, ids=lambda p: p.name)
def test_its_own_tests_pass(program: Program, tmp_path: Path) -> None:
    """All but those that are named, with the reason, in docs/compat.md."""
    _skip_without(program)
    found = ran(program, "ctflow", tmp_path)
    unexpected = [
        name
        for name in failures(found.output)
        if not any(name.startswith(known) for known in _EXPECTED.get(program.name, ()))
    ]
    assert not unexpected, found.output


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.name)
def test_its_examples_run_to_their_end(program: Program, tmp_path: Path) -> None:
    """With exit code 0."""
    _skip_without(program)
    found = ran(program, "ctflow", tmp_path)
    assert found.code == 0, found.output


@pytest.mark.parametrize("which", ["suites", "times"])
def test_the_page_has_the_table_of_the_results(which: str) -> None:
    """The committed numbers, and no others."""
    results = json.loads(RESULTS.read_text())
    assert table(results, which) in PAGE.read_text()
    assert results["commits"] == COMMITS
