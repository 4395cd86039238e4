"""Vector fields for neural differential equations, and the layer that solves them.

A field is called as `f(t, y)`. Time arrives 0-dim under shared steps and [B, 1, ..., 1] under
per-sample steps; every field here takes both.
"""

from ctflow.dynamics.block import ODEBlock
from ctflow.dynamics.conv import ConcatConv2d, ConvField
from ctflow.dynamics.counting import CountCalls
from ctflow.dynamics.mlp import MLP
from ctflow.dynamics.time_layers import ConcatLinear, ConcatSquashLinear, IgnoreLinear

__all__ = [
    "MLP",
    "ConcatConv2d",
    "ConcatLinear",
    "ConcatSquashLinear",
    "ConvField",
    "CountCalls",
    "IgnoreLinear",
    "ODEBlock",
]
