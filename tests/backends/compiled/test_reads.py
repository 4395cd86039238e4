"""Whatever `f` may read is looked at before each solve: a change of it asks for another program."""

from __future__ import annotations

import types
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ctflow import ODEProblem, Solver, Unsupported, solve
from ctflow.backends.compiled.backend import CompiledBackend
from ctflow.backends.compiled.reads import read
from tests.backends.compiled.conftest import operator_by_operator

Y0 = torch.ones(3, dtype=torch.float64)
Changing = tuple[Callable[[Any, Any], Any], Callable[[], object]]


@dataclass(slots=True)
class Slots:
    """Kept outside of any `__dict__`."""

    k: float


class Holder(nn.Module):
    """A number in an attribute, behind the rule of a subclass."""

    def __init__(self, kept: Any) -> None:  # noqa: ANN401
        super().__init__()
        self.kept = kept

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """Evaluate it."""
        return -self.rate() * y

    def rate(self) -> Any:  # noqa: ANN401
        """The number."""
        return float(self.kept)


class OfSlots(Holder):
    """Found by the name that the base class uses."""

    def rate(self) -> Any:  # noqa: ANN401
        """The number."""
        return self.kept.k


def _class_as_a_namespace() -> Changing:
    class Settings:
        k = 2.0

    return lambda t, y: -Settings.k * y, lambda: setattr(Settings, "k", 3.0)


def _constant_of_a_helper() -> Changing:
    class Helper:
        k = 2.0

        def drag(self, y: Tensor) -> Tensor:
            return -self.k * y

    helper = Helper()
    return lambda t, y: helper.drag(y), lambda: setattr(Helper, "k", 3.0)


def _constant_of_a_function_of_autograd() -> Changing:
    class Decay(torch.autograd.Function):
        k = 2.0

        @staticmethod
        def forward(ctx: Any, y: Tensor) -> Tensor:  # noqa: ANN401
            return -Decay.k * y

    return lambda t, y: Decay.apply(y), lambda: setattr(Decay, "k", 3.0)


def _attribute_of_a_function() -> Changing:
    def f(t: Tensor, y: Tensor) -> Tensor:
        return -f.k * y

    f.k = 2.0
    return f, lambda: setattr(f, "k", 3.0)


def _code_of_a_function() -> Changing:
    def f(t: Tensor, y: Tensor) -> Tensor:
        return -2 * y

    return f, lambda: setattr(f, "__code__", (lambda t, y: -3 * y).__code__)


def _method_of_a_class() -> Changing:
    class Field(nn.Module):
        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return -2 * y

    return Field(), lambda: setattr(Field, "forward", lambda self, t, y: -3 * y)


def _in_a_module(change: str) -> Changing:
    module = types.ModuleType("physics")
    exec("k = 2.0\noptions = {'k': 2.0}\ndef rhs(t, y): return -k * y", vars(module))

    def f(t: Tensor, y: Tensor) -> Tensor:
        return module.rhs(t, y) - module.options["k"] * y

    return f, lambda: exec(change, vars(module))


def _in_a_deque() -> Changing:
    kept = deque([2.0])
    return lambda t, y: -sum(kept) * y, lambda: kept.append(1.0)


def _of_a_list() -> Changing:
    class Rates(list[float]):
        k = 2.0

    rates = Rates([1.0])
    return lambda t, y: -rates[0] * rates.k * y, lambda: setattr(rates, "k", 3.0)


def _slots() -> Changing:
    f = OfSlots(Slots(2.0))
    return f, lambda: setattr(f.kept, "k", 3.0)


def _number_of_numpy() -> Changing:
    f = Holder(np.float32(2))
    return f, lambda: setattr(f, "kept", np.float32(3))


act: Callable[[Tensor], Tensor] = torch.neg


def _alias_of_a_function() -> Changing:
    globals()["act"] = torch.neg
    return lambda t, y: 2 * act(y), lambda: globals().update(act=torch.sin)


CHANGES: dict[str, Callable[[], Changing]] = {
    "a class as a namespace": _class_as_a_namespace,
    "a helper's class": _constant_of_a_helper,
    "a function of autograd": _constant_of_a_function_of_autograd,
    "a function's attribute": _attribute_of_a_function,
    "a function's code": _code_of_a_function,
    "a class's method": _method_of_a_class,
    "a module's constant, read by its function": lambda: _in_a_module("k = 3.0"),
    "a module's dict": lambda: _in_a_module("options['k'] = 3.0"),
    "a module's function": lambda: _in_a_module("def rhs(t, y): return -3 * y"),
    "a deque": _in_a_deque,
    "an attribute of a list": _of_a_list,
    "slots, by a subclass's method": _slots,
    "a number of NumPy's": _number_of_numpy,
    "a global name for a function of torch": _alias_of_a_function,
}


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_seen(name: str, times: int) -> None:
    """Also where `f` was looked at before, and only what may have changed is looked at again."""
    f, change = CHANGES[name]()
    problem = ODEProblem(f, Y0, [0.0, 1.0])
    before = [read(problem).key for _ in range(times)]
    assert before == before[:1] * times
    change()
    assert read(problem).key != before[0]


