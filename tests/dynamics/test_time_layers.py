"""Every field takes time in both shapes in which a solver hands it over."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ctflow import InvalidProblem
from ctflow.dynamics import MLP, ConcatLinear, ConcatSquashLinear, ConvField, IgnoreLinear
from tests.checks import check_close

Field = Callable[[Tensor, Tensor], Tensor]
LAYERS = [IgnoreLinear, ConcatLinear, ConcatSquashLinear]


def mlp(layer: Callable[[int, int], nn.Module]) -> tuple[nn.Module, Tensor]:
    """A small float64 MLP and a batch of four states."""
    torch.manual_seed(0)
    return MLP(3, (5, 4), layer=layer).double(), torch.randn(4, 3, dtype=torch.float64)


def conv() -> tuple[nn.Module, Tensor]:
    """A small smooth float64 ConvField and a batch of four states."""
    torch.manual_seed(0)
    field = ConvField(2, activation=nn.Tanh).double()
    return field, torch.randn(4, 2, 3, 3, dtype=torch.float64)


FIELDS = {layer.__name__: lambda layer=layer: mlp(layer) for layer in LAYERS} | {"ConvField": conv}
fields = pytest.mark.parametrize("make", FIELDS.values(), ids=FIELDS.keys())


def per_sample(times: Tensor, y: Tensor) -> Tensor:
    """Times [B] as a per-sample solver hands them over: [B, 1, ..., 1]."""
    return times.reshape(-1, *(1,) * (y.dim() - 1))


@fields
def test_equal_times_for_each_sample_mean_the_same_as_one_time(
    make: Callable[[], tuple[Field, Tensor]],
) -> None:
    """A 0-dim time and the same time in every row give the same derivative."""
    field, y = make()
    t = torch.tensor(0.3, dtype=torch.float64)
    check_close(field(per_sample(t.expand(4), y), y), field(t, y), rtol=1e-13, atol=1e-14)


@fields
def test_each_sample_is_evaluated_at_its_own_time(
    make: Callable[[], tuple[Field, Tensor]],
) -> None:
    """Row b of a batch equals sample b alone at time b."""
    field, y = make()
    times = torch.tensor([0.0, 0.5, -1.0, 2.0], dtype=torch.float64)
    rows = torch.cat([field(t, row[None]) for t, row in zip(times, y, strict=True)])
    check_close(field(per_sample(times, y), y), rows, rtol=1e-12, atol=1e-13)


@fields
def test_fields_differentiate_in_time_state_and_parameters(
    make: Callable[[], tuple[nn.Module, Tensor]],
) -> None:
    """Derivatives agree with finite differences in float64."""
    field, y = make()
    t = per_sample(torch.linspace(0.1, 0.9, 4, dtype=torch.float64), y)
    parameters = dict(field.named_parameters())

    def call(t: Tensor, y: Tensor, *values: Tensor) -> Tensor:
        named = dict(zip(parameters, values, strict=True))
        return torch.func.functional_call(field, named, (t, y))

    inputs = [leaf.detach().requires_grad_() for leaf in (t, y, *parameters.values())]
    assert torch.autograd.gradcheck(call, inputs)


@fields
def test_fields_trace_into_one_graph(make: Callable[[], tuple[nn.Module, Tensor]]) -> None:
    """A compiler sees one graph without breaks, for either shape of time."""
    field, y = make()
    traced = torch.compile(field, fullgraph=True, backend="eager")
    for t in (torch.tensor(0.3, dtype=torch.float64), per_sample(torch.rand(4).double(), y)):
        check_close(traced(t, y), field(t, y), rtol=1e-13)


@pytest.mark.parametrize("layer", [ConcatLinear, ConcatSquashLinear])
def test_concatenated_and_gated_fields_depend_on_time(layer: type[nn.Module]) -> None:
    """The derivative changes with t."""
    field, y = mlp(layer)
    times = torch.tensor([0.0, 1.0], dtype=torch.float64)
    early, late = (field(t, y).detach() for t in times)
    assert (late - early).abs().min() > 1e-4


def test_a_plain_mlp_does_not_depend_on_time() -> None:
    """The derivative is the same at every t, bit for bit."""
    field, y = mlp(IgnoreLinear)
    assert torch.equal(field(torch.tensor(0.0), y), field(torch.tensor(9.0), y))


def test_concat_linear_is_a_linear_map_of_time_and_state() -> None:
    """W [t, y] + b, with t as the first feature."""
    layer = ConcatLinear(3, 2).double()
    y, t = torch.randn(4, 3, dtype=torch.float64), torch.tensor(0.7, dtype=torch.float64)
    weight, bias = layer.linear.weight, layer.linear.bias
    expected = y @ weight[:, 1:].T + t * weight[:, 0] + bias
    check_close(layer(t, y), expected, rtol=1e-12, atol=1e-14)


def test_concat_squash_linear_gates_and_shifts() -> None:
    """(W y + b) * sigmoid(u t + v) + w t."""
    layer = ConcatSquashLinear(3, 2).double()
    y, t = torch.randn(4, 3, dtype=torch.float64), torch.tensor(0.7, dtype=torch.float64)
    gate = torch.sigmoid(layer.gate.weight[:, 0] * t + layer.gate.bias)
    expected = (y @ layer.linear.weight.T + layer.linear.bias) * gate
    expected = expected + layer.shift.weight[:, 0] * t
    check_close(layer(t, y), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("shape", [(3,), (4, 3), (4, 5, 3)], ids=str)
def test_an_mlp_takes_states_of_any_rank(
    layer: Callable[[int, int], nn.Module], shape: tuple[int, ...]
) -> None:
    """Features stand in the last dimension; what stands before them is kept."""
    field, _ = mlp(layer)
    y = torch.randn(shape, dtype=torch.float64)
    assert field(torch.tensor(0.1, dtype=torch.float64), y).shape == shape


def test_time_of_another_precision_does_not_change_the_dtype() -> None:
    """A float64 time beside a float32 state gives a float32 derivative."""
    for layer in LAYERS:
        field = MLP(3, (5,), layer=layer)
        assert (
            field(torch.tensor(0.1, dtype=torch.float64), torch.zeros(4, 3)).dtype is torch.float32
        )


@pytest.mark.parametrize("shape", [(), (4,), (4, 2)], ids=str)
def test_a_state_of_the_wrong_width_is_refused(shape: tuple[int, ...]) -> None:
    """The message names the width wanted and the shape given."""
    with pytest.raises(InvalidProblem, match="must have 3 features"):
        MLP(3)(torch.tensor(0.0), torch.zeros(shape))


@pytest.mark.parametrize(("dim", "hidden"), [(0, (4,)), (2.5, (4,)), (2, (4, 0)), (2, ("8",))])
def test_a_width_that_is_no_positive_integer_is_refused(
    dim: object, hidden: tuple[object, ...]
) -> None:
    """The message names the argument."""
    with pytest.raises(InvalidProblem, match="must be a positive integer"):
        MLP(dim, hidden)
