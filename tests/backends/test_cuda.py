"""On a CUDA device all is as on the CPU. Skipped, visibly, where there is none."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from ctflow import ODEProblem, Solver, solve
from ctflow.backends.protocol import Gradient
from ctflow.dynamics import MLP, ODEBlock
from ctflow.flows import Exact
from tests.backends.device_cases import CASES, cost, flow, gradients, large

# The suite's own check is done on another device by naming it here: CTFLOW_TEST_DEVICE=cpu.
DEVICE = os.environ.get("CTFLOW_TEST_DEVICE", "cuda")
ROUNDING = 2e-5  # float32, over some tens of steps
METHODS: tuple[Gradient, ...] = ("direct", "checkpointed", "adjoint")

pytestmark = pytest.mark.skipif(
    DEVICE == "cuda" and not torch.cuda.is_available(), reason="needs a CUDA device"
)


def _compiled() -> None:
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 13):
        pytest.skip("backend 'compiled' needs torch 2.13")


def _agree(case: Callable[[str], list[Tensor]], rounding: float = ROUNDING) -> None:
    """Values and gradients there and here, and all of them there."""
    wanted, got = case("cpu"), case(DEVICE)
    assert {x.device.type for x in got} == {DEVICE}
    for a, b in zip(wanted, got, strict=True):
        torch.testing.assert_close(b.cpu(), a, rtol=rounding, atol=rounding, check_dtype=False)


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_the_cpu(case: str) -> None:
    """To float32's rounding."""
    _agree(CASES[case])


@pytest.mark.parametrize("method", METHODS)
def test_compiled_per_sample_is_as_on_the_cpu(method: Gradient) -> None:
    """By every gradient; times have gradients too."""
    _compiled()
    _agree(partial(gradients, backend="compiled", gradient=method))


@pytest.mark.parametrize("method", METHODS)
def test_compiled_with_shared_steps_is_as_on_the_cpu(method: Gradient) -> None:
    """With matrices large enough for the device's library."""
    _compiled()
    _agree(partial(large, backend="compiled", gradient=method), 1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_compiled_flows_are_as_on_the_cpu(method: Gradient) -> None:
    """Their trace differentiates inside of the program."""
    _compiled()
    _agree(partial(flow, divergence=Exact(), backend="compiled", gradient=method))


def test_a_running_cost_of_compiled_is_as_on_the_cpu() -> None:
    """By the adjoint, whose backward solve integrates it again."""
    _compiled()
    _agree(partial(cost, backend="compiled"))


def test_other_batch_sizes_of_compiled_are_served_by_one_more_program_each_way(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Where kernels are made for sizes that are known when they run."""
    _compiled()
    made = []
    with caplog.at_level("INFO", "ctflow.compiled"):
        for rows in (32, 48, 7, 65):
            _agree(partial(large, rows=rows, backend="compiled", gradient="direct"), 1e-4)
            said = [record.getMessage() for record in caplog.records]
            made.append(sum(line.startswith(("compiled ", "loaded ")) for line in said))
    assert made[0] < made[1] == made[2] == made[3]


@pytest.mark.parametrize("backend", ["native", "compiled"])
def test_both_backends_take_the_same_steps_there(backend: str) -> None:
    """Counts, which are numbers on the CPU, do not depend on where it was computed."""
    if backend == "compiled":
        _compiled()

    def f(t: Tensor, y: Tensor) -> Tensor:
        return torch.stack([y[:, 1], -y[:, 0] * (1 + 0.1 * t)], dim=1)

    y0 = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    counts = []
    for device in ("cpu", DEVICE):
        problem = ODEProblem(f, y0.to(device), (0.0, 8.0))
        counts.append(solve(problem, Solver(backend, rtol=1e-7, atol=1e-9)).stats.forward)
    assert counts[0].n_accepted.tolist() == counts[1].n_accepted.tolist()
    assert counts[0].n_f_evals.tolist() == counts[1].n_f_evals.tolist()


def test_a_state_there_with_times_here_is_solved() -> None:
    """As users write it: times from `torch.linspace`, which lie on the CPU."""

    def f(t: Tensor, y: Tensor) -> Tensor:
        return -y * t

    y0 = torch.ones(3, 2, device=DEVICE)
    solution = solve(ODEProblem(f, y0, torch.linspace(0, 1, 5)), Solver(rtol=1e-5, atol=1e-6))
    assert solution.y.device.type == DEVICE
    torch.testing.assert_close(
        solution.y[-1].cpu(), torch.full((3, 2), -0.5).exp(), rtol=1e-4, atol=1e-5
    )


@pytest.mark.skipif(DEVICE != "cuda", reason="NCCL is CUDA's")
@pytest.mark.parametrize("method", METHODS)
def test_gradients_that_nccl_averages_are_those_of_one_process(
    method: Gradient, tmp_path: Path
) -> None:
    """One process, since one device takes no more: what is averaged is what was there."""
    torch.manual_seed(0)
    block = ODEBlock(MLP(4, (16,)), solver=Solver(rtol=1e-5, atol=1e-6, gradient=method)).cuda()
    x = torch.randn(8, 4, device="cuda")
    wanted = torch.autograd.grad(block(x).square().mean(), list(block.parameters()))
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("nccl", store=store, rank=0, world_size=1)
    try:
        parallel = nn.parallel.DistributedDataParallel(block, device_ids=[0])
        parallel(x).square().mean().backward()
        got = [p.grad for p in block.parameters()]
    finally:
        dist.destroy_process_group()
    for a, b in zip(wanted, got, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-6, atol=1e-6)
