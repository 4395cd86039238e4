"""Every picture shows the numbers it is given, whatever the state is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, Normal

from ctflow import InvalidProblem, ODEProblem, Solution, Solver, solve
from ctflow.errors import MissingDependency
from ctflow.flows import ContinuousFlow
from tests.problems import FLOAT, blow_up

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")

from matplotlib import pyplot  # noqa: E402 - optional
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

from ctflow.plotting import (  # noqa: E402
    density,
    errors,
    flow_over_time,
    latent_space,
    phase_portrait,
    plot,
    step_sizes,
    trajectories,
    vector_field,
)

BASE = Independent(Normal(torch.zeros(2), torch.ones(2)), 1)


@pytest.fixture(autouse=True)
def _close() -> Iterator[None]:
    """No figure outlives its test."""
    yield
    pyplot.close("all")


def turning(t: Tensor, y: Tensor) -> Tensor:
    """Circles in the plane."""
    return torch.stack([y[..., 1], -y[..., 0]], dim=-1)


def circles(times: tuple[float, ...] = (0.0, 1.0, 3.0), dense: bool = False) -> Solution:
    """Two of them, each with steps of its own."""
    y0 = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=FLOAT, requires_grad=True)
    problem = ODEProblem(turning, y0, torch.tensor(times, dtype=FLOAT), batched=True, dense=dense)
    return solve(problem, Solver(rtol=1e-6, atol=1e-8))


def drawn(ax: Axes, i: int) -> np.ndarray[Any, Any]:
    """Heights of the i-th line."""
    return np.asarray(ax.lines[i].get_ydata(), dtype=float)


@pytest.mark.parametrize("times", [(0.0, 1.0, 3.0), (3.0, 1.0, 0.0)], ids=["forward", "backward"])
def test_a_dense_solution_is_drawn_smooth_with_a_mark_a_step(times: tuple[float, ...]) -> None:
    """The curve is the solution, and every mark lies at the end of a step."""
    solution = circles(times, dense=True)
    ax = trajectories(solution, sample=1)
    x = torch.tensor(np.asarray(ax.lines[0].get_xdata()))
    assert solution.dense is not None
    np.testing.assert_allclose(drawn(ax, 0), solution.dense(x)[:, 1, 0].detach())
    ends = solution.stats.step_times[1]
    np.testing.assert_array_equal(ax.lines[1].get_xdata(), ends[~ends.isnan()])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["y[0]", "y[1]"]


def test_without_dense_the_outputs_are_joined_and_the_steps_are_ticks() -> None:
    """Nothing is drawn that was not computed."""
    solution = circles()
    ax = trajectories(solution)
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), [0.0, 1.0, 3.0])
    np.testing.assert_array_equal(drawn(ax, 1), solution.y[:, 0, 1].detach())
    assert len(ax.lines[-1].get_xdata()) == int(solution.stats.forward.n_accepted[0]) + 1


def test_plot_is_both_on_one_axis_of_time() -> None:
    """Steps below, in sizes that sum to the interval."""
    figure = plot(circles(dense=True), sample=1)
    above, below = figure.axes
    assert isinstance(figure, Figure)
    assert above.get_xlim() == below.get_xlim()
    assert below.lines[1].get_ydata().sum() == pytest.approx(3.0)
    assert "evaluations" in below.get_title()


@pytest.mark.parametrize(
    ("y0", "names"),
    [
        (torch.ones(2), ["y[0]", "y[1]"]),
        (torch.tensor(1.0), ["y"]),
        ({"a": torch.ones(1), "b": (torch.ones(1, 2),)}, ["a[0]", "b.0[0, 0]", "b.0[0, 1]"]),
        ((torch.ones(1), [torch.ones(1)]), ["y.0[0]", "y.1.0[0]"]),
        (torch.ones(1, dtype=torch.complex64), ["Re y[0]", "Im y[0]"]),
        (torch.ones(1, 1, dtype=torch.float64), ["y[0, 0]"]),
    ],
)
def test_a_state_of_any_structure_has_a_named_curve_for_each_variable(
    y0: object, names: list[str]
) -> None:
    """Structures, complex numbers, dtypes; all is one system under shared steps."""
    solution = solve(ODEProblem(_decaying, y0, [0.0, 1.0], dense=True))
    ax = plot(solution).axes[0]
    assert [line.get_label() for line in ax.lines if line.get_label()[0] != "_"] == names


def _decaying(t: Tensor, y: object) -> object:
    return torch.utils._pytree.tree_map(lambda leaf: -leaf, y)


def test_many_variables_are_cut_and_said_so() -> None:
    """Ten are drawn unless others are asked for by number."""
    solution = solve(ODEProblem(lambda t, y: -y, torch.arange(30.0), [0.0, 1.0]))
    ax = trajectories(solution)
    assert "20 more variables not drawn" in ax.get_title()
    chosen = trajectories(solution, variables=[29, 3])
    assert [chosen.lines[i].get_label() for i in (0, 1)] == ["y[29]", "y[3]"]
    assert "not drawn" not in chosen.get_title()


def test_a_failed_sample_says_how_it_ended() -> None:
    """Its curve stops where it did."""
    solution = solve(
        ODEProblem(
            blow_up, torch.tensor([[2.0], [0.1]], dtype=FLOAT), [0.0, 0.1, 1.0], batched=True
        )
    )
    ax = trajectories(solution)
    assert "stopped: " in ax.get_title()
    assert np.isnan(drawn(ax, 0)[-1])
    assert "stopped" not in trajectories(solution, sample=1).get_title()


def test_a_backend_that_tells_no_steps_is_no_reason_to_fail() -> None:
    """The axes say so."""
    telling = circles()
    solution = replace(telling, stats=replace(telling.stats, trace=()))
    assert "does not tell" in step_sizes(solution).texts[0].get_text()
    assert len(plot(solution).axes) == 2


def test_errors_are_those_from_the_reference_beside_the_tolerance() -> None:
    """A formula, or a tighter solve."""
    solution = circles(dense=True)
    start = solution.y[0].detach()

    def exact(t: Tensor) -> Tensor:
        c, s = torch.cos(t)[:, None], torch.sin(t)[:, None]
        a, b = start[:, 0], start[:, 1]
        return torch.stack([a * c + b * s, b * c - a * s], dim=-1)

    ax = errors(solution, exact, sample=1)
    t = torch.tensor(np.asarray(ax.lines[0].get_xdata()))
    assert solution.dense is not None
    gap = (solution.dense(t) - exact(t))[:, 1].square().mean(dim=1).sqrt()
    np.testing.assert_allclose(drawn(ax, 0), gap.detach(), rtol=1e-6)
    np.testing.assert_allclose(drawn(ax, 1), 1e-8 + 1e-6 * 2**0.5, rtol=1e-6)


@pytest.mark.parametrize("batched", [True, False])
def test_arrows_point_where_the_field_does(batched: bool) -> None:
    """All of one length; the shade says how strong it is."""
    one = turning if batched else lambda t, y: torch.stack([y[1], -y[0]])
    ax = vector_field(one, x=(-1.0, 1.0), y=(0.0, 3.0), n=4, batched=batched)
    arrows = ax.collections[0]
    places = torch.tensor(arrows.get_offsets())
    u, v = torch.tensor(arrows.U), torch.tensor(arrows.V)
    turned = turning(torch.tensor(0.0), places)
    unit = turned / turned.norm(dim=1, keepdim=True)
    np.testing.assert_allclose(torch.stack([u, v], dim=1), unit, atol=1e-6)
    np.testing.assert_allclose(arrows.get_array(), turned.norm(dim=1), rtol=1e-6)


@pytest.mark.parametrize("batch", [1, 2, 9])
def test_a_portrait_has_a_path_a_sample(batch: int) -> None:
    """Each from a ring to a dot, the field behind; and under shared steps the rows of a batch."""
    y0 = torch.rand(batch, 2, dtype=FLOAT)
    for batched in (True, False):
        solution = solve(ODEProblem(turning, y0, [0.0, 0.5, 1.0], batched=batched))
        ax = phase_portrait(solution, f=turning)
        assert len(ax.lines) == 3 * batch
        np.testing.assert_array_equal(drawn(ax, 0), solution.y[:, 0, 1])


@pytest.mark.parametrize("batched", [True, False])
def test_a_dense_portrait_is_smooth(batched: bool) -> None:
    """Circles stay on their radius between the outputs, which are two."""
    y0 = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=FLOAT)
    problem = ODEProblem(turning, y0, [0.0, 6.0], batched=batched, dense=True)
    ax = phase_portrait(solve(problem, Solver(rtol=1e-8, atol=1e-8)))
    for i, radius in enumerate((1.0, 2.0)):
        x = np.asarray(ax.lines[3 * i].get_xdata(), dtype=float)
        np.testing.assert_allclose(np.hypot(x, drawn(ax, 3 * i)), radius, rtol=1e-5)


def test_a_portrait_of_one_system_is_one_path() -> None:
    """Two of its variables."""
    solution = solve(ODEProblem(lambda t, y: -y, torch.arange(4.0), [0.0, 1.0]))
    ax = phase_portrait(solution, variables=(3, 1))
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("y[3]", "y[1]")


def test_an_image_is_the_density() -> None:
    """Pixel by pixel, the second variable upwards."""
    shifted = Independent(Normal(torch.tensor([0.0, 2.0]), torch.ones(2)), 1)
    ax = density(shifted.log_prob, x=(-1.0, 1.0), y=(-4.0, 4.0), n=8)
    image = ax.images[0].get_array()
    assert image[6].max() > image[1].max()
    at = torch.tensor([[-1 + 0.125, -4 + 0.5]])
    assert image[0, 0] == pytest.approx(float(shifted.log_prob(at).exp()), rel=1e-5)


def test_a_flow_is_shown_at_every_time() -> None:
    """The same samples, carried on, above the density that they have there."""
    torch.manual_seed(0)
    flow = ContinuousFlow(BASE, lambda t, z: torch.ones_like(z))
    figure = flow_over_time(flow, [0.0, 1.0], samples=20, n=8)
    first, last, *below = figure.axes
    moved = drawn(last, 0) - drawn(first, 0)
    np.testing.assert_allclose(moved, 1.0, atol=1e-4)
    assert below[1].images[0].get_array().argmax() > below[0].images[0].get_array().argmax()


@pytest.mark.parametrize("shape", [(6, 2), (6, 4), (6, 5, 4), (1, 3)])
def test_latent_states_are_points_and_latent_paths_curves(shape: tuple[int, ...]) -> None:
    """In the plane that shows most of them."""
    z = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    ax = latent_space(z, [i % 2 for i in range(shape[0])])
    paths = shape[0] if len(shape) == 3 else 0
    assert len(ax.lines) == paths + min(2, shape[0])


def test_principal_directions_are_found_and_chosen_variables_are_kept() -> None:
    """The direction with all the spread comes first."""
    z = torch.zeros(5, 3)
    z[:, 2] = torch.arange(5.0)
    assert "component 1 (100%)" in latent_space(z).get_xlabel()
    ax = latent_space(z, variables=(2, 0))
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), torch.arange(5.0))


@pytest.mark.parametrize(
    "draw",
    [
        lambda ax: trajectories(circles(dense=True), ax),
        lambda ax: step_sizes(circles(), ax),
        lambda ax: errors(circles(), circles((0.0, 3.0), dense=True).dense, ax),
        lambda ax: vector_field(turning, ax),
        lambda ax: phase_portrait(circles(), ax),
        lambda ax: density(BASE.log_prob, ax),
        lambda ax: latent_space(torch.randn(3, 2), ax=ax),
    ],
)
def test_axes_that_are_given_are_filled(draw: Callable[[Axes], Axes]) -> None:
    """And no figure is made beside them."""
    figure, ax = pyplot.subplots()
    assert draw(ax) is ax
    figure.canvas.draw()  # all of it can be drawn
    assert pyplot.get_fignums() == [figure.number]


def _wrong(case: str) -> object:
    flow = ContinuousFlow(Independent(Normal(torch.zeros(3), torch.ones(3)), 1), lambda t, z: z)
    cases: dict[str, Callable[[], object]] = {
        "sample": lambda: plot(circles(), sample=2),
        "variable": lambda: trajectories(circles(), variables=[2]),
        "no batch": lambda: plot(
            solve(ODEProblem(_decaying, torch.tensor(1.0), [0.0, 1.0])), sample=0
        ),
        "portrait": lambda: phase_portrait(circles(), variables=(0, 2)),
        "field": lambda: vector_field(lambda t, y: y[:, 0]),
        "range": lambda: vector_field(turning, x=(1.0, 1.0)),
        "density": lambda: density(lambda x: x),
        "nan": lambda: density(lambda x: x[:, 0] * torch.nan),
        "pixels": lambda: density(BASE.log_prob, n=1),
        "flow": lambda: flow_over_time(flow),
        "states": lambda: latent_space(torch.randn(4)),
        "empty": lambda: latent_space(torch.randn(0, 2)),
        "latents": lambda: latent_space(torch.full((2, 2), torch.nan)),
        "labels": lambda: latent_space(torch.randn(3, 2), [1, 2]),
        "columns": lambda: latent_space(torch.randn(3, 2), variables=(0, 2)),
        "one column": lambda: latent_space(torch.randn(3, 2), variables=(0,)),  # pyright: ignore
        "no times": lambda: latent_space(torch.zeros(3, 0, 2)),
        "lists": lambda: latent_space(torch.randn(3, 2), torch.zeros(3, 1)),
        "one variable": lambda: phase_portrait(circles(), variables=(0,)),  # pyright: ignore
        "other reference": lambda: errors(circles(), lambda t: t[:, None, None].expand(-1, 2, 1)),
    }
    return cases[case]()


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("sample", "`sample` must be 0 to 1, got 2"),
        ("variable", "`variables` must be 0 to 1, got 2"),
        ("no batch", "the state has no batch"),
        ("portrait", "`variables` must be"),
        ("field", "`f` must return velocities"),
        ("range", "`x` and `y` must be growing ranges"),
        ("density", "one number a point"),
        ("nan", "got NaN"),
        ("pixels", "`n` at least 2"),
        ("flow", "over the plane"),
        ("states", r"states \[B, L\]"),
        ("empty", r"states \[B, L\]"),
        ("latents", "must be finite"),
        ("labels", "one for each of the 3"),
        ("columns", "two of 0 to 1"),
        ("one column", "must be two numbers"),
        ("no times", r"states \[B, L\]"),
        ("lists", "`labels` must be one number or word"),
        ("one variable", "must be two numbers"),
        ("other reference", "`reference` must return 2 variables"),
    ],
)
def test_what_cannot_be_drawn_is_refused_by_name(case: str, words: str) -> None:
    """Before a figure is made."""
    with pytest.raises(InvalidProblem, match=words):
        _wrong(case)
    assert pyplot.get_fignums() == []


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line with the command that installs it."""
    monkeypatch.setattr("ctflow.plotting.style.find_spec", lambda name: None)
    with pytest.raises(MissingDependency, match=r"pip install 'ctflow\[plots\]'"):
        plot(circles())


