"""Every method satisfies its own algebra, and a wrong coefficient is refused by name."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from ctflow import InvalidProblem
from ctflow.backends.native.tableau import METHODS, Tableau

methods = pytest.mark.parametrize("tableau", METHODS.values(), ids=METHODS.keys())
ORDERS = {"euler": 1, "midpoint": 2, "rk4": 4, "bosh3": 3, "dopri5": 5, "tsit5": 5}
RK4, DOPRI5 = METHODS["rk4"], METHODS["dopri5"]


def fifth_order_residuals(tableau: Tableau, weights: tuple[float, ...]) -> dict[str, float]:
    """The nine conditions of order 5 (Hairer I, table II.2.1), which Tableau itself leaves out."""
    a, c, n = tableau.a, tableau.c, range(tableau.stages)

    def under(x: list[float]) -> list[float]:
        return [math.fsum(a[i][j] * x[j] for j in range(i)) for i in n]

    def total(x: list[float]) -> float:
        return math.fsum(weights[i] * x[i] for i in n)

    ac, ac2, ac3 = (under([c[i] ** p for i in n]) for p in (1, 2, 3))
    cac = [c[i] * ac[i] for i in n]
    return {
        "c4": total([c[i] ** 4 for i in n]) - 1 / 5,
        "c2 ac": total([c[i] ** 2 * ac[i] for i in n]) - 1 / 10,
        "ac ac": total([ac[i] ** 2 for i in n]) - 1 / 20,
        "c ac2": total([c[i] * ac2[i] for i in n]) - 1 / 15,
        "ac3": total(ac3) - 1 / 20,
        "c aac": total([c[i] * under(ac)[i] for i in n]) - 1 / 30,
        "a cac": total(under(cac)) - 1 / 40,
        "aac2": total(under(ac2)) - 1 / 60,
        "aaac": total(under(under(ac))) - 1 / 120,
    }


@methods
def test_the_order_is_the_published_one(tableau: Tableau) -> None:
    """The number that error control uses is that of the literature."""
    assert tableau.order == ORDERS[tableau.name]


@pytest.mark.parametrize("name", ["dopri5", "tsit5"])
def test_fifth_order_conditions_hold(name: str) -> None:
    """All nine trees with five nodes vanish to rounding."""
    residuals = fifth_order_residuals(METHODS[name], METHODS[name].b)
    assert max(map(abs, residuals.values())) < 1e-14


@pytest.mark.parametrize("name", ["dopri5", "tsit5"])
def test_the_embedded_solution_is_of_lower_order(name: str) -> None:
    """The error weights see fifth-order terms: otherwise the estimate would be blind."""
    tableau = METHODS[name]
    embedded = tuple(b - e for b, e in zip(tableau.b, tableau.e or (), strict=True))
    assert max(map(abs, fifth_order_residuals(tableau, embedded).values())) > 1e-6


@methods
def test_the_interpolant_meets_both_ends(tableau: Tableau) -> None:
    """Weights are 0 at the start and b at the end."""
    assert tableau.weights(0.0) == (0.0,) * tableau.stages
    assert tableau.weights(1.0) == pytest.approx(tableau.b, abs=1e-14)


@pytest.mark.parametrize(
    ("name", "order"), [("midpoint", 2), ("rk4", 3), ("bosh3", 3), ("dopri5", 4), ("tsit5", 4)]
)
@pytest.mark.parametrize("s", [0.25, 0.5, 0.9])
def test_the_interpolant_satisfies_its_order_conditions(name: str, order: int, s: float) -> None:
    """Sum w_i(s) c_i^(q-1) = s^q / q for q up to its order (Hairer I, II.6, eq. 6.13)."""
    tableau = METHODS[name]
    w, c = tableau.weights(s), tableau.c
    found = [
        math.fsum(wi * ci ** (q - 1) for wi, ci in zip(w, c, strict=True))
        for q in range(1, order + 1)
    ]
    assert found == pytest.approx([s**q / q for q in range(1, order + 1)], abs=1e-13)


@methods
def test_stages_lie_inside_the_step(tableau: Tableau) -> None:
    """No node is negative or beyond 1, so f is never asked outside the step."""
    assert all(0.0 <= c <= 1.0 for c in tableau.c)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"c": (0.0, 0.5, 0.5)}, "lengths"),
        ({"a": ((), (0.5,), (0.0, 0.5), (0.0, 1.0))}, "lengths"),
        ({"c": (0.0, 0.5, 0.5, 0.9)}, r"row 3 of a"),
        ({"b": (1 / 3, 1 / 6, 1 / 3, 1 / 6)}, "order condition sum b c = 1/2"),
        ({"e": (0.1, 0.0, 0.0, 0.0), "error_order": 3}, "sum to 0"),
        ({"e": (0.1, -0.1, 0.0, 0.0)}, "error_order"),
        ({"p": ((1.0,), (0.0,), (0.0,), (0.0,))}, "row 0 of p"),
        ({"p": tuple((0.0, b) for b in RK4.b)}, "slope 1"),
    ],
)
def test_a_contradiction_is_refused_by_what_it_breaks(
    changes: dict[str, Any], complaint: str
) -> None:
    """The message names the tableau and the condition."""
    with pytest.raises(InvalidProblem, match=f"'rk4' must have .*{complaint}"):
        replace(RK4, **changes)


@pytest.mark.parametrize("i", range(1, 7))
def test_a_mistyped_coefficient_is_noticed(i: int) -> None:
    """Any of dopri5's rows with its first coefficient off by 1e-9 fails its row sum."""
    rows = [list(row) for row in DOPRI5.a]
    rows[i][0] += 1e-9
    with pytest.raises(InvalidProblem, match=f"row {i} of a"):
        replace(DOPRI5, a=tuple(map(tuple, rows)))


def test_first_same_as_last_is_read_off_the_coefficients() -> None:
    """Four methods have it by their last row, none by a flag."""
    assert [name for name, m in METHODS.items() if m.fsal] == ["bosh3", "dopri5", "tsit5"]


def test_names_are_keys() -> None:
    """A method is found under the name it carries."""
    assert all(name == tableau.name for name, tableau in METHODS.items())
