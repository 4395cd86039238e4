"""Normalizing flows: continuous ones under any backend, and what they are compared with."""

from ctflow.flows.continuous import ContinuousFlow, log_density
from ctflow.flows.costs import jacobian, kinetic, random_end
from ctflow.flows.divergence import (
    Divergence,
    Exact,
    Hutchinson,
    HutchPlusPlus,
    KnowsDivergence,
    Rates,
)
from ctflow.flows.fields import FreeForm, HamiltonianField, PotentialField
from ctflow.flows.likelihood import LogDensity
from ctflow.flows.matching import (
    conditional_transport,
    linear_path,
    matching_loss,
    pair_by_transport,
)
from ctflow.flows.planar import GatedPlanar, HyperPlanar, Planar
from ctflow.flows.planar_layers import PlanarLayers
from ctflow.flows.transform import FlowTransform

__all__ = [
    "ContinuousFlow",
    "Divergence",
    "Exact",
    "FlowTransform",
    "FreeForm",
    "GatedPlanar",
    "HamiltonianField",
    "HutchPlusPlus",
    "Hutchinson",
    "HyperPlanar",
    "KnowsDivergence",
    "LogDensity",
    "Planar",
    "PlanarLayers",
    "PotentialField",
    "Rates",
    "conditional_transport",
    "jacobian",
    "kinetic",
    "linear_path",
    "log_density",
    "matching_loss",
    "pair_by_transport",
    "random_end",
]
