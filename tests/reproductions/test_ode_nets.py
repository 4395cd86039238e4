"""The reproductions of the ODE-Nets run from data to files, and their parts mean what they say."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from _harness.bodies import Growth
from _harness.comparison import evaluations
from _harness.loop import Unfinished
from _harness.session import Session
from _harness.solves import spearman
from _harness.table import paired
from _harness.training import Job, Recipe, Trained, build, shifted, train
from torch import nn

from ctflow import Solver
from ctflow.cli.checkout import load_script
from ctflow.dynamics import KineticEnergy

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

ROOT = Path(__file__).parents[2]
SCRIPTS = (
    "figure_1",
    "table_1",
    "figure_3",
    "tolerance",
    "augmented",
    "regularised",
    "steer",
    "mechanics",
    "training_step",
    "backends",
)


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_smoke_preset_takes_the_real_path(name: str, tmp_path: Path) -> None:
    """A record that can be read, with what it was made with, and a figure beside it."""
    script = load_script(ROOT, name)
    script.main(replace(script.PRESETS["smoke"], results=tmp_path))
    record = json.loads((tmp_path / "smoke.json").read_text())
    assert record["environment"]["versions"]["torch"] == torch.__version__
    assert all(band["passed"] for band in record["bands"])
    assert str(ROOT) not in json.dumps(record)
    assert (tmp_path / "smoke.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["smoke.json", "smoke.png"]


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_has_its_presets(name: str) -> None:
    """Each with claims, but for the smallest."""
    presets = load_script(ROOT, name).PRESETS
    assert {"smoke", "quick", "full"} <= set(presets)
    assert all(config.preset == key for key, config in presets.items())


@pytest.mark.parametrize("backend", ["torchdiffeq", pytest.param("scipy", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in ("figure_1", "figure_3") else pytest.mark.slow)
        for name in SCRIPTS
    ],
)
def test_the_backend_is_the_only_change_needed(name: str, backend: str, tmp_path: Path) -> None:
    """The same preset runs with another solver, and its record says which."""
    pytest.importorskip(backend)
    script = load_script(ROOT, name)
    script.main(replace(script.PRESETS["smoke"], backend=backend, results=tmp_path))
    record = json.loads((tmp_path / "smoke.json").read_text())
    assert record["config"]["backend"] == backend
    assert all(band["passed"] for band in record["bands"])


@pytest.mark.slow
@pytest.mark.compiler
@pytest.mark.parametrize("name", SCRIPTS)
def test_the_scripts_run_compiled(name: str, tmp_path: Path) -> None:
    """Likewise; each compiles its own programs, which takes minutes."""
    script = load_script(ROOT, name)
    script.main(replace(script.PRESETS["smoke"], backend="compiled", results=tmp_path))
    record = json.loads((tmp_path / "smoke.json").read_text())
    assert all(band["passed"] for band in record["bands"])


@pytest.mark.slow
def test_what_is_learned_does_not_depend_on_the_backend(tmp_path: Path) -> None:
    """A short training by every backend differs from native's by no more than seeds do."""
    pytest.importorskip("torchdiffeq")
    script = load_script(ROOT, "backends")
    config = replace(
        script.PRESETS["smoke"],
        n_train=300,
        n_test=200,
        recipe=Recipe(3, batch=20, crop=1),
        error=30.0,
        results=tmp_path,
    )
    record = script.main(config)
    assert {run["backend"] for run in record["runs"]} == {"native", "torchdiffeq", "scipy"}
    assert len(record["bands"]) == 5
    assert all(band["passed"] for band in record["bands"])


def test_the_full_presets_share_the_network_of_table_1() -> None:
    """`tolerance` finds the run that `table_1` keeps; `figure_3` has a calmer one of its own."""
    wanted, *others = (load_script(ROOT, name) for name in ("table_1", "tolerance", "figure_3"))
    first = next(job for job in wanted.jobs_of(wanted.PRESETS["full"]) if job.net == "ODE-Net")
    same, own = (script.job_of(script.PRESETS["full"]) for script in others)
    assert same == first
    assert replace(own, recipe=first.recipe, rnode=0.0) == first


