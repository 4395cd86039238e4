"""The compiled solve and its gradient are native's, and refusals say what to do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ctflow import BackendUnavailable, ODEProblem, Solver, Status, Unsupported, odeint, solve
from ctflow.backends.compiled.backend import CompiledBackend
from ctflow.backends.compiled.build import built, counts
from ctflow.backends.protocol import resolve

SOLVER = Solver(rtol=1e-6, atol=1e-8)
COMPILED = Solver(backend=CompiledBackend(), rtol=1e-6, atol=1e-8)


class Field(nn.Module):
    """A small network that counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = nn.Linear(2, 12, dtype=torch.float64)
        self.second = nn.Linear(12, 2, dtype=torch.float64)
        with torch.no_grad():
            for x in self.parameters():
                x.copy_(0.5 * torch.randn(x.shape, generator=generator, dtype=x.dtype))
        self.scale = 1.0
        self.calls = 0

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """Evaluate it."""
        self.calls += 1
        return self.scale * self.second(torch.tanh(self.first(y**3))) * torch.cos(t)


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CTFLOW_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


def _gradients(f: Field, y0: Tensor, t: Tensor, solver: Solver) -> tuple[Tensor, Tensor, Tensor]:
    start = y0.clone().requires_grad_()
    solution = solve(ODEProblem(f, start, t), solver)
    (solution.y**2).mean().backward()
    found = [start.grad, *(x.grad for x in f.parameters())]
    flat = torch.cat([g.reshape(-1) for g in found if g is not None])
    f.zero_grad(set_to_none=True)
    return solution.y.detach(), flat, solution.stats.forward.n_steps


@pytest.mark.once
@pytest.mark.compiler
def test_values_gradients_and_steps_are_those_of_native() -> None:
    """Programs serve every value, time, direction and instance."""
    t = torch.linspace(0, 2, 7, dtype=torch.float64)
    start, backend = torch.ones(5, 2, dtype=torch.float64), CompiledBackend()
    asked = ODEProblem(Field(), start, t)
    backend.follow(asked, resolve(asked, COMPILED, backend))  # finds out that `f` counts its calls
    _gradients(Field(), start, t, COMPILED)
    before = counts.compiled
    for seed, (batch, times) in enumerate([(5, t), (5, 0.7 * t), (5, t.flip(0))]):
        torch.manual_seed(seed)
        f = Field()
        y0 = torch.randn(batch, 2, dtype=torch.float64)
        value, gradient, steps = _gradients(f, y0, times, COMPILED)
        wanted, reference, native_steps = _gradients(f, y0, times, SOLVER)
        torch.testing.assert_close(value, wanted, rtol=1e-9, atol=1e-9)
        assert float((gradient - reference).norm() / reference.norm()) < 1e-8
        assert int(steps) == int(native_steps)
    assert counts.compiled == before


@pytest.mark.slow
@pytest.mark.compiler
def test_a_blow_up_is_reported() -> None:
    """With a status, and NaN where it did not arrive."""
    y0, t = torch.ones(3, dtype=torch.float64), torch.tensor([0.0, 2.0], dtype=torch.float64)
    solution = solve(ODEProblem(lambda t, y: y**2, y0, t), COMPILED)
    assert int(solution.status[0]) != Status.OK
    assert bool(torch.isnan(solution.y[-1]).all())


def test_what_depends_on_values_is_refused_by_line() -> None:
    """With the line, and the backend that can."""

    def f(t: Tensor, y: Tensor) -> Tensor:
        return y if float(y.sum()) > 0 else -y

    with pytest.raises(Unsupported, match=r"test_compiled\.py:\d+.*backend='native'"):
        odeint(f, torch.ones(2), [0.0, 1.0], solver=COMPILED)


def test_random_numbers_are_refused() -> None:
    """They would differ when a step is redone."""
    f = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    with pytest.raises(Unsupported, match="random"):
        odeint(lambda t, y: f(y), torch.ones(3, 2), [0.0, 1.0], solver=COMPILED)


@pytest.mark.slow
@pytest.mark.compiler
def test_a_thousand_training_steps_compile_once_each_way() -> None:
    """Parameters, states, times, their number and tolerances change; programs do not."""
    f = Field()
    optimiser = torch.optim.Adam(f.parameters(), lr=1e-3)
    target = torch.ones(2, dtype=torch.float64)
    began = None
    for i in range(1000):
        y0 = torch.randn(5, 2, dtype=torch.float64)
        t = torch.linspace(0, 1 + 0.001 * i, 5 + i % 3, dtype=torch.float64)
        y = odeint(f, y0, t, solver=replace(COMPILED, rtol=1e-3 / (1 + i), gradient="direct"))
        loss = ((y[-1] - target) ** 2).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if i == 2:  # that `f` counts its calls is found out when it is followed first
            began = (counts.compiled, counts.loaded)
    assert began == (counts.compiled, counts.loaded)
    assert f.calls < 50, "Python was asked for values"


class Rotated(nn.Module):
    """Each sample turns at a rate of its own."""

    def forward(self, t: Tensor, y: Tensor, args: Tensor) -> Tensor:
        """Evaluate it."""
        x, v = y.unbind(1)
        return torch.stack([v, -args * torch.sin(x)], 1) + torch.cos(3 * t) * y / 10


