"""Loops as the compiler writes them for us: the same values, and no tensor made in a turn."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ctflow.backends.compiled import build
from ctflow.backends.compiled.loops import lean_loops

pytestmark = [
    pytest.mark.usefixtures("any_folder"),
    pytest.mark.compiler,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]
State = tuple[Tensor, ...]


def _loop(n: int, body: Callable[..., State], start: State) -> State:
    """n turns of a body of (turn, *state)."""

    def turn(i: Tensor, *state: Tensor) -> State:
        return (i + 1, *(x.clone() for x in body(i, *state)))

    def goes_on(i: Tensor, *_: Tensor) -> Tensor:
        return i < n

    first = torch.zeros((), dtype=torch.int64)
    return torch.while_loop(goes_on, turn, (first, *start))[1:]  # pyright: ignore


class Handed(nn.Module):
    """Values that are handed on for one turn and for two, changed in a branch, and by a loop."""

    def forward(self, x: Tensor, y: Tensor) -> State:
        """[3, 4] each, and [2, 3, 4]."""

        def body(i: Tensor, a: Tensor, b: Tensor, c: Tensor) -> State:
            half = 0.5 * torch.where(i % 2 == 0, a + b, a - b)
            (inner,) = _loop(3, lambda j, z: (z * 0.9 + j,), (half,))
            both = torch.cat([(c[1] + 1).unsqueeze(0), (a * b).unsqueeze(0)])
            return b, inner, both

        return _loop(11, body, (x, y, torch.stack([x, y])))


def _wanted(x: Tensor, y: Tensor) -> State:
    a, b, c = x, y, torch.stack([x, y])
    for i in range(11):
        z = 0.5 * (a + b if i % 2 == 0 else a - b)
        for j in range(3):
            z = z * 0.9 + j
        a, b, c = b, z, torch.stack([c[1] + 1, a * b])
    return a, b, c


class Small(nn.Module):
    """One loop over small values, some of them parts of others."""

    def forward(self, x: Tensor) -> State:
        """[5, 2]."""

        def body(i: Tensor, y: Tensor, told: Tensor) -> State:
            z = torch.tanh(y @ y.t()) @ y
            return z, torch.stack([told[1], z.sum() + i, told[0]])

        return _loop(7, body, (x, torch.zeros(3)))


def _package(module: nn.Module, inputs: State, path: Path, free: bool = False) -> str:
    """Compile with lean loops alone, for any number of rows or one; the C++ that was written."""
    rows = {0: torch.export.Dim("rows", min=2)}
    with torch.no_grad():
        exported = torch.export.export(
            module,
            inputs,
            strict=True,
            dynamic_shapes=tuple(rows for _ in inputs) if free else None,
        )
        with lean_loops():
            torch._inductor.aoti_compile_and_package(exported, package_path=str(path))  # pyright: ignore
    with zipfile.ZipFile(path) as package:
        (name,) = (name for name in package.namelist() if name.endswith("wrapper.cpp"))
        return package.read(name).decode()


@pytest.mark.parametrize("free", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_what_is_handed_on_is_what_it_was(tmp_path: Path, free: bool) -> None:
    """Over one turn and two, through a loop inside; a second run begins anew."""
    torch.manual_seed(0)
    x, y = torch.randn(3, 4), torch.randn(3, 4)
    code = _package(Handed(), (x, y), tmp_path / "handed.pt2", free)
    assert code.count("_pool.next()") == 2
    program = build.Program(tmp_path / "handed.pt2")
    more = (torch.randn(70, 4), torch.randn(70, 4)) if free else (x, x)
    for inputs in ((x, y), (y, x), more, (x, y)):
        before = [z.clone() for z in inputs]
        for found, wanted in zip(program(list(inputs)), _wanted(*inputs), strict=True):
            torch.testing.assert_close(found, wanted)
        assert all(torch.equal(z, old) for z, old in zip(inputs, before, strict=True))


@pytest.mark.parametrize("free", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_turn_makes_no_tensor(tmp_path: Path, free: bool) -> None:
    """But the first two, which every later turn writes to again."""
    x = torch.randn(5, 2)
    code = _package(Small(), (x,), tmp_path / "small.pt2", free)
    body = code[code.index("while (1)") :].split("\n    }\n")[0]
    made = [line for line in body.splitlines() if "aoti_torch_empty_strided(" in line]
    assert made
    assert all(".lacks(" in line for line in made)
    assert body.count("reinterpret_tensor") <= 1
    program = build.Program(tmp_path / "small.pt2")
    y, told = x, torch.zeros(3)
    for i in range(7):
        y = torch.tanh(y @ y.t()) @ y
        told = torch.stack([told[1], y.sum() + i, told[0]])
    for found, wanted in zip(program([x]), (y, told), strict=True):
        torch.testing.assert_close(found, wanted)
