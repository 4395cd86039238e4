"""The built-in methods by name."""

from __future__ import annotations

from ctflow.backends.native.methods.dop853 import DOP853
from ctflow.backends.native.methods.dopri8 import DOPRI8
from ctflow.backends.native.methods.fifth import DOPRI5, TSIT5
from ctflow.backends.native.methods.low import (
    BOSH3,
    EULER,
    HEUN,
    MIDPOINT,
    RALSTON,
    RK4,
    RK4_38,
)
from ctflow.backends.native.methods.rodas5p import RODAS5P
from ctflow.backends.native.methods.vern7 import VERN7

__all__ = ["IMPLICIT", "METHODS"]

METHODS = {
    m.name: m
    for m in (
        EULER, MIDPOINT, HEUN, RALSTON, RK4, RK4_38, BOSH3, DOPRI5, TSIT5, VERN7, DOPRI8, DOP853,
    )
}  # fmt: skip
"""Every built-in explicit method by name."""

IMPLICIT = {RODAS5P.name: RODAS5P}
"""Methods for stiff problems by name."""
