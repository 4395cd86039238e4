"""`ContinuousFlow` is an ordinary distribution over an ordinary transform."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import (
    AffineTransform,
    ComposeTransform,
    Independent,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    TransformedDistribution,
)

from ctflow import Solver
from ctflow.dynamics import MLP, CountCalls
from ctflow.errors import InvalidProblem
from ctflow.flows import (
    ContinuousFlow,
    FlowTransform,
    FreeForm,
    GatedPlanar,
    Hutchinson,
    Planar,
    kinetic,
    log_density,
)

FLOAT = torch.float64
STEPS = Solver(method="rk4", step=0.25)  # sixteen evaluations a solve, and one for the end


def standard(dim: int = 2) -> Independent:
    """The standard normal distribution."""
    return Independent(Normal(torch.zeros(dim, dtype=FLOAT), torch.ones(dim, dtype=FLOAT)), 1)


def mlp() -> nn.Module:
    """A network with fixed weights."""
    torch.manual_seed(0)
    return MLP(2, (8,)).double()


def points(*shape: int) -> Tensor:
    """Points with the given shape."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2), dtype=FLOAT)


def counted() -> tuple[CountCalls, ContinuousFlow]:
    """A flow whose evaluations are counted."""
    field = CountCalls(mlp())
    return field, ContinuousFlow(standard(), field, solver=STEPS)


def calls_of_one_solve() -> int:
    """Evaluations of one solve for a log-density."""
    field, flow = counted()
    log_density(flow, points(3, 2))
    return field.n_calls


def test_shapes_are_those_of_torch() -> None:
    """Sample, batch and event shapes."""
    flow = ContinuousFlow(standard().expand((3,)), mlp(), solver=STEPS)
    assert (flow.batch_shape, flow.event_shape) == ((3,), (2,))
    x = flow.sample((4, 5))
    assert x.shape == (4, 5, 3, 2)
    assert flow.log_prob(x).shape == (4, 5, 3)
    assert flow.log_prob(points(2)).shape == (3,)


def test_expand_shares_the_field() -> None:
    """The batch shape grows, the numbers stay."""
    flow = ContinuousFlow(standard(), mlp(), solver=STEPS)
    wide = flow.expand((4, 3))
    x = points(4, 3, 2)
    assert isinstance(wide, ContinuousFlow)
    assert (wide.batch_shape, wide.sample((2,)).shape) == ((4, 3), (2, 4, 3, 2))
    assert torch.allclose(wide.log_prob(x), flow.log_prob(x))


def test_an_event_may_have_any_shape() -> None:
    """Images are points too."""
    base = Independent(Normal(torch.zeros(1, 3, 3), torch.ones(1, 3, 3)), 3)
    flow = ContinuousFlow(base, lambda t, z: torch.tanh(z), divergence=Hutchinson(), solver=STEPS)
    x = flow.sample((5,))
    assert x.shape == (5, 1, 3, 3)
    # A diagonal Jacobian has no variance: this is exact.
    exact = ContinuousFlow(base, lambda t, z: torch.tanh(z), solver=STEPS)
    assert torch.allclose(flow.log_prob(x), exact.log_prob(x), rtol=1e-5)


@pytest.mark.parametrize("chain", ["transformed", "composed", "inside a chain", "last of a chain"])
def test_one_log_prob_is_one_solve(chain: str) -> None:
    """In every way of building a distribution, by the transform's cache."""
    field, flow = counted()
    shift = AffineTransform(torch.ones(2, dtype=FLOAT), 2.0, event_dim=1)
    distribution = {
        "transformed": lambda: TransformedDistribution(standard(), flow.transform),
        "composed": lambda: TransformedDistribution(standard(), [shift, flow.transform, shift]),
        "inside a chain": lambda: TransformedDistribution(
            standard(), ComposeTransform([flow.transform, shift])
        ),
        "last of a chain": lambda: TransformedDistribution(
            standard(), ComposeTransform([shift, flow.transform])
        ),
    }[chain]()
    x = points(5, 2)
    found = distribution.log_prob(x)
    assert field.n_calls == calls_of_one_solve()
    assert found.shape == (5,)
    assert torch.isfinite(found).all()


