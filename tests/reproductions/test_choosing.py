"""Tables of docs/choosing.md and docs/migration are those of the committed results, by row."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from benchmarks.measuring import ABSOLUTE, SCALED
from benchmarks.workloads import WORKLOADS

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/choosing.md"
RESULTS = ROOT / "reproductions/results"
SHOWN = ("spiral-mlp", "latent-ode", "cnf-2d")
GRADIENTS = ("direct", "checkpointed", "adjoint")


def result(name: str) -> Any:  # noqa: ANN401
    """One committed file."""
    return json.loads((RESULTS / name).read_text())


def bench(workload: str, library: str, mode: str) -> dict[str, Any]:
    """One row of a benchmark."""
    rows = result(f"benchmarks/{workload}-1-thread/quick.json")["rows"]
    return next(row for row in rows if (row["library"], row["mode"]) == (library, mode))


def ms(workload: str, library: str, mode: str) -> str:
    """A median time."""
    return three(bench(workload, library, mode)["milliseconds"]["median"])


def gradient_rows() -> Iterator[str]:
    """Time, evaluations, memory and error of each gradient method on native."""
    for workload in SHOWN:
        for mode in GRADIENTS:
            row = bench(workload, "ctflow native", mode)
            n = row["evaluations"]
            yield (
                f"| {workload} | `{mode}` | {ms(workload, 'ctflow native', mode)} | "
                f"{n['forward']} + {n['backward']} | {three(row['peak_bytes'] / 2**20)} | "
                f"{row['error']:.0e} |"
            )


def backend_rows() -> Iterator[str]:
    """Time of a solve, and of a solve with its gradient by the fastest method of the backend."""
    libraries = ("ctflow native", "ctflow compiled", "torchdiffeq")
    for workload in SHOWN:
        forward = [ms(workload, library, "forward") for library in libraries]
        yield f"| {workload} | forward | {' | '.join(forward)} |"
        cells = []
        for library in libraries:
            modes = ("direct", "checkpointed") if "ctflow" in library else ("direct",)
            times = {m: bench(workload, library, m)["milliseconds"]["median"] for m in modes}
            best = min(times, key=times.__getitem__)
            cells.append(f"{three(times[best])} ({best})")
        yield f"| {workload} | gradient | {' | '.join(cells)} |"
        adjoint = [ms(workload, library, "adjoint") for library in libraries]
        yield f"| {workload} | adjoint | {' | '.join(adjoint)} |"


def adjoint_rows() -> Iterator[str]:
    """What the same tolerance asks of two adjoints, and each with the other's."""
    names = {
        ("torchdiffeq", "adjoint"): "torchdiffeq",
        ("torchdiffeq", SCALED): "torchdiffeq, `adjoint_atol=` in units of that gradient",
        ("ctflow compiled", "adjoint"): "ctflow, compiled",
        (
            "ctflow compiled",
            ABSOLUTE,
        ): 'ctflow, compiled, `Tolerances(1e-3, 1e-3, unit="absolute")`',
    }
    for (library, mode), name in names.items():
        row = bench("odenet-conv", library, mode)
        yield (
            f"| {name} | {row['evaluations']['backward']} | {ms('odenet-conv', library, mode)} | "
            f"{row['error']:.1%} |"
        )


def tolerance_rows() -> Iterator[str]:
    """One trained ODE-Net at other tolerances."""
    for row in result("tolerance/full.json")["settings"]:
        if row["tolerance"] is None or row["tolerance"] > 0.1:
            continue
        yield (
            f"| {exponent(row['tolerance'])} | {row['forward']:.0f} | "
            f"{row['accuracy']:.2%} | {row['agreement']:.2%} |"
        )


def error_rows() -> Iterator[str]:
    """Relative errors of whole gradients by the adjoint, where nothing warned."""
    points = [p for p in result("adjoint_drift/quick.json")["points"] if not p["doubted"]]
    for tolerance in (1e-4, 1e-6, 1e-8):
        errors = [p["error"] for p in points if p["tolerance"] == tolerance]
        yield (
            f"| {exponent(tolerance)} | {len(errors)} | {median(errors):.0e} | {max(errors):.0e} |"
        )


TABLES = {
    "gradient": gradient_rows,
    "backend": backend_rows,
    "tolerance": tolerance_rows,
    "error": error_rows,
}


@pytest.mark.parametrize("table", TABLES)
def test_every_row_is_what_was_measured(table: str) -> None:
    """In order, and none is missing."""
    rows = list(TABLES[table]())
    assert "\n".join(rows) in PAGE.read_text(), "\n".join(["the rows are", *rows])


def test_the_adjoints_tolerances_are_compared_as_measured() -> None:
    """The table for those who come from torchdiffeq, and the tolerances that its last row names."""
    rows = list(adjoint_rows())
    page = (ROOT / "docs/migration/from_torchdiffeq.md").read_text()
    assert "\n".join(rows) in page, "\n".join(["the rows are", *rows])
    assert WORKLOADS["odenet-conv"].tolerance == 1e-3


def three(value: float) -> str:
    """Three significant digits."""
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}"


def exponent(value: float) -> str:
    """1e-4, not 1e-04."""
    return f"1e{round(math.log10(value))}"
