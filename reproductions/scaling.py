"""A training step on one process and on several: measured here, and projected to many.

Three models, an ODE-Net whose images have steps of their own, a flow and a latent ODE whose rows
share theirs, take the same step on the whole batch alone and with a part of it in each process, in
turn.
From a step's time on the whole batch, half and a quarter of it come a fixed part and one for each
row; from averaging numbers of different size over the processes, a latency and a rate. Together

    T(p) = fixed + rows / p * each + 2 (p - 1) (latency + bytes / p / rate)

is the time of a step on p processes, the last term being a ring's. What is projected to more than
was measured is this formula, with each process on a core of its own. Times of a step are processor
times, of the slowest process: what else the machine did in between does not count. Times by the
clock stand beside them, and mean what they say only where every process has a core to itself.

Source:
    Li et al. 2020, PyTorch Distributed (arXiv 2006.15704); Patarasuk and Yuan 2009, Bandwidth
    optimal all-reduce algorithms, for the ring. The bands are ours.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from _harness.bands import Band
from _harness.checkpoints import check_folder
from _harness.live import LiveLine
from _harness.records import environment, need, write_figure, write_json
from _harness.scaling_work import FAMILIES, Averaging, Plan, Timing, measure
from rich.console import Console
from rich.table import Table

from ctflow.cli import main as command_line


@dataclass(frozen=True)
class Config:
    """Everything that the result depends on, beside the code and the machine."""

    preset: str
    seed: int = 0
    backend: str = "native"
    processes: tuple[int, ...] = (2,)  # beside one
    rounds: int = 9
    rows: dict[str, int] = field(
        default_factory=lambda: {"ODE-Net": 1024, "flow": 512, "latent ODE": 800}
    )
    sizes: tuple[int, ...] = (1, 1 << 12, 1 << 16, 1 << 20, 1 << 22)  # numbers that are averaged
    projected: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    latency: float = 0.05  # of a network between machines, milliseconds: assumed
    rate: float = 1.25e6  # likewise, bytes in a millisecond: 10 Gbit/s
    results: Path = Path(__file__).parent / "results" / "scaling"


PRESETS = {
    "smoke": Config(
        "smoke", rounds=2, rows=dict.fromkeys(FAMILIES, 8), sizes=(1, 1 << 16), projected=(1, 2, 4)
    ),
    "quick": Config("quick"),
    "full": Config("full", rounds=60),
}


@dataclass(frozen=True)
class Cost:
    """What a step of one model costs, in milliseconds.

    Args:
        family: The model.
        rows: Of the whole batch.
        fixed: Of a step, whatever its rows.
        each: Of a row.
        n_bytes: That are averaged.
    """

    family: str
    rows: int
    fixed: float
    each: float
    n_bytes: int

    def step(self, processes: int, rows: float, latency: float, rate: float) -> float:
        """T(p) for so many rows in all."""
        alone = self.fixed + rows / processes * self.each
        return alone + 2 * (processes - 1) * (latency + self.n_bytes / processes / rate)

    def efficiency(self, processes: int, latency: float, rate: float, *, grows: bool) -> float:
        """Rows in a unit of time over processes times those of one; the batch grows with them."""
        rows = self.rows * (processes if grows else 1)
        share = self.step(1, self.rows, latency, rate) / self.rows
        return share * rows / (processes * self.step(processes, rows, latency, rate))


def main(config: Config) -> dict[str, object]:
    """Measure, print, and write JSON and PNG; returns what the JSON holds."""
    need("matplotlib")
    from _harness.scaling_figure import measured_and_projected  # matplotlib is optional

    check_folder(config.results)
    console, threads = Console(), torch.get_num_threads()
    plan = Plan(config.seed, config.backend, config.rounds, config.rows, config.sizes)
    timings: list[Timing] = []
    averaging: list[Averaging] = []
    with LiveLine(console) as line, tempfile.TemporaryDirectory() as folder:
        for processes in config.processes:
            line.show(f"{processes} processes beside one")
            found = measure(plan, processes, Path(folder))
            timings += found[0]
            averaging += found[1]
    torch.set_num_threads(threads)
    costs = list(costs_of(timings))
    latency, rate = network(averaging)
    bands = list(bands_of(config, timings))
    console.print(table_of(timings, costs, latency, rate), *map(str, bands), sep="\n")
    record: dict[str, object] = {
        "config": {key: value for key, value in asdict(config).items() if key != "results"},
        "environment": environment(),
        "timings": [asdict(each) for each in timings],
        "averaging": [asdict(each) for each in averaging],
        "costs": [asdict(each) for each in costs],
        "load": os.getloadavg()[0],  # of the machine, processes that want to run
        "latency": latency,
        "rate": rate,
        "projected": projected(config, costs),
        "bands": [band.record() for band in bands],
    }
    write_json(config.results / f"{config.preset}.json", record)
    figure = measured_and_projected(timings, projected(config, costs))
    write_figure(config.results / f"{config.preset}.png", figure)
    return record


def costs_of(timings: Sequence[Timing]) -> Iterator[Cost]:
    """The line through the times of the whole batch, half and a quarter of it."""
    for each in timings:
        if each.processes != min(other.processes for other in timings):
            continue
        rows = torch.tensor(list(each.parts), dtype=torch.float64)
        times = torch.tensor(list(each.parts.values()), dtype=torch.float64)
        centred = rows - rows.mean()
        slope = max(0.0, float((centred * times).sum() / centred.square().sum()))
        fixed = max(0.0, float(times.mean() - slope * rows.mean()))
        yield Cost(each.family, each.rows, fixed, slope, 4 * each.numbers)


def network(averaging: Sequence[Averaging]) -> tuple[float, float]:
    """Latency in milliseconds, and bytes in a millisecond, of a ring of so many processes."""
    least, most = averaging[0], averaging[-1]
    rounds = 2 * (least.processes - 1)
    latency = least.milliseconds / rounds
    moved = rounds * most.n_bytes / most.processes
    return latency, moved / max(most.milliseconds - least.milliseconds, 1e-9)


def projected(config: Config, costs: Sequence[Cost]) -> list[dict[str, object]]:
    """Efficiency on more processes, over the network that is assumed."""
    return [
        {
            "family": cost.family,
            "processes": p,
            "same batch": cost.efficiency(p, config.latency, config.rate, grows=False),
            "batch grows": cost.efficiency(p, config.latency, config.rate, grows=True),
        }
        for cost in costs
        for p in config.projected
    ]


def bands_of(config: Config, timings: Sequence[Timing]) -> Iterator[Band]:
    """The gradients are one process's: to rounding in float32, or within ten tolerances."""
    for each in timings:
        if each.difference is not None:
            name = f"{each.family}, {each.processes} processes: difference of the gradients"
            yield Band(name, each.difference, high=1e-2 if each.family == "flow" else 1e-4)
    if config.preset != "smoke":
        for each in timings:
            name = f"{each.family}, {each.processes} processes: processor time over one process's"
            yield Band(name, each.together / each.alone, high=1.0)


def table_of(
    timings: Sequence[Timing], costs: Sequence[Cost], latency: float, rate: float
) -> Table:
    """Every model."""
    names = ("rows", "alone", "together", "predicted", "speed-up", "imbalance", "by the clock")
    table = Table("model", "p", *names, title="One training step, milliseconds")
    by_family = {cost.family: cost for cost in costs}
    for each in timings:
        wanted = by_family[each.family].step(each.processes, each.rows, latency, rate)
        table.add_row(
            each.family, str(each.processes), str(each.rows), f"{each.alone:.1f}",
            f"{each.together:.1f}", f"{wanted:.1f}", f"{each.alone / each.together:.2f}",
            f"{each.imbalance:.2f}", f"{each.wall_alone:.0f}, {each.wall_together:.0f}",
        )  # fmt: skip
    table.caption = f"averaging: {1e3 * latency:.0f} us and {rate / 1e6:.2f} GB/s"
    return table


if __name__ == "__main__":
    command_line(["reproduce", "scaling", "--root", str(Path(__file__).parents[1]), *sys.argv[1:]])
