"""Brownian paths: which are refused, and that one of the user's own will do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ctflow import InvalidProblem, SDEProblem, Solver, Unsupported, solve_sde
from ctflow.backends.torchsde import brownian_path
from ctflow.sde import BrownianPath
from tests.backends.torchsde.equations import STEP, Y0, shake, shrink

MILSTEIN = Solver("torchsde", "milstein", step=0.1)
ENDS = torch.tensor([0.0, 1.0])


def along(path: BrownianPath) -> SDEProblem:
    """One problem of three systems of two variables."""
    return SDEProblem(shrink, shake, Y0, ENDS, path=path)


def test_paths_that_do_not_fit_are_refused() -> None:
    """In batch, in width, in Levy area, in dtype, and beside a seed."""
    with pytest.raises(InvalidProblem, match=r"of shape \[3, M\]"):
        along(brownian_path(0.0, 1.0, (4, 2), 0))
    with pytest.raises(InvalidProblem, match="each of the diffusion's 2"):
        solve_sde(along(brownian_path(0.0, 1.0, (3, 5), 0)), MILSTEIN)
    path = brownian_path(0.0, 1.0, (3, 2), 0)
    with pytest.raises(Unsupported, match="levy_area='space-time'"):
        solve_sde(along(path), STEP)
    with pytest.raises(InvalidProblem, match="exclude each other"):
        SDEProblem(shrink, shake, Y0, ENDS, seed=0, path=path)
    wide = brownian_path(0.0, 1.0, (3, 2), 0, like=Y0.double())
    with pytest.raises(InvalidProblem, match=r"the dtype of `y0`, torch.float32, got torch.flo"):
        solve_sde(along(wide), MILSTEIN)


@pytest.mark.parametrize("ends", [(0.0, 0.5), (0.5, 2.0)])
def test_a_path_that_is_too_short_is_refused(ends: tuple[float, float]) -> None:
    """Beyond its ends torchsde's own would not move, and say so in a warning alone."""
    path = brownian_path(*ends, (3, 2), 0)
    with pytest.raises(InvalidProblem, match="must cover the times from 0 to 1"):
        solve_sde(along(path), MILSTEIN)
    with pytest.raises(InvalidProblem, match="has no increment from 0 to 3"):
        path(0.0, 3.0)


MADE: list[tuple[dict[str, Any], str]] = [
    ({"t1": 0.0}, "`t1` must lie after"),
    ({"t1": float("inf")}, "`t1` must lie after"),
    ({"shape": (3, 0)}, "`shape` must be"),
    ({"seed": -1}, "`seed` must be"),
    ({"seed": 1.5}, "`seed` must be"),
    ({"levy_area": "some"}, "`levy_area` must be one of none, space-time"),
    ({"like": torch.ones(1, dtype=torch.int64)}, "`like` must be"),
    ({"like": [1.0]}, "`like` must be a real floating tensor, got list"),
    ({"t0": "now"}, "`t1` must lie after `t0`, both finite"),
    ({"shape": 3}, r"`shape` must be \[B, M\], got 3"),
]


@pytest.mark.parametrize(("changes", "words"), MADE)
def test_paths_that_make_no_sense_are_refused(changes: dict[str, Any], words: str) -> None:
    """When they are made."""
    with pytest.raises(InvalidProblem, match=words):
        brownian_path(**({"t0": 0.0, "t1": 1.0, "shape": (3, 2), "seed": 0} | changes))


class Straight:
    """A path of the user's own: each motion grows at its own rate."""

    def __init__(self, rate: Tensor) -> None:
        self.rate, self.shape = rate, (3, 2)

    def __call__(self, ta: Any, tb: Any) -> Any:  # noqa: ANN401
        return self.rate * (float(tb) - float(ta))


@pytest.mark.parametrize("gradient", ["direct", "adjoint"])
def test_a_path_of_the_users_own_is_followed(gradient: str) -> None:
    """Of a shape and a call alone; with Stratonovich's meaning y' = -y + 0.3 y W'."""
    rate = torch.tensor([[1.0, 2.0], [0.0, -1.0], [0.5, 3.0]])
    solver = Solver("torchsde", "midpoint", step=0.02, gradient=gradient)  # pyright: ignore[reportArgumentType]
    y0 = Y0.clone().requires_grad_()
    problem = SDEProblem(shrink, shake, y0, ENDS, calculus="stratonovich", path=Straight(rate))
    y = solve_sde(problem, solver).y[-1]
    wanted = torch.exp(-1.0 + 0.3 * rate)
    torch.testing.assert_close(y, wanted, rtol=2e-3, atol=0.0)
    (g,) = torch.autograd.grad(y.sum(), y0)
    torch.testing.assert_close(g, wanted, rtol=2e-3, atol=0.0)
    with pytest.raises(InvalidProblem, match=r"`path` must return torch.float32 \[3, 2\]"):
        solve_sde(along(Straight(rate[:, :1])), MILSTEIN)
