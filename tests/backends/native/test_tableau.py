"""Every method satisfies its own algebra, and a wrong coefficient is refused by name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from ctflow import InvalidProblem
from ctflow.backends.native.methods import METHODS
from ctflow.backends.tableau import Tableau
from ctflow.backends.trees import conditions, trees

methods = pytest.mark.parametrize("tableau", METHODS.values(), ids=METHODS.keys())
ORDERS = {
    "euler": 1, "midpoint": 2, "heun": 2, "ralston": 2, "rk4": 4, "rk4_38": 4, "bosh3": 3,
    "dopri5": 5, "tsit5": 5, "vern7": 7, "dopri8": 8, "dop853": 8,
}  # fmt: skip
DENSE = ORDERS | {
    "rk4": 3,
    "rk4_38": 3,
    "dopri5": 4,
    "tsit5": 4,
    "vern7": 6,
    "dopri8": 7,
    "dop853": 7,
}
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


def test_there_are_as_many_trees_as_the_literature_says() -> None:
    """Hairer I, table II.2.1; none comes twice."""
    assert [len(set(trees(n))) for n in range(1, 10)] == [1, 1, 2, 4, 9, 20, 48, 115, 286]


@methods
def test_the_order_is_the_published_one(tableau: Tableau) -> None:
    """The number that error control uses is that of the literature."""
    assert tableau.order == ORDERS[tableau.name]


@pytest.mark.parametrize("name", ["dopri5", "tsit5"])
def test_fifth_order_conditions_hold(name: str) -> None:
    """All nine trees with five nodes vanish to rounding."""
    residuals = fifth_order_residuals(METHODS[name], METHODS[name].b)
    assert max(map(abs, residuals.values())) < 1e-14


@methods
def test_the_interpolant_meets_both_ends(tableau: Tableau) -> None:
    """Weights are 0 at the start and b at the end."""
    assert tableau.weights(0.0) == (0.0,) * len(tableau.p)
    b = (*tableau.b, *[0.0] * tableau.further)
    assert tableau.weights(1.0) == pytest.approx(b, abs=1e-12)


def misses(tableau: Tableau, weights: Sequence[float], order: int, value: float = 1.0) -> float:
    """How far weights are from the conditions of one order, the largest of all trees."""
    found = [
        math.fsum(w * x for w, x in zip(weights, one.vector, strict=False)) - value * one.value
        for one in conditions(tableau.a, order)
        if one.order == order
    ]
    return max(map(abs, found))


@methods
def test_every_condition_holds_to_rounding_up_to_the_order_and_no_further(tableau: Tableau) -> None:
    """All rooted trees: 200 of them for order 8; one node more, and some condition fails."""
    residuals = [misses(tableau, tableau.b, n) for n in range(1, tableau.order + 2)]
    assert max(residuals[:-1]) < 2e-14
    assert residuals[-1] > 1e-8


@methods
@pytest.mark.parametrize("s", [0.3, 0.8])
def test_the_interpolant_satisfies_its_conditions_and_no_further(
    tableau: Tableau, s: float
) -> None:
    """Every tree, with s^order / gamma in place of 1 / gamma (Hairer I, II.6, theorem 6.1)."""
    assert tableau.dense_order == DENSE[tableau.name]
    orders = range(1, DENSE[tableau.name] + 2)
    residuals = [misses(tableau, tableau.weights(s), n, s**n) for n in orders]
    assert max(residuals[:-1]) < 1e-12
    assert residuals[-1] > 1e-8


@methods
def test_the_slope_of_the_interpolant_is_continuous_where_its_source_has_it_so(
    tableau: Tableau,
) -> None:
    """It starts with the first stage; from dopri5 on it ends with f at the end of the step."""
    last = [math.fsum((j + 1) * x for j, x in enumerate(row)) for row in tableau.p]
    first = [1.0] + [0.0] * (len(tableau.p) - 1)
    assert [row[0] for row in tableau.p] == pytest.approx(first, abs=1e-15)
    if tableau.name in ("bosh3", "dopri5", "tsit5", "vern7", "dopri8", "dop853"):
        end = tableau.stages if not tableau.fsal else tableau.stages - 1
        assert last == pytest.approx([float(i == end) for i in range(len(last))], abs=1e-11)


@pytest.mark.parametrize("name", ["heun", "ralston", "bosh3", "dopri5", "tsit5", "vern7", "dopri8"])
def test_the_embedded_solution_has_the_order_it_claims_and_no_higher(name: str) -> None:
    """Otherwise the estimate would be blind to the terms that it is to see."""
    tableau = METHODS[name]
    lower = [b - e for b, e in zip(tableau.b, tableau.e or (), strict=True)]
    residuals = [misses(tableau, lower, n) for n in range(1, (tableau.error_order or 0) + 2)]
    assert max(residuals[:-1]) < 2e-14
    assert residuals[-1] > 1e-6


def test_the_two_estimates_of_dop853_are_of_order_5_and_3() -> None:
    """Blended they fall as h^8."""
    tableau = METHODS["dop853"]
    for weights, order in ((tableau.e, 5), (tableau.e_low, 3)):
        lower = [b - e for b, e in zip(tableau.b, weights or (), strict=True)]
        assert misses(tableau, lower, order) < 1e-14 < misses(tableau, lower, order + 1)


@pytest.mark.parametrize("name", ["tsit5", "vern7", "dopri8", "dop853"])
@pytest.mark.parametrize("digit", [1e-9, -1e-9])
def test_a_mistyped_pair_of_coefficients_is_noticed(name: str, digit: float) -> None:
    """Rows whose sum is right all the same: the trees find them."""
    tableau = METHODS[name]
    rows = [list(row) for row in tableau.a]
    i = len(tableau.b) - 2
    rows[i][0] += digit
    rows[i][i - 1] -= digit
    with pytest.raises(InvalidProblem, match="order"):
        replace(tableau, a=tuple(map(tuple, rows)))


def test_an_interpolant_below_its_claim_is_refused() -> None:
    """The cubic Hermite of bosh3 is no interpolant of order 4."""
    with pytest.raises(InvalidProblem, match=r"interpolant of order 4: its condition .*= 1/24 "):
        replace(METHODS["bosh3"], dense_order=4)


def test_an_estimate_below_its_claim_is_refused() -> None:
    """The solution embedded in dopri5 is not of order 5."""
    with pytest.raises(InvalidProblem, match="embedded solution"):
        replace(DOPRI5, error_order=5)


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
    assert [name for name, m in METHODS.items() if m.fsal] == [
        "bosh3",
        "dopri5",
        "tsit5",
        "dop853",
    ]


def test_names_are_keys() -> None:
    """A method is found under the name it carries."""
    assert all(name == tableau.name for name, tableau in METHODS.items())
