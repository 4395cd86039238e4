"""Models of real series that are seen at a few times: trained alike, and what they make of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.interpolate import CubicSpline
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from _harness.live import counted
from _harness.series import Series, Split, shown
from _harness.session import Session
from ctflow import Solver
from ctflow.dynamics import MLP
from ctflow.latent import (
    Gaussian,
    LatentODE,
    Observations,
    ODERNNEncoder,
    RecurrentModel,
    RNNEncoder,
    annealed,
    elbo,
)

__all__ = [
    "INTERPOLANTS",
    "LATENT",
    "MODELS",
    "Answer",
    "Job",
    "Recipe",
    "classify",
    "interpolated",
    "predictions",
    "train",
]  # fmt: skip

LATENT = ("latent ODE, RNN encoder", "latent ODE, ODE-RNN encoder")
MODELS = (*LATENT, "RNN", "RNN with gaps", "GRU with gaps")
INTERPOLANTS = ("linear", "spline")
_PARTS = (0.1, 0.5)  # shares shown in training lie between these
_NOISE = 0.3  # standard deviation at the start of training, in units of the data; it is learned


@dataclass(frozen=True)
class Recipe:
    """How every model is trained.

    Args:
        steps: Of the optimiser.
        batch: Series in a step.
        hidden: Width of every recurrence and of the field's layer.
        latent: Variables of a latent ODE.
        learning_rate: Of Adam at its highest; falls to 0 along a cosine.
    """

    steps: int
    batch: int = 64
    hidden: int = 32
    latent: int = 8
    learning_rate: float = 1e-2


@dataclass(frozen=True)
class Job:
    """One model to train.

    Args:
        data: Name of the set, for progress lines.
        model: One of `MODELS`.
        classes: So many classes to tell apart; 0: to interpolate and extrapolate.
        seed: Of weights, order, and what is shown.
        recipe: How.
        solver: Of the latent ODE.
    """

    data: str
    model: str
    classes: int
    seed: int
    recipe: Recipe
    solver: Solver


@dataclass(frozen=True)
class Answer:
    """Test series and what a model made of them.

    Args:
        model: Its name.
        split: The set.
        seen: What it was shown, [B, T].
        found: What it expects, [B, T, D].
    """

    model: str
    split: Split
    seen: Tensor
    found: Tensor


class Classifier(nn.Module):
    """Class scores from the mean that an encoder gives.

    Args:
        encoder: Any encoder of a latent model.
        latent: Variables of its distribution.
        classes: How many.
    """

    def __init__(self, encoder: nn.Module, latent: int, classes: int) -> None:
        """Add a linear layer."""
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(latent, classes)

    def forward(self, x: Tensor, t: Tensor, seen: Tensor) -> Tensor:
        """Scores, [B, classes]."""
        return self.head(self.encoder(Observations(x, t, seen), 0.0).mean)


Model = LatentODE | RecurrentModel | Classifier


def train(
    job: Job, series: Series, session: Session, show: Callable[[str], None]
) -> tuple[Model, Classifier | None]:
    """Train a model on random choices of 10 to 50 % of the early observations.

    Everything that is there is to be foretold from them: what was hidden in between, and what
    comes after. Every model has the same data, steps and choices.

    Returns:
        The model, and, where there are classes, what tells them apart.

    Raises:
        Unfinished: If the time was up before.
    """
    torch.manual_seed(job.seed)
    features, recipe = series.x.shape[2], job.recipe
    model, classifier = _build(job, features)
    both = nn.ModuleList([m for m in (model, classifier) if m is not None])
    optimiser = torch.optim.Adam(both.parameters(), recipe.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, recipe.steps)
    generator = torch.Generator().manual_seed(job.seed)

    def loss(x: Tensor, there: Tensor, early: Tensor, label: Tensor, seen: Tensor) -> Tensor:
        part = Series(series.t, x, there, early, label)
        beta = annealed(training.done, recipe.steps // 2)
        return _loss(model, classifier, part, seen, beta)

    name = f"{job.data}, {job.model}, {job.classes} classes, seed {job.seed}"
    training = session.training(
        both, optimiser, loss, schedule=schedule, name=name, clip=10.0,
        generators={"rows": generator}, settings={"series": list(series.x.shape)},
    )  # fmt: skip
    for step in training.steps(recipe.steps):
        rows = torch.randint(len(series.x), (recipe.batch,), generator=generator)
        part = series.part(rows)
        low, high = _PARTS
        share = low + (high - low) * float(torch.rand((), generator=generator))
        seen = shown(part, share, generator)
        value = training.descend(part.x, part.there, part.early, part.label, seen)
        so_far = f"{job.data}, {job.model}: step {step + 1} of {recipe.steps}"
        spent = counted(model.stats) if isinstance(model, LatentODE) else ""
        show(f"{so_far}, loss {value:.3f}{spent}")
    both.eval()
    return model, classifier


def predictions(model: Model, series: Series, seen: Tensor) -> Tensor:
    """What a model expects at every time of the grid, given what it is shown, [B, T, D].

    A recurrent model goes from each observation to the times before the next, and feeds on itself
    after the last early time. Before the first observation, where there is nothing to judge, its
    answer is zero.
    """
    if isinstance(model, LatentODE):
        return model.predict(series.x, series.t, seen, at=series.t)
    if not isinstance(model, RecurrentModel):
        raise TypeError("a classifier predicts no values")
    first = seen.to(torch.int8).argmax(dim=1, keepdim=True)
    place = torch.arange(len(series.t)).expand(seen.shape)
    after = place > first
    at = torch.where(after, series.t, series.t[-1] + 1.0)
    inside = torch.where(after.unsqueeze(-1), model.between(series.x, series.t, seen, at=at), 0.0)
    start = torch.where(series.early, place + 1, 0).amax(dim=1, keepdim=True)
    count = int((len(series.t) - start).max())
    step = series.t[1] - series.t[0]
    late = model.predict(series.x, series.t, seen, at=(start + torch.arange(count)) * step)
    index = (place - start).clamp(0, count - 1).unsqueeze(-1).expand_as(inside)
    return torch.where((place >= start).unsqueeze(-1), late.gather(1, index), inside)


def interpolated(kind: str, series: Series, seen: Tensor) -> Tensor:
    """The interpolant of what is shown at every time of the grid, [B, T, D].

    Args:
        kind: "linear", or "spline": cubic, natural, and linear through two points.
        series: The series.
        seen: What is shown; before the first and after the last the nearest value is held.
    """
    found = torch.zeros_like(series.x)
    t = series.t.numpy().astype(np.float64)
    for b in range(len(series.x)):
        x, y = t[seen[b].numpy()], series.x[b, seen[b]].numpy()
        held = np.clip(t, x[0], x[-1])
        if kind == "spline" and len(x) > 2:
            values = CubicSpline(x, y, bc_type="natural")(held)
        else:
            values = np.stack([np.interp(held, x, channel) for channel in y.T], axis=1)
        found[b] = torch.from_numpy(values)
    return found


@torch.no_grad()
def classify(classifier: Classifier, series: Series, seen: Tensor) -> float:
    """Share of the series whose class is told right."""
    scores = classifier(series.x, series.t, seen)
    return (scores.argmax(dim=1) == series.label).double().mean().item()


def _build(job: Job, features: int) -> tuple[Model, Classifier | None]:
    recipe = job.recipe
    latent, hidden = recipe.latent, recipe.hidden
    if job.model == LATENT[1]:
        encoder = ODERNNEncoder(features, latent, hidden, solver=_one_step(job.solver))
    else:
        cell = "rnn" if job.model in MODELS[2:4] else "gru"
        encoder = RNNEncoder(features, latent, hidden, cell=cell, gaps=job.model != "RNN")
    classifier = Classifier(encoder, latent, job.classes) if job.classes else None
    noise = Gaussian(_NOISE, learned=True)
    if job.model not in LATENT:
        if classifier is not None:
            return classifier, classifier
        cell = "gru" if job.model.startswith("GRU") else "rnn"
        return RecurrentModel(features, noise, hidden, cell=cell, gaps=job.model != "RNN"), None
    field, decoder = MLP(latent, (hidden,)), nn.Linear(latent, features)
    model = LatentODE(encoder, field, decoder, noise, latent=latent, solver=job.solver)
    return model, classifier


def _one_step(solver: Solver) -> Solver:
    return Solver(solver.backend, method="rk4", step=1.0, coupling="shared", gradient="direct")


def _loss(
    model: Model, classifier: Classifier | None, series: Series, seen: Tensor, beta: float
) -> Tensor:
    """Nats for each value that is there, and nats for each class."""
    values = series.there.unsqueeze(-1).expand_as(series.x)
    total = torch.zeros(())
    if isinstance(model, LatentODE):
        bound = elbo(model, series.x, series.t, series.there, given=seen)
        total = -bound.value(beta).sum() / values.sum()
    elif isinstance(model, RecurrentModel):
        wanted = values & ~seen.unsqueeze(-1)
        found = predictions(model, series, seen)
        total = -model.likelihood.log_prob(found, series.x, wanted).sum() / wanted.sum()
    if classifier is not None:
        total = total + cross_entropy(classifier(series.x, series.t, seen), series.label)
    return total
