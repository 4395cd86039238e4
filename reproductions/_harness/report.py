"""One page with every figure and table: what the paper claims, ours, and the numbers of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from _harness.collected import Result, Section, benchmarks, sections, sweeps
from _harness.pictures import picture
from _harness.quoted import quoted
from _harness.records import need, write_text
from _harness.report_parts import (
    accepted,
    band_table,
    figure,
    figures,
    number,
    passed,
    setting,
    table,
    verdict,
)
from _harness.report_style import STYLE

__all__ = ["page", "write_report"]

_TASKS = {"forward": "forward", "exact": "gradient", "adjoint": "adjoint"}
_LIBRARIES = ("ctflow compiled", "ctflow native", "torchdiffeq", "torchode", "diffrax")


def write_report(results: Path) -> Path:
    """Write the page of the results below a folder, and what README.md quotes of them.

    Args:
        results: reproductions/results of a checkout.

    Returns:
        Where the page is.
    """
    need("matplotlib")
    path = results / "report" / "index.html"
    write_text(path, page(results))
    write_text(path.with_name("quoted.md"), quoted(results))
    return path


def page(results: Path) -> str:
    """The whole page, in one piece, without scripts."""
    found = sections(results)
    with_results = [each for each in found if each.results]
    measured = benchmarks(results)
    waiting = ", ".join(each.entry.name for each in found if not each.results)
    body = [
        _overview(with_results),
        *map(_section, with_results),
        _backends(with_results),
        _benchmarks(measured, sweeps(results)),
        f"<p class=soft>Without committed results: {escape(waiting)}.</p>" if waiting else "",
    ]
    return (
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        "<title>ctflow: the paper, reproduced</title>"
        '<link rel=icon href="data:,">'
        f"<style>{STYLE}</style></head>\n<body><header><h1>Neural Ordinary Differential Equations,"
        " reproduced</h1>"
        "<p>Every figure and table of Chen, Rubanova, Bettencourt and Duvenaud 2018 (arXiv"
        " 1806.07366v5), and what came after it, computed by ctflow. Each number stands beside the"
        " paper's, where the paper has one, and beside the range in which it is accepted.</p>"
        "<p class=soft>Made by <code>ctflow report</code> from the committed results."
        "</p></header>\n<main>\n" + "\n".join(body) + "\n</main>\n<footer><p>ctflow is free"
        " software under the MIT licence.</p></footer></body></html>\n"
    )


def _overview(found: Sequence[Section]) -> str:
    rows: list[list[str]] = []
    for section in found:
        link = f'<a href="#{section.entry.name}">{escape(section.entry.name)}</a>'
        presets = "<br>".join(f"{escape(r.title)}: {_tally(r)}" for r in section.results)
        rows.append([link, escape(section.entry.of), escape(section.entry.shows), presets])
    return table(["reproduction", "of the paper ", "shows ", "numbers within their bands "], rows)


def _tally(result: Result) -> str:
    """How many numbers are accepted, and the verdict on all."""
    good = [passed(band) for band in result.bands]
    return f"{sum(good)} of {len(good)} {verdict(all(good))}"


def _section(section: Section) -> str:
    entry = section.entry
    which = "The paper" if "beyond" not in entry.of else "Others"
    return "\n".join(
        [
            f'<section id="{entry.name}"><h2>{escape(_title(section))}</h2>',
            f"<p class=soft>{escape(entry.shows[0].upper() + entry.shows[1:])}."
            f" <code>ctflow reproduce {entry.name}</code></p>",
            f"<p class=claim>{which}: {escape(entry.claim)}</p>",
            figures(section),
            band_table(section),
            *map(setting, section.results),
            "</section>",
        ]
    )


def _title(section: Section) -> str:
    of = section.entry.of
    return f"{of[0].upper()}{of[1:]}: {section.entry.name}"


def _backends(found: Sequence[Section]) -> str:
    """The same weights under every backend and gradient, of `digits`; trainings, of `backends`."""
    by_name = {section.entry.name: section for section in found}
    parts = ["<section id=backends-side-by-side><h2>Backends side by side</h2>"]
    if "digits" in by_name:
        rows = [
            [
                f"{escape(row['backend'])}, {escape(row['gradient'])}",
                f"{100 * row['accuracy']:.2f} %",
                f"{row['forward']:.1f} + {row['backward']:.1f}",
                f"{row['milliseconds']:.0f} ms",
                f"{row['difference']:.1e}",
            ]
            for row in by_name["digits"].results[-1].record["comparison"]
        ]
        head = ["backend, gradient", "accuracy", "evaluations", "time", "gradient's difference"]
        parts.append(table(head, rows, "The same weights of an ODE-Net (digits)"))
    if "backends" in by_name:
        runs = by_name["backends"].results[-1].record["runs"]
        errors: dict[str, list[float]] = {}
        for run in runs:
            errors.setdefault(run["backend"], []).append(run["error_percent"])
        rows = [
            [escape(name), f"{sum(own) / len(own):.2f} %", ", ".join(f"{e:.2f}" for e in own)]
            for name, own in errors.items()
        ]
        head = ["backend", "mean error", "by seed"]
        parts.append(table(head, rows, "The same training, each by its own backend (backends)"))
    return "\n".join([*parts, "</section>"])


def _benchmarks(measured: Sequence[Mapping[str, Any]], grown: Sequence[Result]) -> str:
    """The fastest of each library in each task, every target with its verdict, what grows how."""
    parts = [
        "<section id=benchmarks><h2>Benchmarks</h2><p>Milliseconds of one call, median over"
        " interleaved rounds, of the fastest way of each library in the task; all have the same"
        " weights, start, method and tolerances. <code>ctflow bench</code></p>"
    ]
    rows: list[list[str]] = []
    for record in measured:
        for task, called in _TASKS.items():
            own = [row for row in record.get("rows", []) if row["task"] == task]
            rows += [_fastest(f"{_workload(record)}, {called}", own)] if own else []
    parts.append(table(["workload, task", *_LIBRARIES], rows))
    targets = [
        [
            f"{_workload(record)}: {escape(target['name'])}",
            number(target["value"]),
            accepted(target),
            verdict(passed(target)),
        ]
        for record in measured
        for target in record.get("targets", [])
    ]
    parts.append(table(["target", "measured", "wanted ", "verdict "], targets))
    cells = [
        figure(picture(path), each.title, f"ctflow bench {each.title}")
        for each in grown
        for path in each.pictures
    ]
    parts.append(f"<div class=grid>{''.join(cells)}</div>" if cells else "")
    for record in measured:
        parts.append(setting(Result(_workload(record), "", record, (), {})))
    parts += [setting(each) for each in grown]
    return "\n".join([*parts, "</section>"])


def _fastest(title: str, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    best: dict[str, float] = {}
    for row in rows:
        median = row["milliseconds"]["median"]
        best[row["library"]] = min(best.get(row["library"], median), median)
    return [title, *(f"{best[name]:.3g}" if name in best else "" for name in _LIBRARIES)]


def _workload(record: Mapping[str, Any]) -> str:
    return escape(str(record["workload"]["name"]))
