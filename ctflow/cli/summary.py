"""The summary of many runs: our number, the paper's, the accepted band, and the verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ctflow.cli.outcome import Outcome
from ctflow.cli.registry import Listed

__all__ = ["accepted", "number", "print_list", "print_summary"]

_IN_A_LOG = 140  # columns where there is no terminal


def number(value: float | None) -> str:
    """Four digits, or a dash.

    Example:
        >>> number(0.16384), number(None)
        ('0.1638', '-')
    """
    return "-" if value is None else f"{value:.4g}"


def accepted(low: float | None, high: float | None) -> str:
    """A band in words.

    Example:
        >>> accepted(0.27, 0.57), accepted(None, 2.0), accepted(1.2, None)
        ('0.27 to 0.57', 'at most 2', 'at least 1.2')
    """
    if low is not None and high is not None:
        return f"{low:g} to {high:g}"
    return (
        "anything" if low is high else f"at least {low:g}" if high is None else f"at most {high:g}"
    )


def print_summary(console: Console, outcomes: Mapping[str, Outcome]) -> None:
    """Every number of every run, then a line with how many are as they should be."""
    table = Table(box=box.SIMPLE_HEAD, title="Summary", title_justify="left", pad_edge=False)
    table.add_column("number")
    for heading in ("ours", "the paper's", "accepted"):
        table.add_column(heading, justify="right")
    table.add_column("verdict", no_wrap=True)
    for name, outcome in outcomes.items():
        table.add_row(Text(name, style="bold"))
        for row in _rows(outcome):
            table.add_row(*map(Text, row))
        table.add_section()
    wide = console if console.is_terminal else Console(file=console.file, width=_IN_A_LOG)
    wide.print(table)
    console.print(_counts(outcomes), highlight=False, soft_wrap=True)


def print_list(console: Console, known: Sequence[Listed]) -> None:
    """What there is, what it shows, and how long it takes: minutes of one processor."""
    for each in known:
        times = (f"{preset} {minutes:g} min" for preset, minutes in each.minutes.items())
        also = f" (also {', '.join(each.aliases)})" if each.aliases else ""
        of = f"{each.of}: " if each.of else ""
        console.print(Text.assemble((each.name, "bold"), also), soft_wrap=True)
        below = f"{of}{each.shows}\n{', '.join(times) or 'not timed'}"
        console.print(Padding(Text(below), (0, 0, 0, 4), expand=False))


def _rows(outcome: Outcome) -> list[tuple[str, str, str, str, str]]:
    if outcome.ended != "done":
        return [(f"  {outcome.reason}", "", "", "", outcome.ended)]
    if not outcome.bands:
        return [("  makes no claim at this preset", "", "", "", "done")]
    return [_row(band) for band in outcome.bands]


def _row(band: Mapping[str, Any]) -> tuple[str, str, str, str, str]:
    return (
        f"  {band['name']}",
        number(band["value"]),
        number(band.get("paper")),
        accepted(band["low"], band["high"]),
        "pass" if band["passed"] else "MISS",
    )


def _counts(outcomes: Mapping[str, Outcome]) -> str:
    ended = [outcome.ended for outcome in outcomes.values()]
    bands = [band for outcome in outcomes.values() for band in outcome.bands]
    passed = sum(bool(band["passed"]) for band in bands)
    runs = (f"{ended.count(kind)} {kind}" for kind in dict.fromkeys(ended))
    return f"{passed} of {len(bands)} numbers are within their bands; runs: {', '.join(runs)}."
