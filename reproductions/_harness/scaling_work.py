"""What several processes measure together: a training step alone and split, and the averaging."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributions import Independent, Normal
from torch.multiprocessing.spawn import spawn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from _harness import ranks
from _harness.spirals import make_spirals
from _harness.toys import TOYS
from ctflow import Solver
from ctflow.dynamics import MLP, ConcatLinear, ImageClassifier, ODEBlock
from ctflow.flows import ContinuousFlow, FreeForm
from ctflow.latent import Gaussian, LatentODE, RNNEncoder, elbo

__all__ = ["FAMILIES", "Averaging", "Plan", "Timing", "measure"]


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Args:
        seed: Of weights and data.
        backend: That solves.
        rounds: Steps of each kind, in turn.
        rows: Rows of the batch that is split, by family.
        sizes: Numbers whose averaging is timed.
    """

    seed: int
    backend: str
    rounds: int
    rows: dict[str, int]
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class Timing:
    """Training steps of one model, in milliseconds; medians.

    Processor time is what a step would take with a core for each process and nothing else on them:
    it leaves out waiting, so that of the slowest process stands for all.

    Args:
        family: The model.
        processes: How many.
        rows: Of the whole batch.
        numbers: Parameters, whose gradients are averaged.
        wall_alone: By the clock, one process, the whole batch; the others wait.
        wall_together: By the clock, all, each with its part.
        alone: Processor time of one process, the whole batch.
        together: Processor time of the slowest, each with its part.
        quartiles: Of `together`.
        parts: As `alone`, by rows: the whole batch, half and a quarter of it.
        imbalance: Processor time of the slowest process over the mean, mean over the steps.
        difference: Of the gradients together and alone, relative; None where the model draws noise,
            which is not the same in parts.
    """

    family: str
    processes: int
    rows: int
    numbers: int
    wall_alone: float
    wall_together: float
    alone: float
    together: float
    quartiles: tuple[float, float]
    parts: dict[int, float]
    imbalance: float
    difference: float | None


@dataclass(frozen=True)
class Averaging:
    """Averaging numbers over processes.

    Args:
        processes: How many.
        n_bytes: What each has.
        milliseconds: Median.
    """

    processes: int
    n_bytes: int
    milliseconds: float


class Spent(NamedTuple):
    """Milliseconds by the clock, and of this process on its processor."""

    wall: float
    processor: float


class Workload(NamedTuple):
    """A model, its loss for each batch of rows, and the rows."""

    model: nn.Module
    loss: Callable[..., Tensor]
    batch: tuple[Tensor, ...]


def ode_net(plan: Plan, rows: int) -> Workload:
    """784 pixels to 64 features and an ODE, each image with steps of its own."""
    solver = Solver(plan.backend, rtol=1e-3, atol=1e-3)
    model = ImageClassifier(
        nn.Sequential(nn.Linear(784, 64), nn.Tanh()),
        ODEBlock(MLP(64, (64,), layer=ConcatLinear), solver=solver),
        nn.Linear(64, 10),
    )
    batch = torch.randn(rows, 784), torch.randint(10, (rows,))
    return Workload(model, lambda x, y: cross_entropy(model(x), y), batch)


def flow(plan: Plan, rows: int) -> Workload:
    """FFJORD's field in the plane, one step size for all points of a process."""
    field = FreeForm(2, (64,) * 3, activation=nn.Tanh)
    base = Independent(Normal(torch.zeros(2), torch.ones(2)), 1)
    solver = Solver(plan.backend, rtol=1e-3, atol=1e-3, coupling="shared", gradient="direct")
    whole = ContinuousFlow(base, field, solver=solver)
    return Workload(field, lambda x: -whole.log_prob(x).mean(), (TOYS["pinwheel"](rows),))


def latent_ode(plan: Plan, rows: int) -> Workload:
    """The paper's latent ODE on spirals, one step size for all series of a process."""
    solver = Solver(plan.backend, rtol=1e-4, atol=1e-4, coupling="shared", gradient="direct")
    decoder = nn.Sequential(nn.Linear(4, 20), nn.Tanh(), nn.Linear(20, 2))
    model = LatentODE(
        RNNEncoder(2, 4, 25), MLP(4, (20,)), decoder, Gaussian(0.1), latent=4, solver=solver
    )
    x, t, mask = make_spirals(rows, 30, seed=plan.seed).observed
    return Workload(model, lambda x, mask: -elbo(model, x, t, mask).value().mean(), (x, mask))


FAMILIES = {"ODE-Net": ode_net, "flow": flow, "latent ODE": latent_ode}
NOISY = ("latent ODE",)