def test_the_field_behind_a_portrait_follows_the_order_of_its_axes() -> None:
    """Swapped variables swap the arrows; a state of more than two has no plane."""

    def f(t: Tensor, y: Tensor) -> Tensor:
        return torch.stack([y[..., 1], -10 * y[..., 0]], dim=-1)

    solution = solve(ODEProblem(f, torch.ones(2), torch.linspace(0, 1, 9)))
    arrows: list[tuple[Tensor, Tensor]] = []
    for variables in ((0, 1), (1, 0)):
        drawn = phase_portrait(solution, variables=variables, f=f, batched=False).collections
        quiver: Any = next(each for each in drawn if hasattr(each, "U"))
        arrows.append((torch.as_tensor(quiver.U).ravel(), torch.as_tensor(quiver.V).ravel()))
    (u, v), (u_swapped, v_swapped) = arrows
    grid = round(len(u) ** 0.5)
    torch.testing.assert_close(v_swapped.reshape(grid, grid).T.ravel(), u)
    torch.testing.assert_close(u_swapped.reshape(grid, grid).T.ravel(), v)
    three = solve(ODEProblem(lambda t, y: -y, torch.ones(3), [0.0, 1.0]))
    with pytest.raises(InvalidProblem, match="two real variables alone"):
        phase_portrait(three, f=f)


def test_half_precision_can_be_drawn() -> None:
    """NumPy, which matplotlib takes, has no bfloat16."""
    assert vector_field(lambda t, y: -y, dtype=torch.bfloat16).collections
