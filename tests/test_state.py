"""States of any structure go flat and come back; what f returns must have the same structure."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

from ctflow import InvalidProblem, ODEProblem, Solver, odeint, solve
from ctflow.state import Layout, expand_time
from tests.checks import check_close

Pair = namedtuple("Pair", ["left", "right"])
X = torch.arange(12.0)
STRUCTURES: dict[str, Any] = {
    "tensor": X.reshape(2, 2, 3),
    "one in a tuple": (X.reshape(2, 6),),
    "tuple": (X.reshape(2, 6), X[:2].reshape(2, 1)),
    "list": [X.reshape(2, 6), X[:4].reshape(2, 2)],
    "dict": {"b": X.reshape(2, 6), "a": X[:2]},
    "ordered dict": OrderedDict(b=X.reshape(2, 6), a=X[:2]),
    "named tuple": Pair(X.reshape(2, 6), X[:2]),
    "nested": {"z": (X.reshape(2, 6), [X[:2]]), "a": X.reshape(2, 3, 2)},
    "not contiguous": X.reshape(2, 6).T.reshape(3, 4).T[:2],
    "expanded": torch.ones(2, 1).expand(2, 4),
}
structures = pytest.mark.parametrize("y", STRUCTURES.values(), ids=STRUCTURES.keys())


@structures
@pytest.mark.parametrize("per_sample", [True, False])
def test_unpack_undoes_pack(y: Any, per_sample: bool) -> None:  # noqa: ANN401
    """Structure, shapes and values, in [B, N] and with times in front."""
    layout = Layout.of(y, per_sample)
    flat = layout.pack(y)
    assert flat.shape == (layout.batch, layout.size)
    back, spec = pytree.tree_flatten(layout.unpack(flat))
    assert spec == pytree.tree_structure(y)
    assert all(torch.equal(a, b) for a, b in zip(back, pytree.tree_leaves(y), strict=True))
    stacked = pytree.tree_leaves(layout.unpack(torch.stack([flat, 2 * flat])))
    assert all(torch.equal(s[1], 2 * b) for s, b in zip(stacked, back, strict=True))


@structures
@pytest.mark.parametrize("coupling", ["shared", "per_sample"])
def test_any_structure_is_integrated(y: Any, coupling: str) -> None:  # noqa: ANN401
    """dy/dt = -y shrinks every leaf by exp(-1), and leaves y0 as it was."""
    before = pytree.tree_map(torch.clone, y)
    problem = ODEProblem(lambda t, y: pytree.tree_map(torch.neg, y), y, [0.0, 1.0])
    found = solve(problem, Solver(coupling=coupling, rtol=1e-6, atol=1e-6)).y
    assert pytree.tree_structure(found) == pytree.tree_structure(y)
    for leaf, old in zip(pytree.tree_leaves(found), pytree.tree_leaves(before), strict=True):
        check_close(leaf, torch.stack([old, old * torch.exp(torch.tensor(-1.0))]), rtol=1e-4)


@pytest.mark.parametrize(
    ("leaf", "shape"),
    [(torch.ones(5), [5]), (torch.ones(5, 2), [5, 1]), (torch.ones(5, 3, 8, 8), [5, 1, 1, 1])],
)
def test_time_expands_to_any_leaf(leaf: torch.Tensor, shape: list[int]) -> None:
    """[B, 1] becomes [B, 1, ..., 1] of the leaf's rank; 0-dim stays as it is."""
    assert list(expand_time(torch.zeros(5, 1), leaf).shape) == shape
    assert expand_time(torch.tensor(2.0), leaf).shape == ()


@pytest.mark.parametrize("coupling", ["shared", "per_sample"])
def test_f_receives_time_in_the_shape_and_dtype_that_is_promised(coupling: str) -> None:
    """0-dim, or [B, 1, ..., 1] of the first leaf's rank, in the dtype of y; y as y0 is."""
    seen = []

    def f(t: torch.Tensor, y: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        seen.append((t.shape, t.dtype, y["b"].shape))
        return {name: -leaf * expand_time(t, leaf) for name, leaf in y.items()}

    y0 = {"b": torch.ones(4, 2, 3), "a": torch.ones(4)}
    solve(ODEProblem(f, y0, [0.0, 1.0]), Solver(coupling=coupling))
    wanted = torch.Size([4, 1, 1]) if coupling == "per_sample" else torch.Size([])
    assert set(seen) == {(wanted, torch.float32, torch.Size([4, 2, 3]))}


WRONG: dict[str, tuple[Any, Any, str]] = {
    "a number": (X, 0.0, "Return dy/dt as a tensor"),
    "None": (X, None, "Return"),
    "another shape": (X, X[:3], "Return dy/dt for every component"),
    "a broadcastable shape": (X, X[:1], "Return dy/dt for every component"),
    "an added dimension": (X, X[None], "Return dy/dt for every component"),
    "another dtype": (X, X.double(), "Give `y0` the dtype of the parameters"),
    "integers": (X, X.long(), "Give `y0` the dtype of the parameters"),
    "another device": (X, X.to("meta"), "Move its parameters there"),
    "a tuple": (X, (X,), "Return"),
    "one leaf of two": ((X, X), (X,), "Return one derivative for each leaf"),
    "a tensor for a tuple": ((X, X), X, "Return one derivative for each leaf"),
    "other keys": ({"a": X}, {"b": X}, "Return one derivative for each leaf"),
    "a leaf of another shape": ((X, X), (X, X[:2]), "Return dy/dt for every component"),
    "a number as a leaf": ((X, X), (X, 1.0), "Return dy/dt as a tensor"),
}  # fmt: skip


@pytest.mark.parametrize(("y0", "dy", "remedy"), WRONG.values(), ids=WRONG.keys())
@pytest.mark.parametrize("gradient", ["direct", "checkpointed"])
def test_what_f_returns_must_fit_the_state(y0: Any, dy: Any, remedy: str, gradient: str) -> None:  # noqa: ANN401
    """Structure, shape, dtype and device, each refused with what to return."""
    with pytest.raises(InvalidProblem, match=r"^`f` must return .*, got ") as caught:
        odeint(lambda t, y: dy, y0, [0.0, 1.0], gradient=gradient)
    assert remedy in str(caught.value)


def test_the_wrong_leaf_is_named() -> None:
    """By its number."""
    with pytest.raises(InvalidProblem, match=r"\(leaf 1\), got \[2\] for \[12\]"):
        odeint(lambda t, y: (X, X[:2]), (X, X), [0.0, 1.0])


def test_autocast_may_lower_what_f_computes_but_not_the_state() -> None:
    """A product in bfloat16 is accepted under autocast, and the result stays float32."""
    layer = torch.nn.Linear(3, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = odeint(lambda t, y: layer(y), torch.ones(2, 3), [0.0, 1.0], rtol=1e-2, atol=1e-2)
    assert y.dtype == torch.float32