@pytest.mark.parametrize("way", ["list", "chain", "inverse", "base"])
def test_two_flows_in_a_chain_are_one_solve_each(way: str) -> None:
    """Whichever way they point; the same one twice is two solves."""
    (first, a), (second, b) = counted(), counted()
    distribution = {
        "list": lambda: TransformedDistribution(standard(), [a.transform, b.transform]),
        "chain": lambda: TransformedDistribution(
            standard(), ComposeTransform([a.transform, b.transform])
        ),
        "inverse": lambda: TransformedDistribution(standard(), [a.transform.inv, b.transform]),
        "base": lambda: TransformedDistribution(a, [b.transform]),
    }[way]()
    distribution.log_prob(points(5, 2))
    assert [first.n_calls, second.n_calls] == [calls_of_one_solve()] * 2
    first.reset()
    TransformedDistribution(standard(), [a.transform, a.transform]).log_prob(points(5, 2))
    assert first.n_calls == 2 * calls_of_one_solve()


def test_log_prob_and_samples_are_one_solve_each() -> None:
    """Without a divergence for samples."""
    field, flow = counted()
    flow.log_prob(points(5, 2))
    assert field.n_calls == calls_of_one_solve()
    field.reset()
    flow.rsample_and_log_prob((5,))
    assert field.n_calls == calls_of_one_solve()


def test_a_transformed_distribution_has_the_same_density() -> None:
    """And the change of variables of the further transforms."""
    flow = ContinuousFlow(standard(), mlp(), solver=STEPS)
    double = AffineTransform(0.0, 2.0, event_dim=1)
    plain = TransformedDistribution(standard(), flow.transform)
    scaled = TransformedDistribution(standard(), [flow.transform, double])
    x = points(5, 2)
    wanted = flow.log_prob(x)
    assert torch.allclose(plain.log_prob(x), wanted, rtol=1e-12)
    assert torch.allclose(scaled.log_prob(2 * x), wanted - 2 * torch.log(torch.tensor(2.0)))
    assert torch.isfinite(scaled.rsample((3,))).all()


def test_the_cache_notices_new_parameters_and_changed_points() -> None:
    """What it kept holds for the same tensors, under the same weights, alone."""
    field, flow = counted()
    z = points(3, 2)
    before = flow.transform(z)
    assert flow.transform(z) is before
    with torch.no_grad():
        next(field.parameters()).add_(0.5)
    after = flow.transform(z)
    assert not torch.equal(after, before)
    z.mul_(2)
    assert not torch.equal(flow.transform(z), after)


def test_the_cache_does_not_hide_a_gradient() -> None:
    """What was computed without a graph is not handed to who wants one."""
    _, flow = counted()
    z = points(3, 2)
    with torch.no_grad():
        assert not flow.transform(z).requires_grad
    assert flow.transform(z).requires_grad


def test_nothing_is_kept_alive_by_a_cycle() -> None:
    """With the garbage collector off, dropping the flow frees the graph of its last solve."""
    gc.collect()
    gc.disable()
    try:
        _, flow = counted()
        x = points(3, 2).requires_grad_()
        distribution = TransformedDistribution(standard(), flow.transform)
        log_prob = distribution.log_prob(x)
        seen = [weakref.ref(flow.transform), weakref.ref(x), weakref.ref(log_prob)]
        del flow, distribution, x, log_prob, _
        assert [ref() for ref in seen] == [None, None, None]
    finally:
        gc.enable()


def test_a_flow_that_has_solved_can_be_copied() -> None:
    """Without its last solve, whose graph cannot be; the copy has parameters of its own."""
    field, flow = counted()
    x = points(3, 2)
    wanted = TransformedDistribution(standard(), flow.transform).log_prob(x)
    copied, read = copy.deepcopy(flow), pickle.loads(pickle.dumps(flow))
    with torch.no_grad():
        next(field.parameters()).add_(0.5)
    for other in (copied, read):
        again = TransformedDistribution(standard(), other.transform).log_prob(x)
        assert torch.equal(again, wanted)
    assert not torch.equal(flow.log_prob(x), wanted)


def test_log_prob_keeps_no_graph() -> None:
    """The distribution's own log-density goes past the cache."""
    _, flow = counted()
    x = points(3, 2).requires_grad_()
    seen = weakref.ref(x)
    flow.log_prob(x)
    del x
    assert seen() is None


COMPILED = [pytest.mark.compiler, pytest.mark.slow]


