"""Regularised ODE-Nets stay easy to integrate while they learn: five ways, side by side.

Without regularisation the evaluations of an ODE-Net grow as it learns (Figure 3d). The first three
kinds stop that, at about the same accuracy:

- RNODE: the path's kinetic energy and the norm of the field's Jacobian;
- TayNODE 2 and 3: the second, or third, derivative of the path with respect to time;
- ERNODE: the solver's own estimate of its local error, with its gradient (the native solver's,
  whatever `--backend` says);
- STEER: the end of the interval drawn anew in every training step. It is shown beside them; its
  authors' claim is about stiff problems (`steer`) and flows, and here it neither saves evaluations
  nor keeps the accuracy.

The network is small and the digits are scikit-learn's 8x8 ones or MNIST (`--preset full`); what is
compared are trainings from the same weights on the same batches. Evaluations are those of the test
set at the training's tolerance, without any regulariser; accuracies are means over the last third
of the epochs.

Source:
    Finlay et al. 2020 (arXiv 2002.02798), Kelly et al. 2020 (arXiv 2007.04504), Pal et al. 2021
    (arXiv 2105.03918), Ghosh et al. 2020 (arXiv 2006.10711). The bands are ours.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from _harness.bands import Band
from _harness.comparison import evaluations
from _harness.images import Images, load_images
from _harness.live import LiveLine
from _harness.records import environment, need, write_figure, write_json
from _harness.session import Session, run_session
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ctflow import Solution, Solver
from ctflow.cli import main as command_line
from ctflow.dynamics import (
    MLP,
    ConcatLinear,
    ImageClassifier,
    JacobianNorm,
    KineticEnergy,
    ODEBlock,
    Sum,
    TaylorNorm,
    rademacher_like,
)

METHODS = ("none", "RNODE", "TayNODE 2", "TayNODE 3", "ERNODE", "STEER")
STOPS = ("RNODE", "TayNODE 2", "TayNODE 3", "ERNODE")
"""Those that penalise what costs evaluations, and of which something is claimed here."""


@dataclass(frozen=True)
class Config:
    """Everything that the result depends on, beside the code and the machine."""

    preset: str
    seed: int = 0
    backend: str = "native"
    data: str = "digits"
    n_train: int | None = None
    n_test: int | None = None
    epochs: int = 12
    batch: int = 50
    width: int = 32  # features of the state, and of the field's hidden layer
    learning_rate: float = 1e-2
    tolerance: float = 1e-4  # by bosh3, whose evaluations count in threes
    kinetic: float = 0.05
    jacobian: float = 0.05
    taylor: tuple[float, float] = (2e-1, 2e-2)  # of order 2 and 3
    local_error: float = 3e2
    random_end: float = 0.5
    lost: float = 2.0  # points of accuracy
    claims: bool = True
    minutes: float = math.inf  # stop after so long; the same call goes on from there
    resume: bool = True  # go on with an unfinished call of the same settings
    results: Path = Path(__file__).parent / "results" / "regularised"


PRESETS = {
    "smoke": Config("smoke", n_train=50, n_test=20, epochs=1, batch=25, width=8, claims=False),
    "quick": Config("quick", n_train=1000),
    "full": Config("full", data="mnist-10000", n_train=8000, epochs=15, lost=1.0),
}


@dataclass(frozen=True)
class Run:
    """One training.

    Args:
        method: One of `METHODS`.
        losses: Cross entropy after each epoch, on the test set.
        accuracy: Likewise, share that is classified right.
        forward: Likewise, evaluations, mean over the samples.
    """

    method: str
    losses: list[float]
    accuracy: list[float]
    forward: list[float]

    @property
    def growth(self) -> float:
        """Evaluations after the last epoch over those after the first."""
        return self.forward[-1] / self.forward[0]

    @property
    def settled(self) -> float:
        """Accuracy over the last third of the epochs.

        The learning rate is constant, and one epoch's accuracy the luck of its last batches: two
        points more or less on a few hundred images.
        """
        last = self.accuracy[-max(1, len(self.accuracy) // 3) :]
        return sum(last) / len(last)


def main(config: Config) -> dict[str, object]:
    """Train, print, and write JSON and PNG; returns what the JSON holds."""
    need("matplotlib")
    return run_session("regularised", config, run)


def run(config: Config, console: Console, session: Session) -> dict[str, object]:
    """The experiment, from data to files."""
    from _harness.learning_figure import losses_and_evaluations  # matplotlib is optional

    images = load_images(
        config.data, seed=config.seed, n_train=config.n_train, n_test=config.n_test
    )
    console.print(f"data: {images.source.name}: {images.source.what}", highlight=False)
    with LiveLine(console) as line:
        runs = [learn(method, images, config, session, line.show) for method in METHODS]
    bands = list(bands_of(config, runs)) if config.claims else []
    console.print(table_of(runs), *map(str, bands), sep="\n", highlight=False)
    record = {
        "config": session.config,
        "environment": environment(),
        "data": images.record(),
        "runs": [asdict(each) for each in runs],
        "bands": [band.record() for band in bands],
    }
    write_json(config.results / f"{config.preset}.json", record)
    curves = {"test set": {each.method: (each.losses, each.forward) for each in runs}}
    names = ("cross entropy (nats)", "evaluations forward")
    title = f"Regularised ODE-Nets, {images.source.name}"
    figure = losses_and_evaluations(title, curves, "epoch", names)
    write_figure(config.results / f"{config.preset}.png", figure)
    return record


def network(method: str, config: Config) -> ImageClassifier:
    """784 pixels to a few features, a field over them, ten classes; the same weights for all."""
    torch.manual_seed(config.seed)
    backend = "native" if method == "ERNODE" else config.backend  # who has a local error
    solver = Solver(backend, method="bosh3", rtol=config.tolerance, atol=config.tolerance)
    field = MLP(config.width, (config.width,), layer=ConcatLinear)
    end = config.random_end if method == "STEER" else 0.0
    return ImageClassifier(
        nn.Sequential(nn.Flatten(), nn.Linear(784, config.width), nn.Tanh()),
        ODEBlock(field, solver=solver, random_end=end),
        nn.Linear(config.width, 10),
    )


def solution_and_penalty(
    method: str, block: ODEBlock, x: Tensor, config: Config
) -> tuple[Solution, Tensor]:
    """A solve for the loss, and what is added to it."""
    field = block.field
    if method == "RNODE":
        costs = (KineticEnergy(field), JacobianNorm(field, rademacher_like(x)))
        cost = Sum(costs, (config.kinetic, config.jacobian))
    elif method.startswith("TayNODE"):
        order = int(method[-1])
        cost = Sum((TaylorNorm(field, order),), (config.taylor[order - 2],))
    else:
        solution = block.solve(x, local_error=method == "ERNODE")
        if solution.local_error is None:
            return solution, x.new_zeros(())
        return solution, config.local_error * solution.local_error.mean()
    solution = block.solve(x, running_cost=cost)
    return solution, solution.cost[-1].mean()


def learn(
    method: str, images: Images, config: Config, session: Session, show: Callable[[str], None]
) -> Run:
    """Train one network."""
    model = network(method, config)
    optimiser = torch.optim.Adam(model.parameters(), config.learning_rate)
    torch.manual_seed(config.seed + 1)
    last: list[tuple[Solution, Tensor]] = []

    def loss(x: Tensor, label: Tensor) -> Tensor:
        last[:] = [solution_and_penalty(method, model.body, model.stem(x), config)]
        solution, penalty = last[0]
        return cross_entropy(model.head(solution.y[-1]), label) + penalty

    training = session.training(
        model, optimiser, loss, name=method, settings={"data": images.record()}
    )
    notes = training.notes
    found = {key: notes.setdefault(key, []) for key in ("losses", "accuracy", "forward")}
    batches = math.ceil(len(images.train.y) / config.batch)
    for step in training.steps(config.epochs * batches):
        epoch, batch = divmod(step, batches)
        model.train()
        if batch == 0:
            notes["order"] = torch.randperm(len(images.train.y))
        rows = notes["order"].split(config.batch)[batch]
        value = training.descend(images.train.x[rows], images.train.y[rows])
        solution, penalty = last[0]
        show(
            f"{method}: epoch {epoch + 1}/{config.epochs}  loss {value:.3f}, of it "
            f"{penalty.item():.3f}  evaluations {evaluations(solution.stats)[0]:.1f}"
        )
        if batch == batches - 1:
            for key, each in tested(model, images).items():
                found[key].append(each)
    return Run(method, **found)


@torch.no_grad()
def tested(model: ImageClassifier, images: Images) -> dict[str, float]:
    """Cross entropy, share classified right, and evaluations, on the test set."""
    model.eval()
    logits = model(images.test.x)
    right = logits.argmax(1) == images.test.y
    return {
        "losses": cross_entropy(logits, images.test.y).item(),
        "accuracy": right.double().mean().item(),
        "forward": round(evaluations(model.body.stats)[0], 3),
    }


def bands_of(config: Config, runs: list[Run]) -> Iterator[Band]:
    """Growth without, none with; and no accuracy lost."""
    plain = runs[0]
    yield Band("none: evaluations in the last epoch over the first", plain.growth, low=1.2)
    for each in runs:
        if each.method in STOPS:
            yield Band(f"{each.method}: likewise", each.growth, high=1.2)
    for each in (run for run in runs if run.method in STOPS):
        loss = 100 * (plain.settled - each.settled)
        yield Band(f"{each.method}: points of accuracy lost", loss, high=config.lost)


def table_of(runs: list[Run]) -> Table:
    """All of them."""
    table = Table("regulariser", title="Test set: accuracy at last, evaluations")
    for column in ("accuracy", "evaluations at first", "at last", "ratio"):
        table.add_column(column, justify="right")
    for each in runs:
        numbers = f"{each.forward[0]:.1f}", f"{each.forward[-1]:.1f}", f"{each.growth:.2f}"
        table.add_row(each.method, f"{each.settled:.2%}", *numbers)
    return table


if __name__ == "__main__":
    command_line(
        ["reproduce", "regularised", "--root", str(Path(__file__).parents[1]), *sys.argv[1:]]
    )
