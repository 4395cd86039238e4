"""Programs of one name on disk are the same program."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from ctflow.backends.compiled.fingerprint import fingerprint
from ctflow.backends.compiled.trace import graph_of


class Sum(nn.Module):
    """Two graphs, one of them taken n times."""

    def __init__(self, first: fx.GraphModule, second: fx.GraphModule, n: int) -> None:
        super().__init__()
        self.first, self.second = first, second
        self._n = n

    def forward(self, x: Tensor) -> Tensor:
        """Evaluate it."""
        return self.first(x) + self._n * self.second(x)


def _graph(
    function: Callable[[Tensor], Tensor], dtype: torch.dtype = torch.float32
) -> fx.GraphModule:
    return graph_of(function, [torch.ones(3, dtype=dtype)])


def _scaled(*factors: float, dtype: torch.dtype = torch.float32) -> fx.GraphModule:
    constant = torch.tensor(factors, dtype=dtype)
    return _graph(lambda x: x * constant)


def _name(
    first: fx.GraphModule | None = None,
    n: int = 2,
    inputs: Sequence[Tensor] = (torch.ones(3),),
    dynamic: object = None,
    options: Mapping[str, Any] | None = None,
) -> str:
    module = Sum(first or _graph(torch.sin), _scaled(1, 2, 3), n)
    return fingerprint(module, inputs, dynamic, options or {})


def test_the_same_has_the_same_name() -> None:
    """Whatever else was followed before it in its process."""
    name = _name()
    _scaled(7, 8, 9)
    assert _name() == name
    assert _name(_scaled(4, 5, 6)) == _name(_scaled(4, 5, 6))


def test_everything_that_counts_is_in_the_name() -> None:
    """Each of these is another program."""
    rows = torch.export.Dim("rows", min=2)
    names = [
        _name(),
        _name(_graph(torch.cos)),
        _name(_graph(lambda x: 0.1 * x)),
        _name(_graph(lambda x: (0.1 + 2e-17) * x)),
        _name(_scaled(4, 5, 6)),
        _name(_scaled(4, 5, 7)),
        _name(_scaled(4, 5, 6, dtype=torch.float64)),
        _name(_scaled(4, 5, 6, dtype=torch.bfloat16)),
        _name(_scaled(4)),
        _name(n=3),
        _name(inputs=[torch.ones(4)]),
        _name(inputs=[torch.ones(3, dtype=torch.float64)]),
        _name(inputs=[torch.ones(3), torch.ones(3)]),
        _name(inputs=[torch.ones(2, 3)]),
        _name(inputs=[torch.ones(3, 2).t()]),
        _name(dynamic=({0: rows},)),
        _name(dynamic=({0: 3 * rows},)),
        _name(options={"a": 1}),
        _name(options={"a": 2}),
    ]
    assert len(set(names)) == len(names)


def test_what_a_graph_leaves_open_is_in_the_name() -> None:
    """The dtype of a new tensor, autocast's products, the share of each thread."""
    names = [_name()]
    with torch.autocast("cpu"):
        names.append(_name())
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        names.append(_name())
    finally:
        torch.set_num_threads(threads)
    torch.set_default_dtype(torch.float64)
    try:
        names.append(_name())
    finally:
        torch.set_default_dtype(torch.float32)
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("odd", [nn.Linear(3, 3), nn.BatchNorm1d(3, affine=False)])
def test_tensors_of_its_own_are_refused(odd: nn.Module) -> None:
    """A program would go on with those that it was compiled with."""
    with pytest.raises(TypeError, match="tensors of a program must be its inputs, got"):
        fingerprint(odd, [torch.ones(3)], None, {})


def test_a_state_that_has_no_name_is_refused() -> None:
    """Rather than left out."""
    module = Sum(_graph(torch.sin), _graph(torch.cos), 1)
    vars(module)["other"] = {"a": 1}
    with pytest.raises(TypeError, match="other must be a whole number, got dict"):
        fingerprint(module, [torch.ones(3)], None, {})
