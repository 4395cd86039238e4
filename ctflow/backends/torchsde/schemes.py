"""Which scheme can do what: calculus, noise, Levy area and strong order, as torchsde has them."""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

from ctflow.sde import Calculus, Noise

__all__ = ["SCHEMES", "LevyArea", "Scheme", "default_method"]

LevyArea: TypeAlias = Literal["none", "space-time", "davie", "foster"]

_ALL: tuple[Noise, ...] = ("diagonal", "scalar", "additive", "general")
_COMMUTATIVE: tuple[Noise, ...] = ("diagonal", "scalar", "additive")
_BOTH: tuple[Calculus, ...] = ("ito", "stratonovich")


class Scheme(NamedTuple):
    """One scheme.

    Attributes:
        calculi: What it can mean by dW.
        noises: What noise it takes.
        levy: Levy areas of the Brownian motion, of which it needs one; () for none.
        order: Strong order by noise; 0.5 where a noise is not named.
    """

    calculi: tuple[Calculus, ...]
    noises: tuple[Noise, ...]
    levy: tuple[LevyArea, ...]
    order: dict[Noise, float]

    def strong_order(self, noise: Noise) -> float:
        """Power of the step by which the error of a path falls."""
        return self.order.get(noise, 0.5)


_ONE: dict[Noise, float] = {"diagonal": 1.0, "scalar": 1.0, "additive": 1.0}
_ADDITIVE: dict[Noise, float] = {"additive": 1.0}

# Orders as torchsde declares them (methods/*.py of version 0.2.6), measured in our tests.
SCHEMES: dict[str, Scheme] = {
    "euler": Scheme(("ito",), _ALL, (), _ADDITIVE),
    "milstein": Scheme(_BOTH, _COMMUTATIVE, (), _ONE),
    "srk": Scheme(
        ("ito",),
        _COMMUTATIVE,
        ("space-time", "davie", "foster"),
        {"diagonal": 1.5, "scalar": 1.5, "additive": 1.5},
    ),
    "midpoint": Scheme(("stratonovich",), _ALL, (), _ONE),
    "heun": Scheme(("stratonovich",), _ALL, (), _ONE),
    "euler_heun": Scheme(("stratonovich",), _ALL, (), _ONE),
    "log_ode": Scheme(("stratonovich",), _ALL, ("foster", "davie"), _ONE),
    "reversible_heun": Scheme(("stratonovich",), _ALL, (), _ADDITIVE),
}


def default_method(calculus: Calculus, noise: Noise) -> str:
    """The scheme taken where none is named."""
    if calculus == "stratonovich":
        return "midpoint"
    return "euler" if noise == "general" else "srk"