@pytest.mark.parametrize(
    ("field", "backend"),
    [
        (mlp(), "native"),
        (GatedPlanar(2, 5).double(), "native"),
        (Planar(2, 5).double(), "native"),
        (FreeForm(2, (8,)).double(), "native"),
        pytest.param(mlp(), "compiled", marks=COMPILED),
        pytest.param(GatedPlanar(2, 5).double(), "compiled", marks=COMPILED),
    ],
    ids=lambda part: part if isinstance(part, str) else type(part).__name__,
)
def test_a_log_density_does_not_depend_on_its_batch(field: nn.Module, backend: str) -> None:
    """Per-sample steps and an exact divergence: alone, in a batch, in another order."""
    flow = ContinuousFlow(standard(), field, solver=Solver(backend, rtol=1e-5, atol=1e-5))
    x = 2 * points(12, 2)
    together = flow.log_prob(x)
    alone = torch.cat([flow.log_prob(row[None]) for row in x])
    turned = flow.log_prob(x.flip(0)).flip(0)
    assert torch.allclose(together, alone, rtol=1e-11, atol=0)
    assert torch.allclose(together, turned, rtol=1e-11, atol=0)


def test_a_small_batch_has_the_log_densities_of_a_large_one() -> None:
    """Whose exact divergence is computed in another way, product by product."""
    torch.manual_seed(0)
    field = FreeForm(4, (8,)).double()
    nn.init.normal_(field.layers[-1].linear.weight)
    flow = ContinuousFlow(standard(4), field, solver=STEPS)
    x = points(2200, 4)
    with torch.no_grad():
        together = flow.log_prob(x)
        apart = torch.cat([flow.log_prob(part) for part in x.split(1100)])
    assert torch.allclose(together, apart, rtol=1e-11, atol=0)


def test_the_order_of_rows_does_not_matter_under_hutchinson() -> None:
    """The probes go with the samples."""
    flow = ContinuousFlow(standard(), mlp(), divergence=Hutchinson(seed=3), solver=STEPS)
    x = points(12, 2)
    assert torch.allclose(flow.log_prob(x.flip(0)).flip(0), flow.log_prob(x), rtol=1e-11, atol=0)


def test_probes_are_drawn_once_a_solve() -> None:
    """The estimate repeats with the seed of torch, and another solve draws others."""
    flow = ContinuousFlow(standard(), mlp(), divergence=Hutchinson(), solver=STEPS)
    x = points(12, 2)
    torch.manual_seed(1)
    first = flow.log_prob(x)
    second = flow.log_prob(x)
    torch.manual_seed(1)
    assert torch.equal(flow.log_prob(x), first)
    assert not torch.equal(first, second)


def test_the_context_reaches_every_sample() -> None:
    """A conditional flow is as many flows as there are contexts, and has their batch shape."""
    torch.manual_seed(0)
    field = FreeForm(2, (8,), context=3).double()
    nn.init.normal_(field.layers[-1].linear.weight)
    context = points(4, 3)
    flow = ContinuousFlow(standard(), field, context=context, solver=STEPS)
    x = points(6, 4, 2)
    found = flow.log_prob(x)
    assert (flow.batch_shape, found.shape, flow.sample((6,)).shape) == ((4,), (6, 4), (6, 4, 2))
    for i, row in enumerate(context):
        one = ContinuousFlow(standard(), field, context=row, solver=STEPS)
        assert torch.allclose(one.log_prob(x[:, i]), found[:, i], rtol=1e-11)
    assert flow.expand((2, 4)).sample().shape == (2, 4, 2)


def test_gradients_reach_the_context_and_the_base() -> None:
    """Through likelihoods and through samples, whatever computed them."""
    field = FreeForm(2, (8,), context=3).double()
    nn.init.normal_(field.layers[-1].linear.weight)
    made = nn.Linear(5, 3).double()
    width = torch.ones(2, dtype=FLOAT, requires_grad=True)
    base = Independent(Normal(torch.zeros(2, dtype=FLOAT), width), 1)
    flow = ContinuousFlow(base, field, context=made(points(4, 5)), solver=STEPS)
    for loss in (flow.log_prob(points(4, 2)).sum(), flow.rsample().sum()):
        gradients = torch.autograd.grad(loss, [made.weight, width], retain_graph=True)
        assert all(float(g.abs().sum()) > 0 for g in gradients)


def test_any_base_will_do() -> None:
    """A mixture has no rsample, and the flow says so."""
    components = MultivariateNormal(points(3, 2), torch.eye(2, dtype=FLOAT))
    mixture = MixtureSameFamily(torch.distributions.Categorical(torch.ones(3)), components)
    flow = ContinuousFlow(mixture, mlp(), solver=STEPS)
    assert not flow.has_rsample
    assert torch.isfinite(flow.log_prob(flow.sample((7,)))).all()
    with pytest.raises(NotImplementedError):
        flow.rsample()


