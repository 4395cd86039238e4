"""Figure of learned motions: paths in the plane of angle and momentum, and energy over time.

This module imports matplotlib, which is optional: scripts import it after they have asked `need`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from matplotlib.figure import Figure
from torch import Tensor

__all__ = ["motions_and_energies"]

# Okabe and Ito's palette, which colour-blind readers can tell apart; dashes say the same again.
_LOOKS = {"true": ("#666666", "-"), "Hamiltonian": ("#0072B2", "--"), "plain": ("#D55E00", ":")}


def motions_and_energies(
    t: Tensor,
    motions: Mapping[str, tuple[Tensor, Tensor]],
    energy: Callable[[Tensor, Tensor], Tensor],
) -> Figure:
    """Left three motions in phase space; right the true energy along each.

    Args:
        t: Times, [T].
        motions: For each name, angle and momentum, [T, B, 1] each.
        energy: The true one.
    """
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, (q, p) in motions.items():
        colour, style = _LOOKS[name]
        for sample in range(3):
            label = name if sample == 0 else None
            left.plot(q[:, sample, 0], p[:, sample, 0], style, color=colour, lw=1, label=label)
            right.plot(t, energy(q, p)[:, sample, 0], style, color=colour, lw=1.2, label=label)
    left.set(xlabel="angle", ylabel="momentum", aspect="equal")
    right.set(xlabel="time", ylabel="true energy")
    for axes in (left, right):
        axes.grid(color="#DDDDDD")
        axes.spines[["top", "right"]].set_visible(False)
    left.legend(frameon=False, fontsize=8)
    return figure
