"""Training the models of Table 2: one job a model, number of points and seed, resumable."""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from _harness.images import cache_folder
from _harness.spirals import Spirals, make_spirals
from ctflow import Solver, __version__
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
    and nothing seen says what lies further along. So the decoder begins nearly linear and learns
    slowly, which leaves the turning to the field, and the KL divergence is weighed `kl` times at
    first, which lets the path be found coarse before fine. The encoder's recurrence begins as a
    rotation (`RNNEncoder`), without which some seeds hardly learn to read. Each alone trains some
    seeds.

    Args:
        steps: Of the optimiser.
        batch: Series in a step.
        learning_rate: Of Adam at its highest; falls to 0 along a cosine.
        warm_up: Steps over which it rises.
        decoder: Its factor for the decoder of a latent ODE.
        linear: By how much the decoder's first weights are shrunk, and its last ones grown.
        kl: Weight of the KL divergence at first; falls geometrically to 1 by half of the steps.
        clip: Largest norm of a gradient.
    """

    steps: int
    batch: int = 200
    learning_rate: float = 1e-2
    warm_up: int = 200
    decoder: float = 0.1
    linear: float = 0.3
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
    first, last = nn.Linear(4, 20), nn.Linear(20, 2)
    with torch.no_grad():
        for p in first.parameters():
            p *= job.recipe.linear
        last.weight /= job.recipe.linear
    decoder = nn.Sequential(first, nn.Tanh(), last)
    return LatentODE(
        RNNEncoder(2, 4, 25), MLP(4, (20,)), decoder, Gaussian(NOISE), latent=4, solver=job.solver
    )


def train(
    job: Job, show: Callable[[str], None], *, keep: bool = False, until: float = math.inf
) -> Trained | None:
    """Do a job, or go on with it where an earlier call stopped.

    Args:
        job: The job.
        show: Told how far it is.
        keep: Whether to keep its state in the cache folder, and to use what is kept there.
        until: Time (`time.monotonic`) after which it stops.

    Returns:
        The trained model; None if the time was up before.
    """
    run = Run(job)
    path = cache_folder() / "spirals" / f"{_digest(job)}.pt"
    if keep and path.is_file():
        run.restore(torch.load(path, weights_only=True))
    part = max(1, job.recipe.steps // 50)
    while run.done < job.recipe.steps:
        if time.monotonic() > until:
            return None
        loss = run.steps(min(part, job.recipe.steps - run.done))
        show(f"{job}: step {run.done} of {job.recipe.steps}, loss {loss:.1f}")
        if keep:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.{os.getpid()}")
            torch.save(run.state(), temporary)
            temporary.replace(path)
    return Trained(job, run.model.eval(), run.losses, run.seconds)


def train_all(
    jobs: Sequence[Job], show: Callable[[str], None], *, workers: int, keep: bool, until: float
) -> list[Trained] | None:
    """Every job, on so many processes of one thread each; None if the time was up before."""
    if workers == 1:
        found = [train(job, show, keep=keep, until=until) for job in jobs]
    else:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            waiting = [pool.submit(_alone, job, keep, until) for job in jobs]
            found: list[Trained | None] = []
            for job, future in zip(jobs, waiting, strict=True):
                found.append(future.result())
                show(f"{job}: {'time is up' if found[-1] is None else 'done'}")
    done = [each for each in found if each is not None]
    return done if len(done) == len(jobs) else None


def _alone(job: Job, keep: bool, until: float) -> Trained | None:
    torch.set_num_threads(1)
    return train(job, lambda _: None, keep=keep, until=until)


class Run:
    """A model, its optimiser, and how far they are."""

    def __init__(self, job: Job) -> None:
        """At the first step."""
        self.job, self.model, recipe = job, build(job), job.recipe
        self.train, _ = data_of(job)
        slow: list[nn.Parameter] = []
        if isinstance(self.model, LatentODE) and isinstance(self.model.decoder, nn.Module):
            slow = list(self.model.decoder.parameters())
        known = {id(p) for p in slow}
        fast = [p for p in self.model.parameters() if id(p) not in known]
        groups = [{"params": fast, "factor": 1.0}, {"params": slow, "factor": recipe.decoder}]
        self.optimiser = torch.optim.Adam([g for g in groups if g["params"]], recipe.learning_rate)
        self.generator = torch.Generator().manual_seed(job.seed)
        self.done, self.seconds, self.losses = 0, 0.0, list[float]()

    def steps(self, n: int) -> float:
        """So many steps of the optimiser; returns their mean loss."""
        began, total = time.process_time(), 0.0
        torch.manual_seed(self.job.seed * 1_000_003 + self.done)  # a resumed run draws the same
        for _ in range(n):
            total += self.step()
        self.seconds += time.process_time() - began
        self.losses.append(total / n)
        return total / n

    def state(self) -> dict[str, object]:
        """What a run needs to go on."""
        return {
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "generator": self.generator.get_state(),
            "done": self.done,
            "seconds": self.seconds,
            "losses": self.losses,
        }

    def restore(self, state: dict[str, object]) -> None:
        """Go on from there."""
        self.model.load_state_dict(state["model"])  # pyright: ignore
        self.optimiser.load_state_dict(state["optimiser"])  # pyright: ignore
        self.generator.set_state(state["generator"])  # pyright: ignore
        self.done, self.seconds = state["done"], state["seconds"]  # pyright: ignore
        self.losses = state["losses"]  # pyright: ignore

    def step(self) -> float:
        """One step of the optimiser; returns its loss."""
        recipe = self.job.recipe
        for group in self.optimiser.param_groups:
            group["lr"] = recipe.learning_rate * group["factor"] * recipe.rate(self.done)
        rows = torch.randint(len(self.train.truth), (recipe.batch,), generator=self.generator)
        x, t, mask = self.train.observed
        loss = -self._value(x[rows], t, mask[rows]).mean()
        self.optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip)
        self.optimiser.step()
        self.done += 1
        return loss.item()

    def _value(self, x: Tensor, t: Tensor, mask: Tensor) -> Tensor:
        if isinstance(self.model, RecurrentModel):
            return self.model.log_prob(x, t, mask)
        return elbo(self.model, x, t, mask).value(self.job.recipe.weight(self.done))


def _digest(job: Job) -> str:
    text = json.dumps(asdict(job) | {"version": __version__}, sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()[:20]
