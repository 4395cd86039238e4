"""The ODE-Nets that several scripts look at: trained by one of them, kept, and used by all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from _harness.devices import present
from _harness.images import SOURCES
from _harness.training import Job, Recipe
from ctflow import Solver

__all__ = ["DIGIT_SETS", "FULL", "OFFICIAL", "PAPER", "PAPER_SETS", "SMALL", "on_first", "settled"]

OFFICIAL = ("mnist", "torchvision")
"""MNIST with its own test set."""

DIGIT_SETS = (*OFFICIAL, "mnist-10000", "digits")
"""What the presets `quick` take: their bands are about digits, not clothes."""

_IMAGES = {"digits": 1437}  # training images of small sets

PAPER_SETS = (*OFFICIAL, "fashion-mnist")
"""What the presets `paper` take, the first that is here."""

SMALL = Job(
    "small ODE-Net",
    0,
    Recipe(15, batch=64, learning_rate=1.5e-2, crop=1),
    Solver(rtol=1e-3, atol=1e-3),
    n_train=3000,
)
"""784 pixels to 64 features: learns in a minute, at the paper's tolerance."""

FULL = Job(
    "ODE-Net",
    0,
    Recipe(20, batch=64, learning_rate=1e-2),
    Solver(rtol=1e-2, atol=1e-2, gradient="adjoint"),
    data="mnist-10000",
)
"""The ODE-Net of Table 1, preset `full`: a quarter of the channels, a looser tolerance."""

PAPER = Job(
    "ODE-Net",
    0,
    Recipe(160, learning_rate=0.1, optimiser="sgd", weight_decay=0.0, smoothing=0.0, crop=4),
    Solver(rtol=1e-3, atol=1e-3, gradient="adjoint"),
    channels=64,
    downsampling="res",
    smooth=False,
    identity=False,
    device="cuda",
)
"""As in torchdiffeq's `examples/odenet_mnist.py`, with the downsampling of the paper's 0.60 M."""


CLOTHES = Recipe(30, batch=512, learning_rate=5e-3)
"""Of the same networks on Fashion-MNIST, for which the paper has no recipe: minutes on a GPU."""


def settled(job: Job, backend: str, seed: int, device: str | None = None) -> Job:
    """The job by another backend and seed, and on another device if one is named.

    Raises:
        CtflowError: If the device is not here.
    """
    place = job.device if device is None else device
    present(place)
    return replace(job, seed=seed, solver=replace(job.solver, backend=backend), device=place)


def on_first(job: Job, sets: Sequence[str]) -> Job:
    """The job on the first of these sets that is here, or as it is if none is named.

    A set with fewer images than the job asks for is seen so many times more: the training is as
    long in steps. Where none of them is here, loading the first says how to get it.
    """
    if not sets:
        return job
    here = [name for name in sets if SOURCES[name].present()]
    found = replace(job, data=(here or sets)[0])
    if found.data == "fashion-mnist":
        return replace(found, recipe=CLOTHES)
    more = (job.n_train or 0) / _IMAGES.get(found.data, math.inf)
    if more <= 1:
        return found
    return replace(found, recipe=replace(job.recipe, epochs=math.ceil(job.recipe.epochs * more)))