def test_rnode_s_costs_can_be_a_part_of_the_loss() -> None:
    """They slow the field; and a run that was kept before there was this setting is found."""
    plain, slow = (train(replace(job(), rnode=weight), lambda _: None) for weight in (0.0, 10.0))
    images, speeds = job().images().test.x, list[float]()
    for each in (plain, slow):
        cost = KineticEnergy(each.model.body.field)
        with torch.no_grad():
            speeds.append(float(cost(torch.tensor(0.0), each.model.stem(images)).mean()))
    assert speeds[1] < 0.9 * speeds[0]
    assert "rnode" not in job().record()
    assert replace(job(), rnode=0.3).record()["rnode"] == 0.3


def test_the_faster_gradient_of_each_side_is_compared() -> None:
    """By medians over the rounds; and a gradient that is wrong would not pass for fast."""
    script = load_script(ROOT, "training_step")
    config = script.PRESETS["quick"]
    paces = [
        script.Pace("block", "native", "checkpointed", [80.0, 80.0, 80.0], 32.0, 30.0, 0.1),
        script.Pace("block", "native", "direct", [10.0, 50.0, 51.0], 32.0, 0.0, 0.4),
        script.Pace("block", "torchdiffeq", "direct", [60.0, 75.0, 90.0], 32.0, 0.0, 0.1),
        script.Pace("block", "torchdiffeq", "adjoint", [400.0], 32.0, 90.0, 0.1),
        script.Pace("network", "native", "direct", [100.0], 32.0, 0.0, 0.4),
        script.Pace("network", "torchdiffeq", "direct", [130.0], 32.0, 0.0, 0.1),
    ]
    peaks = [
        script.Peaks("adjoint", [2, 4], [100.0, 105.0]),
        script.Peaks("direct", [2, 4], [100.0, 195.0]),
    ]
    whole, block, error, adjoint, direct = script.bands_of(config, paces, peaks)
    assert (whole.value, whole.passed) == (1.3, False)
    assert (block.value, block.passed) == (1.5, True)
    assert (error.value, error.passed) == (pytest.approx(4.0), False)
    assert (adjoint.value, adjoint.passed) == (1.05, True)
    assert (direct.value, direct.passed) == (0.975, True)
    torch_alone = replace(config, backend="torchdiffeq")
    assert len(list(script.bands_of(torch_alone, paces, peaks))) == 2


def test_powers_of_memory_and_time_are_those_of_depth_and_evaluations() -> None:
    """Memory that stays, and time in step with evaluations."""
    growth = Growth("adjoint", [2, 4, 8], [5.0, 5.0, 5.0], [30.0, 60.0, 120.0], [16, 32, 64])
    assert growth.exponent == pytest.approx(0.0)
    assert growth.time_exponent == pytest.approx(1.0)
    assert growth.record()["time_exponent"] == growth.time_exponent


def test_evaluations_are_counted_at_the_paper_s_tolerance_too() -> None:
    """After every epoch, whatever the tolerance of the training; not where there is no ODE."""
    loose = train(job(epochs=1), lambda _: None)
    body, images = loose.model.body, job().images().test.x
    assert body.solver.rtol == 1e-2
    at_both: list[float] = []  # of the same images, which a training's batches are not
    for tolerance in (1e-2, 1e-3):
        body.solver = Solver(rtol=tolerance, atol=tolerance)
        with torch.no_grad():
            body(loose.model.stem(images))
        at_both.append(evaluations(body.stats)[0])
    assert loose.history[0].fine == pytest.approx(at_both[1], abs=1e-3)
    assert at_both[1] >= at_both[0]
    residual = train(job("ResNet-1", epochs=1), lambda _: None)
    assert residual.history[0].fine is None


def job(net: str = "small ODE-Net", epochs: int = 3) -> Job:
    """A small network on small digits."""
    recipe = Recipe(epochs, batch=20, crop=1)
    solver = Solver(rtol=1e-2, atol=1e-2)
    return Job(net, 0, recipe, solver, data="digits", n_train=40, n_test=20, channels=2)


def test_a_training_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    """In the middle of epochs: the same weights bit for bit."""
    whole = train(job(), lambda _: None)
    late = Session("test", {}, tmp_path, until=-math.inf)  # one step before each deadline
    for _ in range(5):  # of two steps in an epoch
        with pytest.raises(Unfinished):
            train(job(), lambda _: None, late)
    rest = train(job(), lambda _: None, replace(late, until=math.inf))
    assert [epoch.epoch for epoch in rest.history] == [1, 2, 3]
    assert [each.loss for each in rest.history] == [each.loss for each in whole.history]
    pairs = zip(whole.model.state_dict().values(), rest.model.state_dict().values(), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)
    assert whole.right == rest.right


