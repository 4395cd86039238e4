"""Table 1 from trained networks: means over seeds, a paired interval, and the table itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from rich.table import Table

from _harness.bodies import Growth
from _harness.training import NETS, Trained

__all__ = ["mean", "of", "paired", "table_of"]


def of(trained: Sequence[Trained], net: str) -> list[Trained]:
    """Those of one network, by seed."""
    return sorted((each for each in trained if each.job.net == net), key=lambda e: e.job.seed)


def mean(values: Iterable[float]) -> float:
    """Arithmetic mean."""
    found = list(values)
    return sum(found) / len(found)


def paired(ours: Sequence[Trained], theirs: Sequence[Trained]) -> tuple[float, float]:
    """95 % interval of the difference of errors in points, image by image and seed by seed."""
    wrong = torch.tensor([[not right for right in each.right] for each in ours]).double()
    other = torch.tensor([[not right for right in each.right] for each in theirs]).double()
    gap = 100 * (wrong - other).flatten()
    half = 1.96 * float(gap.std()) / len(gap) ** 0.5
    return float(gap.mean()) - half, float(gap.mean()) + half


def table_of(
    trained: Sequence[Trained], growth: Sequence[Growth], paper: Mapping[str, float]
) -> Table:
    """Our table, the paper's errors in percent beside ours."""
    growths = {each.body.split(" ")[0]: each for each in growth}
    table = Table("network", title="Table 1")
    for column in (
        "error %",
        "the paper's (MNIST)",
        "parameters",
        "memory: power of depth",
        "time: power of evaluations",
        "evaluations",
        "s",
    ):
        table.add_column(column, justify="right")
    for net in NETS:
        own = of(trained, net)
        last = own[0].history[-1]
        own_growth = growths.get(net.split("-6")[0])
        counts = f"{last.forward:.0f} + {last.backward:.0f}" if last.forward else ""
        table.add_row(
            net,
            f"{100 * mean(each.error for each in own):.2f}",
            f"{paper[net]:.2f}" if net in paper else "",
            f"{own[0].n_parameters:,}",
            "" if own_growth is None else f"{own_growth.exponent:.2f}",
            "" if own_growth is None else f"{own_growth.time_exponent:.2f}",
            counts,
            f"{mean(each.history[-1].seconds for each in own):.0f}",
        )
    table.caption = (
        "evaluations: of a training step in the last epoch; s: of the training, one process"
    )
    return table
