"""Models of whitened pixels: continuous flows over three fields, and a spline flow."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from _harness.pixels import N_PIXELS
from ctflow import Solver
from ctflow.flows import (
    ContinuousFlow,
    FreeForm,
    Hutchinson,
    KnowsDivergence,
    PotentialField,
    jacobian,
    kinetic,
    log_density,
    matching_loss,
)

__all__ = ["PLANS", "Plan", "Settings", "base"]


class Settings(Protocol):
    """What a plan depends on.

    Args:
        backend: The one that trains.
        likelihood_iterations: Of maximum likelihood with a solver.
        iterations: Of the others.
        width: Of the free-form field's two layers; half that of the potential's one.
        rate: Learning rate of the free-form field.
        regularised: Weight of each of RNODE's costs.
        loose: rtol and atol of training.
        tolerance: rtol and atol of the judge.
    """

    backend: str
    likelihood_iterations: int
    iterations: int
    width: int
    rate: float
    regularised: float
    loose: float
    tolerance: float


def base() -> Independent:
    """N(0, I), which is the full-covariance Gaussian of the logits."""
    return Independent(Normal(torch.zeros(N_PIXELS), torch.ones(N_PIXELS)), 1)


class Plan(NamedTuple):
    """How a model is trained and judged; all functions of whitened points [n, 64]."""

    network: nn.Module
    loss: Callable[[Tensor], Tensor]
    quick: Callable[[Tensor], Tensor]
    log_prob: Callable[[Tensor], Tensor]
    sample: Callable[[int], Tensor]
    iterations: int
    rate: float


class Flows(NamedTuple):
    """Flows over one field: makes one that trains, with fresh probes; and the one that judges."""

    training: Callable[[], ContinuousFlow]
    judge: ContinuousFlow


def flows_of(config: Settings, field: nn.Module, *, costs: bool) -> Flows:
    """With the exact trace in closed form if the field has one, else Hutchinson's in training."""
    loose = Solver(
        config.backend, rtol=config.loose, atol=config.loose, coupling="shared", gradient="direct"
    )
    tight = Solver(rtol=config.tolerance, atol=config.tolerance, coupling="shared")
    divergence = None if isinstance(field, KnowsDivergence) else Hutchinson()

    def training() -> ContinuousFlow:
        running = [kinetic, jacobian] if costs else []
        return ContinuousFlow(
            base(), field, divergence=divergence, running_costs=running, solver=loose
        )

    return Flows(training, ContinuousFlow(base(), field, solver=tight))


def free_form(config: Settings) -> FreeForm:
    """Two layers with tanh."""
    return FreeForm(N_PIXELS, (config.width,) * 2, activation=nn.Tanh)


def by_likelihood(config: Settings) -> Plan:
    """FFJORD with RNODE's costs."""
    field = free_form(config)
    flows = flows_of(config, field, costs=True)

    def loss(x: Tensor) -> Tensor:
        found = log_density(flows.training(), x)
        return (config.regularised * found.costs.sum(dim=1) - found.value).mean()

    return Plan(
        field, loss, lambda x: flows.training().log_prob(x), flows.judge.log_prob,
        lambda n: flows.judge.sample((n,)), config.likelihood_iterations, config.rate,
    )  # fmt: skip


def by_potential(config: Settings) -> Plan:
    """The gradient of a potential, whose trace is a closed form."""
    field = PotentialField(N_PIXELS, 2 * config.width)
    flows = flows_of(config, field, costs=False)
    return Plan(
        field, lambda x: -flows.training().log_prob(x).mean(),
        lambda x: flows.training().log_prob(x), flows.judge.log_prob,
        lambda n: flows.judge.sample((n,)), config.likelihood_iterations, 2 * config.rate,
    )  # fmt: skip


def by_matching(config: Settings) -> Plan:
    """FFJORD's field by flow matching."""
    field = free_form(config)
    flows = flows_of(config, field, costs=False)
    return Plan(
        field, lambda x: matching_loss(field, torch.randn_like(x), x),
        lambda x: flows.training().log_prob(x), flows.judge.log_prob,
        lambda n: flows.judge.sample((n,)), config.iterations, config.rate,
    )  # fmt: skip


def spline(config: Settings) -> Plan:
    """A neural spline coupling flow, zuko's."""
    from zuko.flows import NSF  # optional

    network = NSF(N_PIXELS, transforms=4, passes=2, hidden_features=(config.width,) * 2)

    def log_prob(x: Tensor) -> Tensor:
        return network().log_prob(x)

    return Plan(
        network, lambda x: -log_prob(x).mean(), log_prob, log_prob,
        lambda n: network().sample((n,)), config.iterations, 0.2 * config.rate,
    )  # fmt: skip


PLANS = {
    "FFJORD": by_likelihood,
    "potential": by_potential,
    "matching": by_matching,
    "spline": spline,
}
