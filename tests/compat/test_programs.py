"""torchdiffeq's own tests and examples, unmodified, where a checkout of them is named."""

from __future__ import annotations

import json
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

# What fails there with torchdiffeq's own code too, or by the chance of rounding.
_EXPECTED = {
    "odeint_tests": {"test_min_max_step"},
    "event_tests": {
        "test_odeint (reverse=False, dtype=torch.float32, device='cpu', ode='sine', "
        "method='explicit_adams')"
    },
}


def _there(program: Program) -> bool:
    packages = [name for name in program.needs if find_spec(name) is None]
    return checkout(program.of) is not None and not packages


@pytest.mark.slow
@pytest.mark.parametrize("program", SUITES[:4], ids=lambda p: p.name)
def test_its_own_tests_pass(program: Program, tmp_path: Path) -> None:
    """All but those that are named, with the reason, in docs/compat.md."""
    if not _there(program):
        pytest.skip(f"set CTFLOW_TORCHDIFFEQ_CHECKOUT to {COMMITS['torchdiffeq']}")
    found = ran(program, "ctflow", tmp_path)
    assert set(failures(found.output)) <= _EXPECTED.get(program.name, set()), found.output


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.name)
def test_its_examples_run_to_their_end(program: Program, tmp_path: Path) -> None:
    """With exit code 0."""
    if not _there(program):
        pytest.skip(f"set CTFLOW_TORCHDIFFEQ_CHECKOUT to {COMMITS['torchdiffeq']}")
    found = ran(program, "ctflow", tmp_path)
    assert found.code == 0, found.output


@pytest.mark.parametrize("which", ["suites", "times"])
def test_the_page_has_the_table_of_the_results(which: str) -> None:
    """The committed numbers, and no others."""
    results = json.loads(RESULTS.read_text())
    assert table(results, which) in PAGE.read_text()
    assert results["commits"] == COMMITS
