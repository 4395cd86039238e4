"""A script that is killed at random points ends with the numbers of one that was left alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

LIVES = Path(__file__).with_name("lives.py")
_TIMES = {"seconds", "milliseconds", "training_seconds", "time_exponent", "environment"}

# Flows, trained against samples and against a density.
QUICK = {
    "figure_4_density_matching": {"cnf_iterations": 9, "nf_iterations": 9},
}
SLOW = {
    "figure_6_latent_ode": {"steps": 20},
    "augmented": {"steps": 8},
    "digits": {"epochs": 6, "repeats": 1},
    "regularised": {"epochs": 3},
    "steer": {"steps": 8},
    "mechanics": {"steps": 8},
    "figure_3": {"job.recipe.epochs": 10},
    "tolerance": {"job.recipe.epochs": 10},
    "figure_5_max_likelihood": {"cnf_iterations": 9, "nf_iterations": 9},
    "toy_densities": {"likelihood_iterations": 4, "matching_iterations": 6, "iterations": 6},
    "digits_density": {"likelihood_iterations": 4, "iterations": 6},
    "flow_animation": {"iterations": 20},
    "table_1": {"job.recipe.epochs": 3},
    "backends": {"recipe.epochs": 3},
    "table_2_spirals": {"steps": 6, "rnn_steps": 6},
    "figure_7_poisson": {"steps": 8, "coal_steps": 8},
    "irregular_series": {"steps": 3, "vowel_steps": 3},
    "latent_sde": {"steps": 20},
    "stochastic_lorenz": {"steps": 20},
}


@pytest.mark.parametrize("name", QUICK)
def test_three_deaths_change_no_number(name: str, tmp_path: Path) -> None:
    """Bit for bit; times and versions aside."""
    pytest.importorskip("matplotlib")
    _check(name, QUICK[name], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_three_deaths_change_no_number_of_any_script(name: str, tmp_path: Path) -> None:
    """Likewise of the others."""
    for package in ("matplotlib", "sklearn", "zuko", "torchsde", "statsmodels", "sktime"):
        pytest.importorskip(package)
    _check(name, SLOW[name], tmp_path)


def _check(name: str, changes: dict[str, int], folder: Path) -> None:
    command = [sys.executable, str(LIVES), name, str(folder), "0"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(
        [*command, *(f"{key}={value}" for key, value in changes.items())],
        check=True, env=environment, timeout=600, capture_output=True,
    )  # fmt: skip
    whole, killed = (
        json.loads((folder / kind / "smoke.json").read_text()) for kind in ("whole", "killed")
    )
    assert _numbers(killed) == _numbers(whole)
    assert not list(folder.rglob("*.pt"))


def _numbers(record: Any) -> Any:  # noqa: ANN401 - JSON
    if isinstance(record, dict):
        return {key: _numbers(value) for key, value in record.items() if key not in _TIMES}
    return [_numbers(each) for each in record] if isinstance(record, list) else record