def test_a_kept_run_is_that_of_its_settings_alone(tmp_path: Path) -> None:
    """Another seed, solver or recipe has a file of its own."""
    first, kept = job(epochs=1), Session("test", {}, tmp_path, keep=True)
    for each in (
        first,
        replace(first, seed=1),
        replace(first, solver=Solver(rtol=1e-1, atol=1e-1)),
        replace(first, recipe=replace(first.recipe, learning_rate=1e-4)),
    ):
        train(each, lambda _: None, kept)
    assert len(list(tmp_path.iterdir())) == 4


def test_the_bodies_differ_and_nothing_else() -> None:
    """Stem and head have the same weights for one seed, whatever the body."""
    nets = [build(job(net)) for net in ("no block", "ResNet-6", "RK-Net", "ODE-Net")]
    first = nets[0].stem.state_dict()
    for net in nets[1:]:
        pairs = zip(first.values(), net.stem.state_dict().values(), strict=True)
        assert all(a.shape == b.shape for a, b in pairs)
    field = nets[3].body.field
    assert not field.norm3.weight.any()  # begins as the identity


def test_shifting_moves_every_image_by_itself() -> None:
    """By at most so many pixels, all of which occur; the background moves in."""
    image = torch.zeros(300, 1, 9, 9)
    image[:, 0, 4, 4] = 1.0
    moved = shifted(image - 1, 2) + 1
    places = moved[:, 0].nonzero()[:, 1:]
    assert len(places) == 300
    assert {tuple(place) for place in places.tolist()} == {
        (i, j) for i in range(2, 7) for j in range(2, 7)
    }
    assert torch.equal(shifted(image, 0), image)


def test_the_interval_is_that_of_paired_differences() -> None:
    """Images that both get wrong do not widen it."""
    model = nn.Identity()
    ours = Trained(job(), model, [], [False] * 30 + [True] * 70, 0)
    theirs = Trained(job(), model, [], [False] * 30 + [True] * 70, 0)
    assert paired([ours], [theirs]) == (0.0, 0.0)
    worse = replace(ours, right=[False] * 34 + [True] * 66)
    low, high = paired([worse], [theirs])
    assert low + high == pytest.approx(8.0)
    assert high - low == pytest.approx(2 * 1.96 * 100 * math.sqrt(0.04 * 0.96 / 99), rel=1e-6)


def test_rank_correlation_is_that_of_ranks() -> None:
    """Whatever the values; equal ones share a rank."""
    assert spearman([1, 10, 100], [1, 2, 3]) == pytest.approx(1.0)
    assert spearman([1, 10, 100], [3, 2, 1]) == pytest.approx(-1.0)
    assert spearman([1, 1, 2, 2], [1, 2, 1, 2]) == pytest.approx(0.0)


def test_time_that_is_up_leaves_no_results(tmp_path: Path) -> None:
    """And says so with a band that is missed."""
    for name in ("table_1", "figure_3", "tolerance"):
        script = load_script(ROOT, name)
        config = replace(script.PRESETS["smoke"], results=tmp_path / name, minutes=0.0)
        record = script.main(config)
        assert [band["passed"] for band in record["bands"]] == [False]
        assert [path.name for path in (tmp_path / name).iterdir()] == [".checkpoints"]


def test_neither_the_plain_nor_the_augmented_points_leave_their_regions() -> None:
    """Disc and ring are apart; a flip is a flip."""
    augmented = load_script(ROOT, "augmented")
    x, y = augmented.points("spheres", 1000)
    radius = x.norm(dim=1)
    assert float(radius[y[:, 0] < 0].max()) <= 0.5
    assert 1.0 <= float(radius[y[:, 0] > 0].min()) <= float(radius.max()) <= 1.5 + 1e-6
    x, y = augmented.points("sign flip", 10)
    assert torch.equal(y, -x)


def test_the_solution_of_the_stiff_problem_solves_it() -> None:
    """Its derivative is the field's value; it begins at 0, and has jumped to 1 by 0.005."""
    steer = load_script(ROOT, "steer")
    t = torch.tensor([0.0, 1e-4, 1e-3, 0.1, 3.0], dtype=torch.float64, requires_grad=True)
    y = steer.solution(t)[:, 0]
    (slope,) = torch.autograd.grad(y.sum(), t)
    assert torch.allclose(slope, -1000 * y + 3000 - 2000 * torch.exp(-t), rtol=0, atol=1e-9)
    assert abs(y[0].item()) < 1e-12
    start = steer.solution(torch.tensor([0.005], dtype=torch.float64))
    assert float(start) == pytest.approx(1.0, abs=0.01)


