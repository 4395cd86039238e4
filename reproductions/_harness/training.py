"""Training the networks of Table 1: one job a network and seed, resumable after every epoch."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

from _harness.comparison import evaluations
from _harness.images import Images, Samples, cache_folder, load_images
from _harness.live import Epoch
from ctflow import Solver, __version__
from ctflow.dynamics import (
    MLP,
    ConcatLinear,
    ImageClassifier,
    ODEBlock,
    ode_net,
    one_hidden_layer,
    res_net,
    rk_net,
)
from ctflow.errors import GradientWarning

__all__ = ["NETS", "Job", "Recipe", "Trained", "build", "correct", "train"]

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
    device: str = "cpu"

    def record(self) -> dict[str, object]:
        """The settings as they stand in a result file."""
        return asdict(self) | {"solver": repr(self.solver)}

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
    *,
    keep: bool = False,
    until: float = math.inf,
    images: Images | None = None,
) -> Trained | None:
    """Do a job, or go on with it where an earlier call stopped.

    Args:
        job: The job.
        show: Told how far it is.
        keep: Whether to keep its state after every epoch, in the cache folder, and to use what is
            kept there.
        until: Time (`time.monotonic`) after which no further epoch is begun.
        images: The job's data, if they have been loaded already.

    Returns:
        The trained network; None if the time was up before.
    """
    images = job.images() if images is None else images
    model = build(job).to(job.device)
    optimiser, schedule = _optimisers(job.recipe, model, len(images.train.y))
    path, history = _path(job, images), []
    if keep and path.is_file():
        state = torch.load(path, map_location=job.device, weights_only=True)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        schedule.load_state_dict(state["schedule"])
        torch.set_rng_state(state["generator"].cpu())
        history = [Epoch(**epoch) for epoch in state["history"]]
    while len(history) < job.recipe.epochs:
        if time.monotonic() > until:
            return None
        history.append(_epoch(job, model, images, optimiser, schedule, history, show))
        if keep:
            state = {
                "model": model.state_dict(),
                "optimiser": optimiser.state_dict(),
                "schedule": schedule.state_dict(),
                "generator": torch.get_rng_state(),
                "history": [asdict(epoch) for epoch in history],
            }
            _save(path, state)
    model.eval()
    right = correct(model, images.test, job.device)
    return Trained(job, model, history, right, sum(p.numel() for p in model.parameters()))


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


def _epoch(
    job: Job,
    model: nn.Module,
    images: Images,
    optimiser: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    history: list[Epoch],
    show: Callable[[str], None],
) -> Epoch:
    """One pass over the training set; the test after it is to show, and chooses nothing."""
    model.train()
    recipe, began = job.recipe, _clock(job.device)
    before = history[-1] if history else Epoch(0, math.nan, math.nan, 0.0, 0.0, 0.0)
    total, forward, backward = 0.0, [0.0], [0.0]
    order = torch.randperm(len(images.train.y))
    for rows in order.split(recipe.batch):
        x = shifted(images.train.x[rows], recipe.crop).to(job.device)
        loss = cross_entropy(
            model(x), images.train.y[rows].to(job.device), label_smoothing=recipe.smoothing
        )
        optimiser.zero_grad()
        with warnings.catch_warnings():  # a doubted gradient is the paper's; the table names it
            warnings.simplefilter("ignore", GradientWarning)
            loss.backward()
        optimiser.step()
        schedule.step()
        total += loss.item() * len(rows)
        body = getattr(model, "body", None)
        if isinstance(body, ODEBlock) and body.stats is not None:
            counts = evaluations(body.stats)
            forward.append(counts[0])
            backward.append(counts[1])
        accuracy = f"accuracy {before.accuracy:.2%}  " if history else ""
        show(
            f"{job.net}, seed {job.seed}: epoch {len(history) + 1}/{recipe.epochs}  "
            f"loss {loss.item():.3f}  {accuracy}evaluations {forward[-1]:.1f} + {backward[-1]:.1f}"
        )
    right = correct(model, images.test, job.device)
    n_batches = max(len(forward) - 1, 1)
    return Epoch(
        len(history) + 1,
        total / len(order),
        sum(right) / len(right),
        round(sum(forward) / n_batches, 3),
        round(sum(backward) / n_batches, 3),
        round(before.seconds + _clock(job.device) - began, 1),
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


def _clock(device: str) -> float:
    """Seconds of this process on a CPU, whatever else the machine does; by the clock on a GPU."""
    return time.process_time() if device == "cpu" else time.perf_counter()


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


def _path(job: Job, images: Images) -> Path:
    """Where the state of a job is kept: a name that changes with anything that matters."""
    settings = job.record() | {"images": images.record(), "version": __version__}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    name = job.net.replace(" ", "-").lower()
    return cache_folder() / "runs" / f"{name}-{job.seed}-{digest}.pt"


def _save(path: Path, state: Mapping[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    torch.save(dict(state), temporary)
    temporary.replace(path)