@pytest.mark.slow
@pytest.mark.compiler
def test_step_counts_are_native_s_in_ninety_nine_of_a_hundred() -> None:
    """Fusion moves decisions that stand on the edge, and no others: 2,000 solves."""
    same = total = 0
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        y0 = torch.randn(100, 2, dtype=torch.float64, generator=generator)
        rates = torch.rand(100, dtype=torch.float64, generator=generator) * 10 ** (seed % 3)
        t = torch.linspace(0, 1 + seed / 2, 2 + seed % 5, dtype=torch.float64)
        tolerance = 10.0 ** -(2 + seed % 8)
        settings = {"rtol": tolerance, "atol": tolerance, "coupling": "per_sample"}
        with torch.no_grad():
            ours, native = (
                solve(ODEProblem(Rotated(), y0, t, args=rates), replace(s, **settings))
                for s in (COMPILED, SOLVER)
            )
        torch.testing.assert_close(ours.y, native.y, rtol=10 * tolerance, atol=10 * tolerance)
        equal = ours.stats.forward.n_steps == native.stats.forward.n_steps
        same, total = same + int(equal.sum()), total + len(equal)
    assert same >= 0.99 * total


class Switched(nn.Module):
    """A field with a mode and a submodule."""

    def __init__(self) -> None:
        super().__init__()
        self.inner: nn.Module = nn.Linear(2, 2, dtype=torch.float64)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """Evaluate it."""
        return self.inner(y) if self.training else -self.inner(y)


@pytest.mark.slow
@pytest.mark.compiler
def test_what_python_sees_may_change_between_solves() -> None:
    """Train or eval, another submodule: the answer is that of the present field."""
    f, y0, t = Switched(), torch.ones(3, 2, dtype=torch.float64), [0.0, 1.0]
    with torch.no_grad():
        for change in (
            lambda: None,
            lambda: f.eval(),
            lambda: setattr(f, "inner", nn.Sequential(f.inner, nn.Tanh())),
            lambda: f.train(),
        ):
            change()
            ours, native = (odeint(f, y0, t, solver=solver) for solver in (COMPILED, SOLVER))
            torch.testing.assert_close(ours, native, rtol=1e-9, atol=1e-9)


@pytest.mark.skipif(not __debug__, reason="under python -O it is refused before")
@pytest.mark.skipif(torch.__version__ < (2, 13), reason="an older torch is refused before")
def test_a_machine_without_a_compiler_is_told_so() -> None:
    """With what to install, and who can solve meanwhile."""
    without = torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)})  # pyright: ignore
    with without, pytest.raises(BackendUnavailable, match=r"C\+\+ compiler.*backend='native'"):
        odeint(lambda t, y: -y * 1.5, torch.ones(2), [0.0, 1.0], solver=COMPILED)


def test_an_older_torch_is_refused_by_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would export no loop that changes its records in place, and say so in its own words."""
    monkeypatch.setattr("torch.__version__", "2.12.1+cpu")
    with pytest.raises(BackendUnavailable, match=r"needs torch 2\.13 or newer, got 2\.12\.1"):
        built(nn.Identity(), [torch.ones(2)], None, "nothing")


class Doubled(nn.Module):
    """Small enough to be compiled in a test of something else."""

    def forward(self, x: Tensor) -> Tensor:
        """Evaluate it."""
        return 2 * x


@pytest.mark.compiler
def test_what_torch_writes_into_its_options_is_not_seen_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They are part of a program's name: no process found the second program of another."""
    given: list[dict[str, object]] = []

    def package(_: object, *, package_path: str, inductor_configs: dict[str, object]) -> None:
        del package_path  # nothing is written there, so that there is nothing to load
        given.append({**inductor_configs})
        inductor_configs["aot_inductor.package"] = True

    monkeypatch.setattr("torch._inductor.aoti_compile_and_package", package)
    for size in (2, 3):
        with pytest.raises(Unsupported):
            built(Doubled(), [torch.ones(size)], None, "twice")
    assert given[0] == given[1]


@pytest.mark.compiler
def test_a_program_is_found_again_whether_another_was_compiled_before_or_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch writes into the options that it is given, and they are part of a program's name.

    Nothing is exported to find one: that would take as long as all else.
    """
    monkeypatch.setenv("CTFLOW_CACHE_DIR", str(tmp_path))
    compiled = counts.compiled
    for size in (2, 3):
        built(Doubled(), [torch.ones(size)], None, "twice")
    monkeypatch.delattr("torch.export.export")
    for size in (2, 3):
        found = built(Doubled(), [torch.ones(size)], None, "twice")([torch.ones(size)])
        torch.testing.assert_close(found, [2 * torch.ones(size)])
    assert counts.compiled == compiled + 2


@pytest.mark.skipif(__debug__, reason="only under python -O")
def test_without_asserts_it_is_refused() -> None:
    """Torch's compiler would make a loop that accepts no step."""
    with pytest.raises(Unsupported, match="python -O"):
        odeint(lambda t, y: -y, torch.ones(2), [0.0, 1.0], solver=COMPILED)
