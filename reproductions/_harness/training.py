"""Training the networks of Table 1: one job a network and seed, resumable after every epoch."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

from _harness.comparison import evaluations
from _harness.images import Images, Samples, cache_folder, load_images
from _harness.live import Epoch
from _harness.loop import Training
from _harness.session import NOWHERE, Session
from ctflow import Solver
from ctflow.dynamics import (
    MLP,
    ConcatLinear,
    ImageClassifier,
    JacobianNorm,
    KineticEnergy,
    ODEBlock,
    Sum,
    ode_net,
    one_hidden_layer,
    rademacher_like,
    res_net,
    rk_net,
)
from ctflow.errors import GradientWarning

__all__ = ["NETS", "Job", "Recipe", "Trained", "build", "correct", "lasting", "train"]

NETS = ("MLP", "no block", "ResNet-1", "ResNet-6", "RK-Net", "ODE-Net")


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Args:
        epochs: Passes over the training set.
        batch: Images in a step.
        learning_rate: Highest rate of the one-cycle schedule ("adamw"), or the first of the
            released example's, a tenth at 3/8, 5/8 and 7/8 of the epochs ("sgd").
        optimiser: "adamw" or "sgd" with momentum 0.9.
        weight_decay: Of AdamW.
        smoothing: Of the labels.
        crop: Pixels by which an image is shifted at most, zeros moving in.
    """

    epochs: int
    batch: int = 128
    learning_rate: float = 1e-2
    optimiser: str = "adamw"
    weight_decay: float = 1e-2
    smoothing: float = 0.05
    crop: int = 2


@dataclass(frozen=True)
class Job:
    """One network to train, and everything that its result depends on beside code and machine.

    Args:
        net: One of `NETS`, or "small ODE-Net": 784 pixels to 64 features, a field 64-64-64.
        seed: Of split, weights and order.
        recipe: How.
        data: Name of a data set; None takes the first that is here.
        n_train: Training images at most.
        n_test: Test images at most.
        channels: Of the small image.
        downsampling: "conv" or "res".
        solver: Of the ODE-Net.
        rk_step: Step of the RK-Net.
        smooth: SiLU activations; else ReLU, as released.
        identity: Whether the ODE-Net and the RK-Net begin as the identity: the last scale of
            their field is 0 at first, and the adjoint is exact where nothing moves.
        rnode: Weight of each of RNODE's costs, kinetic energy and Jacobian, in an ODE-Net's loss.
        device: "cpu" or "cuda".
    """

    net: str
    seed: int
    recipe: Recipe
    solver: Solver
    data: str | None = None
    n_train: int | None = None
    n_test: int | None = None
    channels: int = 16
    downsampling: str = "conv"
    rk_step: float = 0.5
    smooth: bool = True
    identity: bool = True
    rnode: float = 0.0
    device: str = "cpu"

    @property
    def name(self) -> str:
        """Of its state: unlike that of a script's other jobs."""
        return f"{self.net}, {self.solver.backend}, seed {self.seed}"

    def record(self) -> dict[str, object]:
        """The settings as they stand in a result file."""
        found: dict[str, object] = asdict(self) | {"solver": repr(self.solver)}
        if not self.rnode:  # runs that were kept before there was this setting are found
            del found["rnode"]
        return found

    def images(self) -> Images:
        """What it learns from and is tested with."""
        return load_images(self.data, seed=self.seed, n_train=self.n_train, n_test=self.n_test)


@dataclass(frozen=True)
class Trained:
    """What came of a job.

    Args:
        job: The job.
        model: The network, in evaluation mode.
        history: Every epoch.
        right: For each test image, whether it is classified right.
        n_parameters: Trainable numbers.
    """

    job: Job
    model: nn.Module
    history: list[Epoch]
    right: list[bool]
    n_parameters: int

    @property
    def error(self) -> float:
        """Share of the test images that are classified wrong."""
        return 1 - sum(self.right) / len(self.right)


