"""What two processes of torchrun find out together; the tests beside it compare.

    torchrun --standalone --nproc-per-node 2 two_ranks.py FOLDER BACKEND

Gradients of models as users would train them, wrapped in DistributedDataParallel, are written
beside those that one process has of the whole batch; with BACKEND "native" also what the shared
loop of the reproductions does.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributions import Independent, Normal
from torch.nn.parallel import DistributedDataParallel

from ctflow import Solver
from ctflow.dynamics import MLP, ODEBlock
from ctflow.flows import ContinuousFlow
from ctflow.latent import Gaussian, LatentODE, RNNEncoder, elbo

sys.path.insert(0, str(Path(__file__).parents[2] / "reproductions"))

from _harness import ranks, stopping
from _harness.loop import Training
from _harness.records import write_json
from _harness.session import Session

FLOAT = torch.float64
TOLERANCE = 1e-6
Grads = list[Tensor]


class Net(nn.Module):
    """A classifier around an ODE block."""

    def __init__(self, solver: Solver) -> None:
        """The same weights every time."""
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head = nn.Linear(3, 4), nn.Linear(4, 2)
        self.block = ODEBlock(MLP(4, (8,)), solver=solver)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        """Loss of each row, [B]."""
        return self.head(self.block(self.stem(x))).logsumexp(dim=1)


class Likelihood(nn.Module):
    """A continuous flow as a module: its forward is what DistributedDataParallel sees."""

    def __init__(self, solver: Solver) -> None:
        """The same weights every time."""
        super().__init__()
        torch.manual_seed(0)
        self.field, self.solver = MLP(3, (8,)).double(), solver

    def forward(self, x: Tensor) -> Tensor:
        """Negative log-density of each point, [B]."""
        base = Independent(Normal(x.new_zeros(3), x.new_ones(3)), 1)
        return -ContinuousFlow(base, self.field, solver=self.solver).log_prob(x)


class Bound(nn.Module):
    """A latent ODE's bound as a module."""

    def __init__(self, solver: Solver) -> None:
        """The same weights every time."""
        super().__init__()
        torch.manual_seed(0)
        self.model = LatentODE(
            RNNEncoder(3, 2, 5), MLP(2, (5,)), nn.Linear(2, 3), Gaussian(0.1), latent=2,
            solver=solver,
        ).double()  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Negative bound of each series, whose three times all have the same value, [B]."""
        series = x.unsqueeze(1).expand(-1, 3, -1)
        return -elbo(self.model, series, torch.arange(3.0, dtype=FLOAT)).value()


def solvers(backend: str) -> Iterator[tuple[str, Solver]]:
    """Every coupling and gradient method."""
    near = {"rtol": TOLERANCE, "atol": TOLERANCE}
    for gradient in ("direct", "checkpointed", "adjoint"):
        yield f"per sample, {gradient}", Solver(backend, gradient=gradient, **near)
        grid = Solver(backend, method="rk4", step=0.1, coupling="shared", gradient=gradient)
        yield f"grid, {gradient}", grid
        yield f"shared, {gradient}", Solver(backend, coupling="shared", gradient=gradient, **near)


def data(n: int = 8) -> Tensor:
    """Rows of very different size, so that their steps differ."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 3, generator=generator, dtype=FLOAT) * torch.linspace(0.1, 2, n)[:, None]


def gradients(model: nn.Module, x: Tensor) -> Grads:
    """Of the mean over the rows."""
    model.zero_grad()
    model(x).mean().backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def together(make: Callable[[], nn.Module], **options: bool) -> Grads:
    """Of the mean over all rows, half of them in each process; the second time, as in training."""
    wrapped = DistributedDataParallel(make(), **options)
    own = data().tensor_split(2)[ranks.rank()]
    gradients(wrapped, own)
    return gradients(wrapped, own)


def users(backend: str) -> dict[str, tuple[Grads, Grads]]:
    """Gradients of two processes and of one, by case."""
    found: dict[str, tuple[Grads, Grads]] = {}
    for name, solver in solvers(backend):
        found[f"block, {name}"] = (
            together(lambda s=solver: Net(s)), gradients(Net(solver), data()),
        )  # fmt: skip
    if backend != "native":
        return found
    for name, solver in list(solvers(backend)):
        if "per sample" in name:
            found[f"flow, {name}"] = (
                together(lambda s=solver: Likelihood(s)), gradients(Likelihood(solver), data()),
            )  # fmt: skip
    for option in ("find_unused_parameters", "static_graph"):
        for name, solver in solvers(backend):
            if name in ("per sample, checkpointed", "per sample, adjoint"):
                found[f"block, {name}, {option}"] = (
                    together(lambda s=solver: Net(s), **{option: True}),
                    gradients(Net(solver), data()),
                )
    return found


def bound() -> tuple[Grads, Grads]:
    """Of a bound whose noise each process draws itself: the mean of what they have alone."""
    solver = Solver(coupling="shared", gradient="direct", rtol=1e-6, atol=1e-6)
    wrapped = DistributedDataParallel(Bound(solver))
    parts = data().tensor_split(2)
    torch.manual_seed(ranks.rank())
    ours = gradients(wrapped, parts[ranks.rank()])
    alone: list[Grads] = []
    for rank in (0, 1):
        model = Bound(solver)
        torch.manual_seed(rank)
        alone.append(gradients(model, parts[rank]))
    return ours, [(a + b) / 2 for a, b in zip(*alone, strict=True)]


def looped(folder: Path | None, until: int, n: int = 8) -> Training:
    """A training of the block by the shared loop, with random batches."""
    model = Net(Solver(rtol=1e-6, atol=1e-6))
    session = Session("test", {}, folder)
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    training = session.training(model, optimiser, lambda x: model(x).mean(), name="looped")
    for _ in training.steps(until):
        rows = torch.randint(n, (n,))
        training.notes.setdefault("losses", []).append(training.descend(data(n)[rows]))
    return training


def stopped() -> int:
    """Steps after which both stop, where one of them is asked to."""
    stopping.forget()
    model = nn.Linear(3, 1).double()
    training = Training(model, torch.optim.SGD(model.parameters()), lambda x: model(x).mean())
    try:
        for step in training.steps(9):
            training.descend(data())
            if step == 3 and ranks.rank() == 1:
                stopping._asked.append(15)
    except SystemExit:
        stopping.forget()
    return training.done


def main(folder: Path, backend: str) -> None:
    """All of it."""
    torch.set_num_threads(1)
    with ranks.joined():
        found: dict[str, Any] = {"users": users(backend)}
        if backend == "native":
            found["bound"] = bound()
            with ranks.own_noise(0):
                noise = torch.rand(3)
            gathered = [torch.zeros(6), torch.zeros(6)]
            dist.all_gather(gathered, torch.cat([noise, torch.rand(3)]))
            found["noise"] = gathered
            found["stopped"] = stopped()
            found["loop"] = {n: _state(looped(None, 3, n)) for n in (1, 5, 8)}
            looped(folder / "two", 3)
            found["moved"] = _state(looped(folder / "one", 6))
            write_json(folder / f"rank-{ranks.rank()}.json", {})
        if ranks.rank() == 0:
            torch.save(found, folder / "found.pt")


def _state(training: Training) -> dict[str, Any]:
    return {"model": training.model.state_dict(), "losses": training.notes["losses"]}


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