def test_what_goes_on_by_itself_asks_for_no_other_program() -> None:
    """Numbers are drawn and steps counted between solves, beside the field."""
    f = Holder(2.0)
    f.drawn, f.steps, f.noise = np.random.default_rng(0), count(), torch.Generator()
    problem = ODEProblem(f, Y0, [0.0, 1.0])
    before = read(problem).key
    f.drawn.random()
    next(f.steps)
    torch.rand(1, generator=f.noise)
    assert read(problem).key == before


def test_a_number_made_where_another_was_is_not_taken_for_it() -> None:
    """Python gives the address of what is gone to what comes next."""
    with operator_by_operator(), torch.no_grad():
        for k in np.linspace(2, 4, 3, dtype=np.float32):
            problem = ODEProblem(OfSlots(Slots(k)), Y0, [0.0, 1.0])
            y = solve(problem, Solver(CompiledBackend(), rtol=1e-9, atol=1e-9)).y
            torch.testing.assert_close(y[-1], Y0 * np.exp(-float(k)), rtol=1e-7, atol=1e-9)


def test_another_default_dtype_makes_other_constants() -> None:
    """0.1 in float32 is another number than in float64."""
    found: list[float] = []
    with operator_by_operator(), torch.no_grad():
        for dtype in (torch.float32, torch.float64):
            torch.set_default_dtype(dtype)
            try:
                problem = ODEProblem(lambda t, y: torch.tensor(0.1).to(y) * y, Y0, [0.0, 1.0])
                solver = Solver(CompiledBackend(), rtol=1e-12, atol=1e-12)
                found.append(float(solve(problem, solver).y[-1, 0]))
            finally:
                torch.set_default_dtype(torch.float32)
    assert found == pytest.approx([np.exp(float(np.float32(0.1))), np.exp(0.1)], rel=1e-11)


def test_a_sparse_tensor_is_refused() -> None:
    """In words, wherever it is kept."""
    matrix = torch.eye(3, dtype=torch.float64).to_sparse()
    asked = ODEProblem(lambda t, y: -torch.sparse.mm(matrix, y[:, None])[:, 0], Y0, [0.0, 1.0])
    with pytest.raises(Unsupported, match=r"dense tensors.*sparse_coo.*to_dense"):
        solve(asked, "compiled")
    asked = ODEProblem(lambda t, y, args: -(args @ y), Y0, [0.0, 1.0], args=matrix)
    with pytest.raises(Unsupported, match=r"dense tensors.*sparse_coo.*to_dense"):
        solve(asked, "compiled")


def _few(t: Tensor, y: Tensor) -> Tensor:
    return (-1.0 if y.shape[0] > 50 else -2.0) * y


def _even(t: Tensor, y: Tensor) -> Tensor:
    return -y if y.shape[0] % 2 == 0 else -2 * y


def _all_but_one_size(t: Tensor, y: Tensor) -> Tensor:
    return -y if y.shape[0] != 7 else -2 * y


def _neighbours(t: Tensor, y: Tensor) -> Tensor:
    near = torch.cdist(y, y).topk(min(8, y.shape[0]), largest=False).indices
    return y[near].mean(1) - y


def _row_by_row(t: Tensor, y: Tensor) -> Tensor:
    return torch.stack([-(i + 1) * y[i] for i in range(y.shape[0])])


def _in_parts(t: Tensor, y: Tensor) -> Tensor:
    return torch.cat([-(i + 1) * part for i, part in enumerate(y.split(4))])


@pytest.mark.parametrize(
    ("f", "sizes"),
    [
        (_row_by_row, (3, 4)),
        (_in_parts, (9, 10)),
        (_few, (100, 200, 10)),
        (_even, (101, 103, 10, 12)),
        (_all_but_one_size, (5, 6, 7)),
        (_neighbours, (20, 30, 5)),
    ],
)
def test_a_decision_by_the_batch_size_is_for_sizes_that_decide_alike(
    f: Callable[..., Tensor], sizes: tuple[int, ...], caplog: pytest.LogCaptureFixture
) -> None:
    """A program for any size was followed with one of them; one warning says that it cannot be."""
    with operator_by_operator(), torch.no_grad():
        for n in sizes:
            y0 = torch.linspace(0, 1, 2 * n, dtype=torch.float64).reshape(n, 2)
            compiled, native = (
                solve(ODEProblem(f, y0, [0.0, 1.0]), Solver(backend, rtol=1e-8, atol=1e-8)).y  # pyright: ignore
                for backend in (CompiledBackend(), "native")
            )
            torch.testing.assert_close(compiled, native, rtol=1e-6, atol=1e-8)
    ours = [x for x in caplog.records if x.levelname == "WARNING"]
    assert ours
    assert all("batch size is compiled for itself" in x.getMessage() for x in ours)
