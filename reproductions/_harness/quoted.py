"""The numbers of the paper's figures and tables that README.md quotes, as a table in Markdown."""

from __future__ import annotations

from pathlib import Path

from _harness.collected import Result, Section, sections
from _harness.report_parts import accepted

__all__ = ["QUOTED", "quoted"]

# By reproduction, the names of bands.
QUOTED = {
    "figure_1": ("least distance of two neighbours on the ODE's paths",),
    "figure_2_adjoint": ("jumps against dL/dz(t_i)",),
    "table_1": (
        "ODE-Net, error in percent",
        "RK-Net, error in percent",
        "ResNet-6, error in percent",
        "ODE-Net, memory at most over at least steps",
    ),
    "figure_3": ("dopri5: evaluations at 1e-5 over those at 1e-1",),
    "figure_4_density_matching": ("CNF(32) above its bound (nats), the worst target",),
    "figure_5_max_likelihood": (
        "CNF above the entropy (nats), circles",
        "CNF above the entropy (nats), moons",
    ),
    "figure_6_latent_ode": ("RMSE on the observed revolution",),
    "figure_7_poisson": (
        "first peak, middle at half height (paper 0.188)",
        "second peak, middle at half height (paper 0.733)",
    ),
    "table_2_spirals": ("latent ODE, 30/100, median RMSE", "better RNN over latent ODE, 30/100"),
}


def quoted(results: Path) -> str:
    """The table; each number of the most thorough preset that has it, by the script's own backend.

    Args:
        results: reproductions/results of a checkout.
    """
    lines = [
        "| of the paper | number | ours | the paper's | accepted | preset |",
        "|" + " --- |" * 6,
    ]
    for section in sections(results):
        for name in QUOTED.get(section.entry.name, ()):
            lines += _row(section, name)
    return "\n".join(lines) + "\n"


def _row(section: Section, name: str) -> list[str]:
    """One line of the table, or none where no committed result has the number."""
    own: dict[str, Result] = {}
    for result in section.results:
        if any(band["name"] == name for band in result.bands):
            own.setdefault(result.preset, result)  # the script's own backend comes first
    if not own:
        return []
    result = list(own.values())[-1]
    (band,) = (band for band in result.bands if band["name"] == name)
    paper = "" if band["paper"] is None else f"{band['paper']:.3g}"
    of = section.entry.of.split(",")[0]
    return [
        f"| {of} | {name} | {band['value']:.3g} | {paper} | {accepted(band)} | {result.preset} |"
    ]
