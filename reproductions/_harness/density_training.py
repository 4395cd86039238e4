"""Flows matched to an energy: planar layers and planar units, trained and kept on the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from _harness.energies import confined
from _harness.flow_training import minimise, one_cycle, training_of
from _harness.loop import Training
from _harness.session import Session
from ctflow import Solver
from ctflow.flows import ContinuousFlow, HyperPlanar, PlanarLayers

__all__ = ["Fit", "Recipe", "fit_continuous", "fit_layers"]

_ANNEALED = 0.3  # share of the NF's training in which its energy grows to its full weight


class Fit(NamedTuple):
    """A trained flow.

    Args:
        draw: Samples [n, 2] and their log-densities [n], of n.
        log_prob: Log-density of points [n, 2], [n].
        seconds: Training time.
    """

    draw: Callable[[int], tuple[Tensor, Tensor]]
    log_prob: Callable[[Tensor], Tensor]
    seconds: float


@dataclass(frozen=True)
class Recipe:
    """How both kinds of flow are trained.

    Args:
        seed: Of weights and samples.
        backend: That trains the CNF; the native one judges it.
        iterations: Of the training.
        batch: Samples in an iteration.
        rate: Highest rate of the one-cycle schedule.
        loose: rtol and atol of the CNF's training.
        tolerance: rtol and atol of the flow that is handed back.
    """

    seed: int
    backend: str
    iterations: int
    batch: int
    rate: float
    loose: float
    tolerance: float


def fit_layers(
    recipe: Recipe, target: str, size: int, session: Session, show: Callable[[str], None]
) -> Fit:
    """K planar layers by RMSprop.

    Raises:
        Unfinished: If the time is over.
    """
    torch.manual_seed(recipe.seed)
    layers, start, energy = PlanarLayers(2, size), _base(), confined(target)
    optimiser = torch.optim.RMSprop(layers.parameters(), lr=recipe.rate)

    def pushed(z: Tensor) -> tuple[Tensor, Tensor]:
        x, log_det = layers.push(z)
        return x, start.log_prob(z) - log_det

    def loss(z: Tensor) -> Tensor:
        x, log_prob = pushed(z)
        return (log_prob + _weight(training.done, recipe.iterations) * energy(x)).mean()

    training = _trained(recipe, layers, optimiser, loss, session, f"NF-{target}-{size}")
    minimise(training, lambda: (start.sample((recipe.batch,)),), recipe.iterations, show)

    def log_prob(x: Tensor) -> Tensor:
        z = layers.pull(x)
        return start.log_prob(z) - layers.push(z)[1]

    return Fit(lambda n: pushed(start.sample((n,))), log_prob, training.seconds)


def fit_continuous(
    recipe: Recipe, target: str, size: int, session: Session, show: Callable[[str], None]
) -> Fit:
    """M planar units with weights that depend on time, by Adam.

    Raises:
        Unfinished: If the time is over.
    """
    torch.manual_seed(recipe.seed)
    field, energy = HyperPlanar(2, size), confined(target)
    flow, checked = (
        ContinuousFlow(_base(), field, solver=solver)
        for solver in (
            Solver(
                recipe.backend, rtol=recipe.loose, atol=recipe.loose, coupling="shared",
                gradient="direct",
            ),
            Solver(rtol=recipe.tolerance, atol=recipe.tolerance, coupling="shared"),
        )
    )  # fmt: skip
    optimiser = torch.optim.Adam(field.parameters(), lr=recipe.rate)

    def loss(rows: Tensor) -> Tensor:
        x, log_prob = flow.rsample_and_log_prob((len(rows),))
        return (log_prob + energy(x)).mean()

    training = _trained(recipe, field, optimiser, loss, session, f"CNF-{target}-{size}")
    minimise(training, lambda: (torch.arange(recipe.batch),), recipe.iterations, show)
    return Fit(lambda n: checked.rsample_and_log_prob((n,)), checked.log_prob, training.seconds)


def _base() -> Independent:
    """N(0, I) in the plane, where every flow begins."""
    return Independent(Normal(torch.zeros(2), torch.ones(2)), 1)


def _weight(done: int, iterations: int) -> float:
    """Of the energy for the NF: Rezende and Mohamed's beta_t.

    (For the CNF it was tried and left out: with two units it ended 0.2 to 0.4 nats higher.)
    """
    return min(1.0, 0.01 + done / (_ANNEALED * iterations))


def _trained(
    recipe: Recipe,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    loss: Callable[..., Tensor],
    session: Session,
    name: str,
) -> Training:
    schedule = one_cycle(optimiser, recipe.rate, recipe.iterations)
    name = f"{name}-{recipe.seed}"
    return training_of(session, model, optimiser, schedule, loss, name, asdict(recipe))
