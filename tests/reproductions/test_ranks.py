"""Two processes train what one does: with DistributedDataParallel, and by the shared loop."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

pytestmark = pytest.mark.once

ROOT = Path(__file__).parents[2]
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
SCRIPTS = (
    "digits", "table_1", "figure_3", "tolerance", "backends", "augmented", "regularised",
    "steer", "mechanics", "figure_4_density_matching", "figure_5_max_likelihood", "toy_densities",
    "digits_density", "flow_animation", "table_2_spirals", "figure_6_latent_ode",
    "figure_7_poisson", "irregular_series", "latent_sde", "stochastic_lorenz",
)  # fmt: skip
HELPER = Path(__file__).with_name("two_ranks.py")
GRADIENTS = ("direct", "checkpointed", "adjoint")
EXACT = [f"{steps}, {gradient}" for steps in ("per sample", "grid") for gradient in GRADIENTS]


@pytest.fixture(scope="module")
def helper() -> ModuleType:
    """The module that the processes run, in this process."""
    spec = importlib.util.spec_from_file_location("two_ranks", HELPER)
    if spec is None or spec.loader is None:
        raise RuntimeError("the helper cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def together(folder: Path, backend: str) -> dict[str, Any]:
    """What two processes found out."""
    done = subprocess.run(
        [*TORCHRUN, str(HELPER), str(folder), backend],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=3000, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(done.stderr)
    return torch.load(folder / "found.pt", weights_only=True)


@pytest.fixture(scope="module")
def found(helper: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """By the native backend; one process has done three steps of six before."""
    folder = tmp_path_factory.mktemp("ranks")
    helper.looped(folder / "one", 3)
    return together(folder, "native") | {"folder": str(folder)}


def error(pair: tuple[list[Tensor], list[Tensor]]) -> float:
    """Of two processes' gradients against one's: the largest difference over the norm."""
    ours, whole = (torch.cat([g.reshape(-1) for g in each]) for each in pair)
    return float((ours - whole).norm() / whole.norm())


@pytest.mark.parametrize("case", EXACT)
def test_gradients_are_those_of_the_whole_batch(case: str, found: dict[str, Any]) -> None:
    """To 1e-6, where no row's steps depend on another's; measured: 1e-15."""
    assert error(found["users"][f"block, {case}"]) < 1e-6


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_the_likelihood_of_a_flow_is_split_as_well(gradient: str, found: dict[str, Any]) -> None:
    """Its module's forward is the log-density."""
    assert error(found["users"][f"flow, per sample, {gradient}"]) < 1e-6


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_shared_steps_differ_within_the_tolerance(gradient: str, found: dict[str, Any]) -> None:
    """Each process chooses its own: within ten times the tolerance, and not the same."""
    difference = error(found["users"][f"block, shared, {gradient}"])
    assert 1e-14 < difference < 10 * 1e-6


@pytest.mark.parametrize("option", ["find_unused_parameters", "static_graph"])
@pytest.mark.parametrize("gradient", ["checkpointed", "adjoint"])
def test_the_options_of_the_wrapper_change_nothing(
    gradient: str, option: str, found: dict[str, Any]
) -> None:
    """The parameters that a solve reads are inputs of its node, which torch finds."""
    assert error(found["users"][f"block, per sample, {gradient}, {option}"]) < 1e-6


def test_a_bound_with_noise_is_the_mean_of_the_parts(found: dict[str, Any]) -> None:
    """Each process draws for its own series."""
    assert error(found["bound"]) < 1e-12


def test_noise_differs_and_data_do_not(found: dict[str, Any]) -> None:
    """Within `own_noise`, and after it."""
    first, second = found["noise"]
    assert not torch.equal(first[:3], second[:3])
    assert torch.equal(first[3:], second[3:])


@pytest.mark.parametrize("n", [1, 5, 8])
def test_the_loop_takes_any_batch(n: int, found: dict[str, Any], helper: ModuleType) -> None:
    """Also one that cannot be halved, or has a row for one process alone."""
    alone, both = helper._state(helper.looped(None, 3, n)), found["loop"][n]
    torch.testing.assert_close(both["model"], alone["model"], rtol=1e-9, atol=1e-12)
    assert both["losses"] == pytest.approx(alone["losses"], rel=1e-12)


def test_checkpoints_move_between_numbers_of_processes(
    found: dict[str, Any], helper: ModuleType
) -> None:
    """From one to two, and from two to one: what one process alone comes to."""
    alone = helper._state(helper.looped(None, 6))
    back = helper._state(helper.looped(Path(found["folder"]) / "two", 6))
    for moved in (found["moved"], back):
        torch.testing.assert_close(moved["model"], alone["model"], rtol=1e-9, atol=1e-12)
        assert moved["losses"] == pytest.approx(alone["losses"], rel=1e-12)


def test_all_stop_after_the_same_step(found: dict[str, Any]) -> None:
    """Where a signal reached one of them."""
    assert found["stopped"] == 4


def test_the_first_process_writes(found: dict[str, Any]) -> None:
    """Results, like checkpoints."""
    folder = Path(found["folder"])
    assert (folder / "rank-0.json").exists()
    assert not (folder / "rank-1.json").exists()


@pytest.mark.slow
@pytest.mark.compiler
def test_compiled_gradients_are_split_as_well(tmp_path: Path) -> None:
    """Each of the methods, under per-sample steps and on a grid to 1e-6; else ten tolerances."""
    found = together(tmp_path, "compiled")["users"]
    errors = {case: error(pair) for case, pair in found.items()}
    assert len(errors) == 9
    for case, value in errors.items():
        assert value < (1e-5 if "shared" in case else 1e-6), case


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_every_training_script_runs_under_torchrun(name: str) -> None:
    """With no change but the launcher; the first process writes."""
    for package in ("matplotlib", "sklearn", "zuko", "torchsde", "statsmodels", "sktime"):
        pytest.importorskip(package)
    path = ROOT / "reproductions" / "results" / name / "smoke.json"
    path.unlink(missing_ok=True)
    arguments = ["-m", "ctflow", "reproduce", name, "--preset", "smoke", "--root", str(ROOT)]
    subprocess.run(
        [*TORCHRUN, *arguments], check=True, timeout=600, capture_output=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert path.is_file()
    assert not list(path.parent.rglob("*.pt"))
