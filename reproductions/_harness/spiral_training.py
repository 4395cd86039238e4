"""Training the models of Table 2: one job a model, number of points and seed, resumable."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from _harness import ranks
from _harness.session import NOWHERE, Session
from _harness.spiral_start import begin_mirrored, begin_turning
from _harness.spirals import Spirals, make_spirals
from _harness.workers import on_processes
from ctflow import Solver
from ctflow.dynamics import MLP
from ctflow.latent import Gaussian, LatentODE, RecurrentModel, RNNEncoder, elbo

__all__ = ["Job", "Recipe", "Run", "Trained", "build", "data_of", "train", "train_all"]

Model = LatentODE | RecurrentModel
NOISE = 0.1


@dataclass(frozen=True)
class Recipe:
    """How a model is trained. The sizes of the networks are the paper's, and no part of it.

    A latent ODE of this size fits the observed revolution from most seeds, and then leaves the
    spiral: its decoder, bent enough, unrolls a path that goes straight on through the latent space,
    and nothing seen says what lies further along. So the decoder learns slowly, which leaves the
    turning to the field, and the KL divergence is weighed `kl` times at first, which lets the path
    be found coarse before fine. The encoder's recurrence begins as a rotation (`RNNEncoder`),
    without which some seeds hardly learn to read.

    Where field and decoder begin decides what the latent space holds. Nearly linear ones train, to
    two planes through the origin, one a direction, which no clustering by distance tells apart; a
    ring and one variable for the direction is the shorter code, and is not found from there. So the
    field begins as a rotation of two variables by `turn`, and the decoder mirrors what it makes of
    them by the sign of a third (`spiral_start`). That a revolution is what was seen, and that the
    directions are mirror images, is thereby known; which spiral goes which way, and how fast it
    falls, is not. The field learns as slowly as the decoder: else it finds the two planes before
    the encoder has learnt to tell the directions apart, and long trainings leap out of what they
    had found.

    Args:
        steps: Of the optimiser.
        batch: Series in a step.
        learning_rate: Of Adam at its highest; falls to 0 along a cosine.
        warm_up: Steps over which it rises.
        slow: Its factor for field and decoder of a latent ODE.
        turn: Radians in a unit of time by which the field turns at first.
        reach: Coordinates that the decoder makes of a latent variable of 1 at first.
        rest: By how much the decoder's other weights, and the field's last, are shrunk at first.
        kl: Weight of the KL divergence at first; falls geometrically to 1 by half of the steps.
        clip: Largest norm of a gradient.
    """

    steps: int
    batch: int = 200
    learning_rate: float = 1e-2
    warm_up: int = 200
    slow: float = 0.1
    turn: float = 1.0
    reach: float = 1.5
    rest: float = 0.1
    kl: float = 50.0
    clip: float = 100.0

    def rate(self, step: int) -> float:
        """Part of the learning rate at a step."""
        fall = 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return fall * min(1.0, (step + 1) / self.warm_up)

    def weight(self, step: int) -> float:
        """Weight of the KL divergence at a step."""
        return self.kl ** max(0.0, 1 - 2 * step / self.steps)


@dataclass(frozen=True)
class Job:
    """One model to train, and everything that its result depends on beside code and machine.

    Args:
        model: "latent ODE", "RNN", or "RNN with gaps".
        points: Observed points of each spiral.
        seed: Of the weights and the order; the data are the same for all.
        recipe: How.
        solver: Of the latent ODE.
        n_train: Training spirals.
        n_test: Test spirals.
    """

    model: str
    points: int
    seed: int
    recipe: Recipe
    solver: Solver
    n_train: int = 800
    n_test: int = 200

    def __str__(self) -> str:
        """Its name in progress lines."""
        return f"{self.model}, {self.points}/100, seed {self.seed}"


class Trained(NamedTuple):
    """A trained model.

    Attributes:
        job: What was asked.
        model: The model.
        losses: Mean loss in nats for each series, over each fiftieth of the training.
        seconds: Processor time that the training took, over all its parts.
    """

    job: Job
    model: Model
    losses: list[float]
    seconds: float


def data_of(job: Job) -> tuple[Spirals, Spirals]:
    """Training and test spirals: of one draw, the same for every model and seed."""
    spirals = make_spirals(job.n_train + job.n_test, job.points, seed=0)
    return spirals.part(0, job.n_train), spirals.part(job.n_train, None)


def build(job: Job) -> Model:
    """The model before training: 25 hidden units, 4 latent variables, 20 units in f and decoder."""
    torch.manual_seed(job.seed)
    if job.model != "latent ODE":
        return RecurrentModel(2, Gaussian(NOISE), 25, gaps=job.model == "RNN with gaps")
    recipe, field = job.recipe, MLP(4, (20,))
    decoder = nn.Sequential(nn.Linear(4, 20), nn.Tanh(), nn.Linear(20, 2))
    begin_turning(field, recipe.turn, recipe.rest)
    begin_mirrored(decoder, recipe.reach, recipe.rest)
    return LatentODE(
        RNNEncoder(2, 4, 25), field, decoder, Gaussian(NOISE), latent=4, solver=job.solver
    )


def train(job: Job, show: Callable[[str], None], session: Session = NOWHERE) -> Trained:
    """Do a job, or go on with it where an earlier call stopped.

    Args:
        job: The job.
        show: Told how far it is.
        session: Where its state is kept.

    Returns:
        The trained model.

    Raises:
        Unfinished: If the time was up before.
    """
    run = Run(job, session)
    losses: list[float] = run.training.notes.setdefault("losses", [])
    part = max(1, job.recipe.steps // 50)
    for step in run.training.steps(job.recipe.steps):
        first = step // part * part
        if step == first:
            torch.manual_seed(job.seed * 1_000_003 + step)
            run.training.notes["total"] = 0.0
        run.training.notes["total"] += run.step()
        if step + 1 == min(first + part, job.recipe.steps):
            losses.append(run.training.notes["total"] / (step + 1 - first))
            show(f"{job}: step {step + 1} of {job.recipe.steps}, loss {losses[-1]:.1f}")
    return Trained(job, run.model.eval(), losses, run.training.seconds)


def train_all(
    jobs: Sequence[Job], show: Callable[[str], None], session: Session, *, workers: int
) -> list[Trained]:
    """Every job, on so many processes of one thread each.

    Raises:
        Unfinished: If the time was up before.
    """
    if workers == 1 or ranks.world() > 1:
        return [train(job, show, session) for job in jobs]
    tasks = {str(job): partial(train, job, _silent, session) for job in jobs}
    return list(on_processes(tasks, workers, show).values())


def _silent(_: str) -> None:
    """Another process has no line of its own."""


class Run:
    """A model in training, step by step.

    Args:
        job: What is trained.
        session: Where its state is kept.
    """

    def __init__(self, job: Job, session: Session = NOWHERE) -> None:
        """At the first step, or where it was stopped."""
        self.job, self.model, recipe = job, build(job), job.recipe
        self.train, _ = data_of(job)
        groups: dict[float, list[nn.Parameter]] = {1.0: [], recipe.slow: []}
        for name, parameter in self.model.named_parameters():
            late = isinstance(self.model, LatentODE) and not name.startswith("encoder.")
            groups[recipe.slow if late else 1.0].append(parameter)
        self.optimiser = torch.optim.Adam(
            [{"params": part, "factor": factor} for factor, part in groups.items() if part],
            recipe.learning_rate,
        )
        self.generator = torch.Generator().manual_seed(job.seed)
        self.training = session.training(
            self.model, self.optimiser, self._loss, name=str(job), clip=recipe.clip,
            generators={"rows": self.generator}, settings=asdict(job),
        )  # fmt: skip

    def step(self) -> float:
        """One step of the optimiser; returns its loss."""
        recipe = self.job.recipe
        for group in self.optimiser.param_groups:
            group["lr"] = recipe.learning_rate * group["factor"] * recipe.rate(self.training.done)
        rows = torch.randint(len(self.train.truth), (recipe.batch,), generator=self.generator)
        x, _, mask = self.train.observed
        return self.training.descend(x[rows], mask[rows])

    def _loss(self, x: Tensor, mask: Tensor) -> Tensor:
        _, t, _ = self.train.observed
        if isinstance(self.model, RecurrentModel):
            return -self.model.log_prob(x, t, mask).mean()
        weight = self.job.recipe.weight(self.training.done)
        return -elbo(self.model, x, t, mask).value(weight).mean()