def build(job: Job) -> nn.Module:
    """The network of a job, with weights by its seed."""
    torch.manual_seed(job.seed)
    plan: dict[str, Any] = {
        "downsampling": job.downsampling,
        "activation": nn.SiLU if job.smooth else nn.ReLU,
    }
    if job.net == "MLP":
        return one_hidden_layer()
    if job.net == "small ODE-Net":
        stem = nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.Tanh())
        field = MLP(64, (64,), layer=ConcatLinear)
        return ImageClassifier(stem, ODEBlock(field, solver=job.solver), nn.Linear(64, 10))
    if job.net in ("no block", "ResNet-1", "ResNet-6"):
        blocks = {"no block": 0, "ResNet-1": 1, "ResNet-6": 6}[job.net]
        return res_net(job.channels, blocks, **plan)
    if job.net == "RK-Net":
        model = rk_net(job.channels, step=job.rk_step, **plan)
    else:
        model = ode_net(job.channels, solver=job.solver, **plan)
    if job.identity:
        nn.init.zeros_(model.body.field.norm3.weight)
    return model


def train(
    job: Job,
    show: Callable[[str], None],
    session: Session = NOWHERE,
    *,
    images: Images | None = None,
) -> Trained:
    """Do a job, or go on with it where an earlier call stopped.

    Args:
        job: The job.
        show: Told how far it is.
        session: Where its state is kept.
        images: The job's data, if they have been loaded already.

    Returns:
        The trained network.

    Raises:
        Unfinished: If the time was up before.
    """
    images = job.images() if images is None else images
    model = build(job).to(job.device)
    optimiser, schedule = _optimisers(job.recipe, model, len(images.train.y))

    def loss(x: Tensor, label: Tensor) -> Tensor:
        x, label = x.to(job.device), label.to(job.device)
        logits, cost = _logits_and_cost(job, model, x)
        return cross_entropy(logits, label, label_smoothing=job.recipe.smoothing) + cost

    training = session.training(
        model, optimiser, loss, schedule=schedule, name=job.name,
        settings=job.record() | {"images": images.record()},
    )  # fmt: skip
    batches = math.ceil(len(images.train.y) / job.recipe.batch)
    training.notes.setdefault("history", [])
    for step in training.steps(job.recipe.epochs * batches):
        _step(job, training, images, *divmod(step, batches), show)
        if (step + 1) % batches == 0:
            model.eval()
            training.notes["history"].append(asdict(_after(job, training, images)))
    model.eval()
    right = correct(model, images.test, job.device)
    history = [Epoch(**epoch) for epoch in training.notes["history"]]
    return Trained(job, model, history, right, sum(p.numel() for p in model.parameters()))


def lasting(session: Session) -> Session:
    """The session with its states where other scripts find them, if they are to stay."""
    return session.elsewhere(cache_folder() / "runs") if session.keep else session


@torch.no_grad()
def correct(model: nn.Module, samples: Samples, device: str = "cpu") -> list[bool]:
    """For each image, whether its largest logit is the label's."""
    was_training = model.training
    model.eval()
    found: list[bool] = []
    for x, y in zip(samples.x.split(250), samples.y.split(250), strict=True):
        found += (model(x.to(device)).argmax(1).cpu() == y).tolist()
    model.train(was_training)
    return found


def shifted(images: Tensor, by: int) -> Tensor:
    """Each image moved by at most so many pixels along each side; zeros move in."""
    if by == 0:
        return images
    size = images.shape[-1]
    windows = pad(images, (by,) * 4, value=float(images.min())).unfold(2, size, 1)
    windows = windows.unfold(3, size, 1)  # [B, 1, 2 by + 1, 2 by + 1, H, W]
    down, right = torch.randint(0, 2 * by + 1, (2, len(images)))
    return windows[torch.arange(len(images)), :, down, right]


