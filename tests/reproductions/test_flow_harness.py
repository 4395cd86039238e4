"""Targets have the normalisers and entropies that bound the flows."""

from __future__ import annotations

import math

import pytest
import torch
from _harness.energies import ENERGIES, confined, log_z
from _harness.shapes import SHAPES, energy_distance

FLOAT = torch.float64


def test_the_normaliser_of_the_bounded_energy_is_the_known_one() -> None:
    """U1: Z = 6.5372 on the plane, which the wall leaves alone."""
    assert abs(math.exp(log_z("U1")) - 6.5372) < 1e-4


@pytest.mark.parametrize(("name", "window"), [("U3", 2.642), ("U4", 2.685)])
def test_the_wall_confines_the_unbounded_energies(name: str, window: float) -> None:
    """A little more than the window holds, and finite; a coarser grid says the same."""
    assert window < log_z(name) < window + 0.05
    assert abs(log_z(name) - log_z(name, 0.02)) < 1e-6


@pytest.mark.parametrize("name", ENERGIES)
def test_the_wall_stands_outside_the_window(name: str) -> None:
    """100 (|z_i| - 4)^2, and nothing within."""
    z = torch.tensor([[1.0, -3.9], [4.5, 0.0], [-4.5, 5.0]])
    added = confined(name)(z) - ENERGIES[name](z)
    assert torch.allclose(added, torch.tensor([0.0, 25.0, 125.0]), rtol=1e-4)


def test_circles_have_the_entropy_that_is_known() -> None:
    """0.787 nats at noise 0.06 (quadrature by someone else, at another resolution)."""
    assert abs(SHAPES["circles"].entropy() - 0.787) < 2e-3


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_has_the_density_of_its_samples(name: str) -> None:
    """Cross-entropy of samples against entropy, within four standard errors; mass one."""
    shape = SHAPES[name]
    x = shape.sample(4000, torch.Generator().manual_seed(0)).double()
    losses = -shape.log_prob(x)
    error = float(losses.std()) / 4000**0.5
    assert abs(float(losses.mean()) - shape.entropy()) < 4 * error
    side = torch.arange(-2.0, 3.0, 0.03, dtype=FLOAT)
    mass = shape.log_prob(torch.cartesian_prod(side, side)).exp().sum() * 0.03**2
    assert abs(float(mass) - 1) < 1e-6


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_are_those_of_scikit_learn(name: str) -> None:
    """By energy distance, to samples of the same size."""
    datasets = pytest.importorskip("sklearn.datasets")
    shape = SHAPES[name]
    made = (
        datasets.make_circles(2000, noise=0.06, factor=0.5, random_state=0)
        if name == "circles"
        else datasets.make_moons(2000, noise=0.07, random_state=0)
    )
    theirs = torch.tensor(made[0], dtype=FLOAT)
    ours = shape.sample(2000, torch.Generator().manual_seed(0)).double()
    assert abs(energy_distance(ours, theirs)) < 2e-3
    assert energy_distance(ours + 0.1, theirs) > 5e-3
