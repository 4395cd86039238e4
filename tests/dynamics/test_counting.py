"""`CountCalls` counts and changes nothing else."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor

from ctflow import Solver, odeint
from ctflow.dynamics import MLP, CountCalls


def decay(t: Tensor, y: Tensor) -> Tensor:
    """dy/dt = -y."""
    return -y


def test_every_evaluation_counts_once() -> None:
    """rk4 with a fixed step has four evaluations a step."""
    f = CountCalls(decay)
    odeint(f, torch.ones(3), [0.0, 1.0], solver=Solver(method="rk4", step=0.125))
    assert f.n_calls == 32


def test_reset_starts_again() -> None:
    """After a reset the count is that of the calls since."""
    f = CountCalls(decay)
    f(torch.tensor(0.0), torch.ones(3))
    f.reset()
    f(torch.tensor(0.0), torch.ones(3))
    assert f.n_calls == 1


@pytest.mark.parametrize(
    ("gradient", "repeats"), [("direct", 0), ("checkpointed", 1)], ids=["direct", "checkpointed"]
)
def test_evaluations_of_the_backward_pass_count(gradient: str, repeats: int) -> None:
    """Checkpointed evaluates again in the backward pass, direct does not."""
    f = CountCalls(MLP(2, (4,)))
    solver = Solver(method="rk4", step=0.25, gradient=gradient)
    y = odeint(f, torch.ones(2), [0.0, 1.0], solver=solver)
    forward = f.n_calls
    y.sum().backward()
    assert (f.n_calls - forward > 0) == bool(repeats)


def test_the_result_is_that_of_the_field() -> None:
    """Value and third argument pass through."""
    f = CountCalls(lambda t, y, args: args["rate"] * y)
    y = torch.arange(3.0)
    assert torch.equal(f(torch.tensor(0.0), y, {"rate": 2.0}), 2.0 * y)


def test_the_count_is_no_part_of_the_state_dict() -> None:
    """A checkpoint does not depend on how often the field was called."""
    field = MLP(2, (4,))
    names = {f"field.{name}" for name in field.state_dict()}
    assert set(CountCalls(field).state_dict()) == names


def test_copies_count_for_themselves() -> None:
    """A deep copy and a pickle start where the original stands and go on alone."""
    f = CountCalls(MLP(2, (4,)))
    f(torch.tensor(0.0), torch.ones(2))
    twins = [copy.deepcopy(f), pickle.loads(pickle.dumps(f))]
    for twin in twins:
        twin(torch.tensor(0.0), torch.ones(2))
    assert [f.n_calls, *(twin.n_calls for twin in twins)] == [1, 2, 2]


def test_counting_works_under_functional_transforms() -> None:
    """torch.func refuses in-place changes of what a function captures, but not this one."""
    f = CountCalls(MLP(2, (4,)))
    t, y = torch.tensor(0.0), torch.ones(5, 2)
    torch.func.vjp(lambda y: f(t, y), y)
    torch.func.vmap(torch.func.jacrev(lambda y: f(t, y)))(y)
    assert f.n_calls == 2


def test_counting_does_not_recompile() -> None:
    """One graph serves every call, and the count is right in it."""
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> object:
        graphs.append(graph)
        return graph.forward

    f = CountCalls(MLP(2, (4,)))
    compiled = torch.compile(f, fullgraph=True, backend=backend)
    for _ in range(5):
        compiled(torch.tensor(0.0), torch.ones(3, 2))
    assert (f.n_calls, len(graphs)) == (5, 1)