def measure(plan: Plan, processes: int, folder: Path) -> tuple[list[Timing], list[Averaging]]:
    """Start so many processes, and have them measure.

    Args:
        plan: What.
        processes: How many.
        folder: Where they may leave a file.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    spawn(_work, (processes, port, plan, folder), nprocs=processes)
    found = json.loads((folder / "found.json").read_text())
    timings = [
        Timing(**each | {"parts": {int(n): ms for n, ms in each["parts"].items()}})
        for each in found["timings"]
    ]
    return timings, [Averaging(**each) for each in found["averaging"]]


def _work(rank: int, processes: int, port: int, plan: Plan, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    with ranks.joined():
        timings = [_timed(plan, family, rows) for family, rows in plan.rows.items()]
        averaging = [_averaged(size, 4 * plan.rounds) for size in plan.sizes]
        if rank == 0:
            found = {
                "timings": [asdict(each) for each in timings],
                "averaging": [asdict(each) for each in averaging],
            }
            (folder / "found.json").write_text(json.dumps(found))


def _timed(plan: Plan, family: str, rows: int) -> Timing:
    """Steps alone and together in turn, so that whatever else the machine does hits both."""
    work, objective = _made(plan, family, rows)
    wrapped = DistributedDataParallel(_made(plan, family, rows)[1])
    own, weight = ranks.part_of(work.batch)
    parts = {n: tuple(x[:n] for x in work.batch) for n in (rows, rows // 2, rows // 4)}
    alone = {n: list[Spent]() for n in parts}
    together: list[Spent] = []
    imbalance: list[float] = []
    for k in range(-1, plan.rounds):  # what is made at a first step is no part of any
        for n, part in parts.items():
            taken = _spent(lambda part=part: _step(objective, part), ranks.rank() == 0)
            alone[n] += [taken] if k >= 0 else []
        wall, own_time = _spent(lambda: _step(wrapped, own, weight), True)
        most, total = torch.tensor([own_time]), torch.tensor([own_time])
        dist.all_reduce(most, dist.ReduceOp.MAX)
        dist.all_reduce(total)
        if k >= 0:
            together.append(Spent(wall, float(most)))
            imbalance.append(float(most * ranks.world() / total))
    times = [each.processor for each in together]
    low, _, high = quantiles(times, n=4)
    return Timing(
        family, ranks.world(), rows, sum(p.numel() for p in work.model.parameters()),
        median(each.wall for each in alone[rows]), median(each.wall for each in together),
        median(each.processor for each in alone[rows]), median(times), (low, high),
        {n: median(each.processor for each in own) for n, own in alone.items()},
        sum(imbalance) / len(imbalance),
        None if family in NOISY else _difference(objective, wrapped, work.batch),
    )  # fmt: skip


def _made(plan: Plan, family: str, rows: int) -> tuple[Workload, nn.Module]:
    torch.manual_seed(plan.seed)
    work = FAMILIES[family](plan, rows)
    return work, _Loss(work)


class _Loss(nn.Module):
    def __init__(self, work: Workload) -> None:
        super().__init__()
        self.model, self.loss = work.model, work.loss

    def forward(self, *batch: Tensor) -> Tensor:
        return self.loss(*batch)


def _step(objective: nn.Module, batch: tuple[Tensor, ...], weight: float = 1.0) -> None:
    """Loss, gradient, and nothing that changes the weights: every step is the same work."""
    objective.zero_grad()
    torch.manual_seed(0)
    (weight * objective(*batch)).backward()


def _difference(alone: nn.Module, wrapped: nn.Module, batch: tuple[Tensor, ...]) -> float:
    own, weight = ranks.part_of(batch)
    _step(alone, batch)
    _step(wrapped, own, weight)
    whole, split = (
        torch.cat([p.grad.reshape(-1) for p in each.parameters() if p.grad is not None])
        for each in (alone, wrapped)
    )
    return float((split - whole).norm() / whole.norm())


def _averaged(size: int, rounds: int) -> Averaging:
    """As many 4-byte numbers."""
    numbers = torch.zeros(size)
    times = [_spent(lambda: dist.all_reduce(numbers), True).wall for _ in range(rounds)]
    return Averaging(ranks.world(), 4 * size, median(times))


def _spent(run: Callable[[], object], mine: bool) -> Spent:
    """On what this process does, all beginning together; the others wait till it ends."""
    dist.barrier()
    began, clock = time.process_time(), time.perf_counter()
    if mine:
        run()
    taken = Spent(1e3 * (time.perf_counter() - clock), 1e3 * (time.process_time() - began))
    dist.barrier()
    return taken