FIGURES = tuple(name for name in SCRIPTS if name != "backends")


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_of_the_page_is_that_of_the_results(name: str) -> None:
    """Bit for bit."""
    shown = (ROOT / "docs" / "figures" / f"{name}.png").read_bytes()
    assert shown == widest(name, "png").read_bytes()


def widest(name: str, suffix: str) -> Path:
    """A committed file of the full preset, or of the quick one where there is none."""
    folder = ROOT / "reproductions" / "results" / name
    full = folder / f"full.{suffix}"
    return full if full.exists() else folder / f"quick.{suffix}"


def results_of(name: str) -> dict[str, Any]:
    """The committed record."""
    return json.loads(widest(name, "json").read_text())


def ratio_rows() -> list[str]:
    """Backward over forward evaluations, as the page has them."""
    record = results_of("figure_3")
    ways: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for each in record["solves"]:
        ways.setdefault((each["solver"], each["norm"], each["batch"]), []).append(each)
    rows = []
    for key, solves in ways.items():
        cells = []
        for tolerance in record["config"]["tolerances"]:
            own = [each for each in solves if each["tolerance"] == tolerance]
            ratio = sum(e["backward"] for e in own) / sum(e["forward"] for e in own)
            cells.append(f"{ratio:.2f}")
        rows.append(f"| {' | '.join(map(str, key))} | {' | '.join(cells)} |")
    return rows


def regularised_rows() -> list[str]:
    """Accuracy and evaluations by regulariser."""
    rows = []
    for run in results_of("regularised")["runs"]:
        last = run["accuracy"][-(len(run["accuracy"]) // 3) :]
        rows.append(
            f"| {run['method']} | {100 * sum(last) / len(last):.1f} % | {run['forward'][0]:.1f} | "
            f"{run['forward'][-1]:.1f} |"
        )
    return rows


def steer_rows() -> list[str]:
    """Medians over the seeds of the error, and of that after the jump."""
    runs, rows = results_of("steer")["runs"], []
    for timed, steer in product((True, False), (False, True)):
        own = [each for each in runs if (each["timed"], each["steer"]) == (timed, steer)]
        error, jump = (median(each[key] for each in own) for key in ("error", "jump"))
        names = "given the time" if timed else "of y alone", "random" if steer else "fixed"
        rows.append(f"| {names[0]} | {names[1]} | {error:.2f} | {jump:.2f} |")
    return rows


def memory_rows() -> list[str]:
    """Peak storage in KiB by depth, its power, and that of time."""
    return [
        f"| {each['body']} | {' | '.join(f'{kib:.0f}' for kib in each['kib'])} | "
        f"{each['exponent']:.2f} | {each['time_exponent']:.2f} |"
        for each in results_of("table_1")["growth"]
    ]


def error_rows() -> list[str]:
    """Error in percent, mean of the seeds, the paper's, and parameters."""
    trained = results_of("table_1")["networks"]
    rows = []
    for net in {each["net"]: None for each in trained}:
        own = [each for each in trained if each["net"] == net]
        error = sum(each["error_percent"] for each in own) / len(own)
        paper = own[0]["paper_percent"] or ""
        rows.append(f"| {net} | {error:.2f} | {paper} | {own[0]['parameters']:,} |")
    return rows


def step_rows() -> list[str]:
    """Milliseconds and evaluations of a training step."""
    return [
        f"| {each['part']} | {each['backend']} | {each['gradient']} | "
        f"{median(each['milliseconds']):.0f} | {each['forward']:.0f} + {each['backward']:.0f} |"
        for each in results_of("training_step")["paces"]
    ]


ROWS = (ratio_rows, regularised_rows, steer_rows, memory_rows, error_rows, step_rows)


@pytest.mark.parametrize("rows", ROWS)
def test_the_tables_of_the_page_are_those_of_the_results(rows: Callable[[], list[str]]) -> None:
    """Every row."""
    page = (ROOT / "docs" / "ode_nets.md").read_text()
    assert [row for row in rows() if row not in page] == []
