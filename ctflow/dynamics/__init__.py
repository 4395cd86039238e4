"""Vector fields for neural differential equations, the layer that solves them, and image nets.

A field is called as `f(t, y)`. Time arrives 0-dim under shared steps and [B, 1, ..., 1] under
per-sample steps; every field here takes both.
"""

from ctflow.dynamics.augment import Augment
from ctflow.dynamics.block import ODEBlock
from ctflow.dynamics.conv import ConcatConv2d, ConvField
from ctflow.dynamics.counting import CountCalls
from ctflow.dynamics.images import (
    ImageClassifier,
    ResidualBlock,
    image_classifier,
    ode_net,
    one_hidden_layer,
    res_net,
    rk_net,
)
from ctflow.dynamics.mechanics import HamiltonianField, SecondOrderField
from ctflow.dynamics.mlp import MLP
from ctflow.dynamics.running_costs import (
    JacobianNorm,
    KineticEnergy,
    Sum,
    TaylorNorm,
    rademacher_like,
)
from ctflow.dynamics.time_layers import ConcatLinear, ConcatSquashLinear, IgnoreLinear

__all__ = [
    "MLP",
    "Augment",
    "ConcatConv2d",
    "ConcatLinear",
    "ConcatSquashLinear",
    "ConvField",
    "CountCalls",
    "HamiltonianField",
    "IgnoreLinear",
    "ImageClassifier",
    "JacobianNorm",
    "KineticEnergy",
    "ODEBlock",
    "ResidualBlock",
    "SecondOrderField",
    "Sum",
    "TaylorNorm",
    "image_classifier",
    "ode_net",
    "one_hidden_layer",
    "rademacher_like",
    "res_net",
    "rk_net",
]
