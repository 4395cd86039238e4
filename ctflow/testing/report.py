"""What a check found out: one finding for each property, and a report that prints well."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any, Literal, ParamSpec, TypeAlias, cast

from ctflow.errors import CheckFailed
from ctflow.state import map_leaves

__all__ = ["Finding", "Outcome", "Report", "plain", "reporting"]

Outcome: TypeAlias = Literal["passed", "failed", "skipped", "note"]

P = ParamSpec("P")

_WIDTH = 96


@dataclass(frozen=True)
class Finding:
    """What one property came to.

    Args:
        name: The property's name.
        outcome: "passed", "failed", "skipped", or "note" for information that is no judgement.
        what: What was seen; empty where it passed.
        example: The smallest example that shows it.
        cause: The usual cause, and what to do.
    """

    name: str
    outcome: Outcome
    what: str = ""
    example: str = ""
    cause: str = ""

    def lines(self) -> list[str]:
        """The finding as it is printed."""
        mark = "FAILED" if self.outcome == "failed" else self.outcome
        text = [_wrap(f"{mark} {self.name}: {self.what}", "  ")]
        if self.example:
            text.append(textwrap.indent(f"smallest example: {self.example}", "      "))
        if self.cause:
            text.append(_wrap(f"usual cause: {self.cause}", "      "))
        return text


@dataclass(frozen=True)
class Report:
    """All findings about one subject.

    Args:
        title: What was checked, and on what.
        findings: One for each property, in the order in which they were looked at.
    """

    title: str
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing failed."""
        return not self.failures

    @property
    def failures(self) -> tuple[Finding, ...]:
        """The findings that failed."""
        return self.having("failed")

    @property
    def failed(self) -> tuple[str, ...]:
        """Names of the properties that failed."""
        return tuple(finding.name for finding in self.failures)

    def having(self, outcome: Outcome) -> tuple[Finding, ...]:
        """The findings with one outcome."""
        return tuple(finding for finding in self.findings if finding.outcome == outcome)

    def note(self, name: str) -> str:
        """What was found under this name; empty if nothing was."""
        return next((finding.what for finding in self.findings if finding.name == name), "")

    def as_dict(self) -> dict[str, object]:
        """Plain data, for JSON."""
        return {
            "title": self.title,
            "ok": self.ok,
            "findings": [asdict(finding) for finding in self.findings],
        }

    def raise_if_failed(self) -> Report:
        """Hand the report on.

        Raises:
            CheckFailed: If a property failed; its message is this report.
        """
        if not self.ok:
            raise CheckFailed(self)
        return self

    def __str__(self) -> str:
        """Failures first, each with its example and usual cause; then what passed."""
        n = len(self.failures)
        count = "no fault" if not n else f"{n} fault{'s' if n > 1 else ''}"
        lines = [f"{self.title}: {count}"]
        for finding in self.failures:
            lines += ["", *finding.lines()]
        passed = ", ".join(finding.name for finding in self.having("passed"))
        lines += ["", _wrap(f"passed {passed or 'nothing'}", "  ")]
        skipped: dict[str, list[str]] = {}
        for finding in self.having("skipped"):
            skipped.setdefault(finding.what, []).append(finding.name)
        lines += [
            _wrap(f"skipped {', '.join(names)}: {why}", "  ") for why, names in skipped.items()
        ]
        for finding in self.having("note"):
            lines += finding.lines()
        return "\n".join(lines)


def plain(data: Any) -> Any:  # noqa: ANN401
    """Nested plain data as JSON can write it: None for what is infinite or no number."""
    return map_leaves(lambda x: None if isinstance(x, float) and not isfinite(x) else x, data)


def reporting(check: Callable[P, Report]) -> Callable[P, Report]:
    """A check that hands its report back whatever it says."""

    def inspect(*args: P.args, **kwargs: P.kwargs) -> Report:
        try:
            return check(*args, **kwargs)
        except CheckFailed as error:
            return cast("Report", error.report)

    inspect.__doc__ = f"The report of `{check.__name__}`, whatever it says."
    inspect.__wrapped__ = check  # pyright: ignore - for inspect.signature
    return inspect


def _wrap(text: str, indent: str) -> str:
    return "\n".join(
        textwrap.fill(line, _WIDTH, initial_indent=indent, subsequent_indent=f"{indent}    ")
        for line in text.splitlines()
    )