def test_samples_and_their_densities_come_together() -> None:
    """As two solves would have them; gradients reach the field."""
    field = mlp()
    flow = ContinuousFlow(standard(), field, solver=Solver(rtol=1e-9, atol=1e-9))
    x, log_prob = flow.rsample_and_log_prob((6,))
    assert torch.allclose(log_prob, flow.log_prob(x), rtol=1e-6)
    gradients = torch.autograd.grad((log_prob + x.sum(dim=1)).sum(), list(field.parameters()))
    assert all(float(g.norm()) > 0 for g in gradients)


def test_the_flow_at_another_time_lies_on_the_way() -> None:
    """At t0 it is the base, at t1 the flow, and paths go through its samples."""
    flow = ContinuousFlow(standard(), mlp(), solver=Solver(rtol=1e-9, atol=1e-9))
    z = points(6, 2)
    path = flow.trajectory(z, [0.0, 0.4, 1.0])
    change = flow.base.log_prob(z) - flow.at(0.4).log_prob(path[1])
    assert path.shape == (3, 6, 2)
    assert torch.equal(path[0], z)
    assert torch.allclose(flow.at(1.0).log_prob(path[2]), flow.log_prob(path[2]))
    assert float(change.detach().abs().max()) > 1e-3
    assert torch.allclose(flow.at(0.4).transform(z), path[1], rtol=1e-7)


def test_the_end_of_time_gets_a_gradient() -> None:
    """d log p / d t1, against a difference on fixed steps."""

    def value(end: Tensor) -> Tensor:
        t = torch.stack([torch.zeros((), dtype=FLOAT), end])
        solver = Solver(rtol=1e-10, atol=1e-10)
        return ContinuousFlow(standard(), mlp(), t, solver=solver).log_prob(points(3, 2)).sum()

    end = torch.tensor(0.8, dtype=FLOAT, requires_grad=True)
    (found,) = torch.autograd.grad(value(end), end)
    h = 1e-4
    with torch.no_grad():
        difference = (value(end + h) - value(end - h)) / (2 * h)
    assert abs(float(found - difference)) < 1e-6 * (1 + abs(float(difference)))


def test_running_costs_are_integrated_along_the_path() -> None:
    """The kinetic cost of  z' = a z  is  a^2 z0^2 (e^{2a} - 1) / 2a, in either direction."""
    a, one = 0.7, torch.ones(1, 1, dtype=FLOAT)
    solver = Solver(rtol=1e-10, atol=1e-10)
    flow = ContinuousFlow(standard(1), lambda t, z: a * z, running_costs=[kinetic], solver=solver)
    x = one * 1.5
    z0 = 1.5 * torch.exp(torch.tensor(-a, dtype=FLOAT))
    wanted = a**2 * z0**2 * (torch.exp(torch.tensor(2 * a, dtype=FLOAT)) - 1) / (2 * a)
    assert abs(float(log_density(flow, x).costs[0, 0] - wanted)) < 1e-8


def test_what_does_not_fit_is_refused() -> None:
    """Before any work."""
    with pytest.raises(InvalidProblem, match="must broadcast against the base's batch shape"):
        ContinuousFlow(standard().expand((3,)), mlp(), context=torch.zeros(4, 1))
    flow = ContinuousFlow(standard(), mlp())
    with pytest.raises(InvalidProblem, match="at least 1 dimensions"):
        flow.transform(torch.zeros((), dtype=FLOAT))
    assert isinstance(flow.transform, FlowTransform)


@pytest.mark.parametrize(
    ("field", "got"),
    [
        (lambda t, z: z[:, :1], r"got torch.float64 \[4, 1\]"),
        (lambda t, z: z.sum(), r"got torch.float64 \[\]"),
        (lambda t, z: z.float(), r"got torch.float32 \[4, 2\]"),
        (lambda t, z: None, "got None"),
    ],
)
def test_a_field_that_is_no_velocity_is_refused(field: object, got: str) -> None:
    """By its shape and dtype, before a divergence is asked of it."""
    with pytest.raises(InvalidProblem, match="`field` must return a velocity like z.*" + got):
        ContinuousFlow(standard(), field).log_prob(points(4, 2))


def test_no_points_have_no_densities() -> None:
    """As in torch's own distributions; nothing is solved."""
    field, flow = counted()
    assert flow.log_prob(torch.zeros(0, 2, dtype=FLOAT)).shape == (0,)
    assert flow.sample((0,)).shape == (0, 2)
    assert flow.rsample((3, 0)).shape == (3, 0, 2)
    assert [x.shape for x in flow.rsample_and_log_prob((0,))] == [(0, 2), (0,)]
    assert field.n_calls == 0