def _logits_and_cost(job: Job, model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """What a network says of images, and what its path adds to the loss."""
    if not (job.rnode and isinstance(model, ImageClassifier)):
        return model(x), x.new_zeros(())
    start, field = model.stem(x), model.body.field
    costs = KineticEnergy(field), JacobianNorm(field, rademacher_like(start))
    solution = model.body.solve(start, running_cost=Sum(costs, (job.rnode, job.rnode)))
    return model.head(solution.y[-1]), solution.cost[-1].mean()


def _step(
    job: Job,
    training: Training,
    images: Images,
    epoch: int,
    batch: int,
    show: Callable[[str], None],
) -> None:
    """One batch of an epoch, whose order is drawn at its first."""
    notes, recipe = training.notes, job.recipe
    if batch == 0:
        notes["order"] = torch.randperm(len(images.train.y))
        notes["epoch"] = {"total": 0.0, "forward": [], "backward": []}
    training.model.train()
    rows = notes["order"].split(recipe.batch)[batch]
    with warnings.catch_warnings():  # a doubted gradient is the paper's; the table names it
        warnings.simplefilter("ignore", GradientWarning)
        loss = training.descend(shifted(images.train.x[rows], recipe.crop), images.train.y[rows])
    counts = 0.0, 0.0
    notes["epoch"]["total"] += loss * len(rows)
    body = getattr(training.model, "body", None)
    if isinstance(body, ODEBlock) and body.stats is not None:
        counts = evaluations(body.stats)
        notes["epoch"]["forward"].append(counts[0])
        notes["epoch"]["backward"].append(counts[1])
    history = notes["history"]
    accuracy = f"accuracy {history[-1]['accuracy']:.2%}  " if history else ""
    show(
        f"{job.net}, seed {job.seed}: epoch {epoch + 1}/{recipe.epochs}  "
        f"loss {loss:.3f}  {accuracy}evaluations {counts[0]:.1f} + {counts[1]:.1f}"
    )


def _after(job: Job, training: Training, images: Images) -> Epoch:
    """What an epoch came to; the test after it is to show, and chooses nothing."""
    model, epoch = training.model, training.notes["epoch"]
    right = correct(model, images.test, job.device)
    n_batches = max(len(epoch["forward"]), 1)
    return Epoch(
        len(training.notes["history"]) + 1,
        epoch["total"] / len(images.train.y),
        sum(right) / len(right),
        round(sum(epoch["forward"]) / n_batches, 3),
        round(sum(epoch["backward"]) / n_batches, 3),
        round(training.seconds, 1),
        _evaluations_at(1e-3, model, images.test.x[:250].to(job.device)),
    )


@torch.no_grad()
def _evaluations_at(tolerance: float, model: nn.Module, x: Tensor) -> float | None:
    """Evaluations of a forward pass at a tolerance; the solver is put back."""
    body = getattr(model, "body", None)
    if not isinstance(body, ODEBlock) or body.solver.step is not None:
        return None
    start, own, stats = model.stem(x), body.solver, body.stats  # pyright: ignore
    body.solver = replace(own, rtol=tolerance, atol=tolerance)
    body(start)
    found = evaluations(body.stats)[0]
    body.solver, body.stats = own, stats
    return round(found, 3)


def _optimisers(
    recipe: Recipe, model: nn.Module, n_train: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    n_batches = math.ceil(n_train / recipe.batch)
    steps = recipe.epochs * n_batches
    if recipe.optimiser == "sgd":
        sgd = torch.optim.SGD(model.parameters(), recipe.learning_rate, momentum=0.9)
        drops = [int(steps * part) for part in (3 / 8, 5 / 8, 7 / 8)]
        return sgd, torch.optim.lr_scheduler.MultiStepLR(sgd, drops)
    adamw = torch.optim.AdamW(
        model.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    cycle = torch.optim.lr_scheduler.OneCycleLR(adamw, recipe.learning_rate, total_steps=steps)
    return adamw, cycle
