"""The parts of the report: tables, figures, and what a result was made with."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from _harness.collected import Result, Section
from _harness.pictures import Picture, picture

__all__ = ["accepted", "band_table", "figure", "figures", "number", "setting", "table", "verdict"]


def number(value: float | None) -> str:
    """Four digits; nothing where there is none."""
    return "" if value is None else f"{value:.4g}"


def accepted(band: Mapping[str, Any]) -> str:
    """A band in words."""
    low, high = band["low"], band["high"]
    if low is not None and high is not None:
        return f"{low:g} to {high:g}"
    if low is None and high is None:
        return "anything"
    return f"at least {low:g}" if high is None else f"at most {high:g}"


def verdict(passed: bool) -> str:
    """A sign and a word: colour only repeats it."""
    return f'<span class="{"pass" if passed else "miss"}">{"✓ pass" if passed else "✗ MISS"}</span>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "") -> str:
    """A table that becomes cards on a narrow screen; cells are HTML, the first names its row.

    Columns whose name ends in a blank hold words, the others numbers.
    """
    kinds = ["" if i == 0 or name.endswith(" ") else ' class="n"' for i, name in enumerate(head)]
    tops = "".join(
        f"<th{kind} scope=col>{escape(name.strip())}</th>"
        for name, kind in zip(head, kinds, strict=True)
    )
    body = "".join(
        "<tr>"
        + "".join(
            f'<td{kind} data-label="{escape(name.strip())}"><span>{cell}</span></td>'
            for name, kind, cell in zip(head, kinds, row, strict=True)
        )
        + "</tr>\n"
        for row in rows
    )
    top = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f"<table class=rows>{top}<thead><tr>{tops}</tr></thead><tbody>\n{body}</tbody></table>"


def band_table(section: Section) -> str:
    """Our numbers of every preset and backend side by side, the paper's beside them."""
    found = {result.title: {b["name"]: b for b in result.bands} for result in section.results}
    names = list(dict.fromkeys(name for bands in found.values() for name in bands))
    paper = {n: b[n]["paper"] for b in found.values() for n in b if b[n]["paper"] is not None}
    head = ["number", *(["the paper's"] if paper else [])]
    for title in found:
        head += [f"{title}: ours", "accepted ", "verdict "]
    rows: list[list[str]] = []
    for name in names:
        row = [escape(name), *([number(paper.get(name))] if paper else [])]
        for bands in found.values():
            band = bands.get(name)
            row += ["", "", ""] if band is None else [
                number(band["value"]), accepted(band), verdict(passed(band))
            ]  # fmt: skip
        rows.append(row)
    return table(head, rows)


def passed(band: Mapping[str, Any]) -> bool:
    """Worked out again, not read."""
    value, low, high = band["value"], band["low"], band["high"]
    return value is not None and (low is None or value >= low) and (high is None or value <= high)


def figures(section: Section) -> str:
    """The pictures of each backend's most thorough result, side by side where there is room."""
    cells: list[str] = []
    drawn = {each.backend: each for each in section.results if each.pictures}
    for result in drawn.values():
        for path in result.pictures:
            shown = picture(path)
            extra = path.name.removeprefix(result.preset).strip(".").rsplit(".", 1)[0]
            what = extra.replace("-", " ") if extra not in ("png", "gif") else ""
            caption = f"{section.entry.name}: {', '.join(filter(None, (result.title, what)))}"
            says = f"{section.entry.of}: {section.entry.shows}; {caption}"
            cells.append(figure(shown, caption, says))
    return f"<div class=grid>{''.join(cells)}</div>" if cells else ""


def figure(shown: Picture, caption: str, says: str) -> str:
    """One picture, its caption, and what it says to those who do not see it."""
    size = f'width="{shown.width}" height="{shown.height}"'
    image = f'<img src="{shown.url}" {size} alt="{escape(says)}">'
    return (
        f"<figure><div class=wide tabindex=0>{image}</div>"
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def setting(result: Result) -> str:
    """Settings, seed, versions, machine, times and commit of a result, to be opened."""
    environment, config = result.environment, dict(result.record["config"])
    machine, seconds = environment["machine"], environment.get("seconds")
    about = {
        "command": environment.get("command") or result.record.get("command"),
        "seed": config.pop("seed", None),
        "commit": environment.get("commit"),
        "time": seconds
        and f"{seconds['elapsed']:g} s elapsed, {seconds['processor']:g} s of the processors",
        "machine": ", ".join(f"{key} {value}" for key, value in machine.items()),
        "versions": ", ".join(f"{k} {v}" for k, v in environment["versions"].items()),
        "settings": "; ".join(f"{k} {_short(v)}" for k, v in config.items() if v is not None),
    }
    lines = "".join(
        f"<dt>{key}</dt><dd>{escape(str(value)) if value is not None else 'not recorded'}</dd>"
        for key, value in about.items()
    )
    return (
        f"<details><summary>What {escape(result.title)} was made with</summary>"
        f"<dl>{lines}</dl></details>"
    )


def _short(value: object) -> str:
    """A setting in one piece, cut where it is long."""
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 160 else f"{text[:150]} ..."
