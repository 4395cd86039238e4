"""What `certify` says: the verdict, the measurements, the recommendation."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Literal

from ctflow.backends.protocol import Solver
from ctflow.testing.report import plain

__all__ = ["Certificate", "Measured", "written"]


@dataclass(frozen=True)
class Measured:
    """What one solver came to.

    Args:
        solver: The settings.
        value_error: Largest relative error of an output.
        gradient_error: Largest relative error of a part of the gradient.
        n_f_evals: Evaluations of `f`, forward and backward, of the sample that took most.
        failure: Why there is no result, or what it says itself against its gradient.
    """

    solver: str
    value_error: float
    gradient_error: float
    n_f_evals: int
    failure: str = ""

    def within(self, accuracy: float) -> bool:
        """Whether both errors are small enough, and nothing was said against them."""
        return max(self.value_error, self.gradient_error) <= accuracy and not self.failure


@dataclass(frozen=True)
class Certificate:
    """Whether a tolerance is good enough, and what would be.

    Args:
        accuracy: Relative error that was called good enough.
        asked: The solver that was asked about.
        tenth: The same at a tenth of its tolerances.
        second: Another backend at these; None where there is none.
        verdict: "adequate" or "not adequate".
        why: In a sentence or two.
        recommended: The cheapest settings found that are good enough; None if none were.
        recommended_cost: What these came to.
    """

    accuracy: float
    asked: Measured
    tenth: Measured
    second: Measured | None
    verdict: Literal["adequate", "not adequate"]
    why: str
    recommended: Solver | None
    recommended_cost: Measured | None

    @property
    def adequate(self) -> bool:
        """Whether the solver that was asked about is good enough."""
        return self.verdict == "adequate"

    def as_dict(self) -> dict[str, object]:
        """Plain data, for JSON."""
        found: dict[str, object] = plain(asdict(replace(self, recommended=None)))
        found["recommended"] = None if self.recommended is None else written(self.recommended)
        return found

    def __str__(self) -> str:
        """The verdict, the measurements, the recommendation."""
        lines = [
            f"{self.verdict}: {self.why}",
            "",
            f"{'':38} value error  gradient error  evaluations",
        ]
        for name, row in (("asked", self.asked), ("a tenth", self.tenth), ("second", self.second)):
            if row is not None:
                lines.append(_row(name, row))
        if self.recommended is not None and self.recommended_cost is not None:
            lines += [
                _row("recommended", self.recommended_cost),
                "",
                f"use {written(self.recommended)}",
            ]
        elif not self.adequate:
            lines += ["", "no settings were found that are good enough"]
        return "\n".join(lines)


def written(solver: Solver) -> str:
    """Settings as they would be written, without what stands for itself."""
    name = solver.backend if isinstance(solver.backend, str) else solver.backend.name
    parts = [f"backend={name!r}"]
    for key in ("method", "rtol", "atol", "step", "gradient", "coupling", "backward"):
        value = getattr(solver, key)
        if value is not None and (key, value) not in (("method", "dopri5"), ("coupling", "shared")):
            shown = f"{value:.3g}" if isinstance(value, float) else repr(value)
            parts.append(f"{key}={shown}")
    return f"Solver({', '.join(parts)})"


def _row(name: str, row: Measured) -> str:
    what = row.failure if row.n_f_evals == 0 else ""
    numbers = f"{row.value_error:11.1e}  {row.gradient_error:14.1e}  {row.n_f_evals:11d}"
    return f"{name:12} {what or numbers:>65}\n    {row.solver}"
