"""Exact divergences are traces; estimates are unbiased, divided by their number, and vary less."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ctflow.dynamics import MLP
from ctflow.errors import InvalidProblem
from ctflow.flows import (
    Divergence,
    Exact,
    FreeForm,
    GatedPlanar,
    HamiltonianField,
    Hutchinson,
    HutchPlusPlus,
    HyperPlanar,
    Planar,
    PotentialField,
)

Field = Callable[[Tensor], Tensor]
FLOAT = torch.float64
DIM = 4


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    """A field with fixed random weights in float64, none of them zero."""
    torch.manual_seed(0)
    field = make().double()
    for parameter in field.parameters():
        nn.init.normal_(parameter, std=0.5)
    return field


def points(n: int = 5) -> Tensor:
    """Points [n, 4]."""
    return torch.randn(n, DIM, generator=torch.Generator().manual_seed(1), dtype=FLOAT)


def jacobians(field: Field, z: Tensor) -> Tensor:
    """Jacobian of each row by itself, [N, D, D]."""
    rows = [torch.autograd.functional.jacobian(lambda r: field(r[None])[0], row) for row in z]
    return torch.stack(rows)


KNOWING = {
    "planar": lambda: Planar(DIM, 7),
    "gated": lambda: GatedPlanar(DIM, 7),
    "hyper": lambda: HyperPlanar(DIM, 7),
    "hamiltonian": lambda: HamiltonianField(nn.Linear(1, 3), nn.Linear(3, 1), 3),
    "potential": lambda: PotentialField(DIM, 9),
}


@pytest.mark.parametrize("name", KNOWING)
@pytest.mark.parametrize("times", [torch.tensor(0.3), torch.linspace(0, 1, 5)[:, None]])
def test_a_closed_form_is_the_trace(name: str, times: Tensor) -> None:
    """At one time for all, and at a time for each sample."""
    field, z, t = seeded(KNOWING[name]), points(), times.to(FLOAT)
    velocity, divergence = field.with_divergence(t, z)
    exact = Exact().rates(lambda z: field(t, z), z, None)
    assert torch.allclose(velocity, exact.velocity, rtol=0, atol=1e-12)
    assert torch.allclose(divergence, exact.divergence, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mode", ["reverse", "forward", None])
@pytest.mark.parametrize("n", [5, 3000])
def test_exact_is_the_trace_and_the_norm(mode: str | None, n: int) -> None:
    """Against the whole Jacobian of each row by itself; of a small batch and a large one."""
    field, z = seeded(lambda: FreeForm(DIM, (8,))), points(5).repeat(n // 5, 1)
    t = torch.tensor(0.4, dtype=FLOAT)
    found = Exact(mode).rates(lambda z: field(t, z), z, None)
    whole = jacobians(lambda z: field(t, z), z[:5]).repeat(n // 5, 1, 1)
    trace = whole.diagonal(dim1=1, dim2=2).sum(dim=1)
    assert torch.allclose(found.velocity, field(t, z), rtol=0, atol=1e-14)
    assert torch.allclose(found.divergence, trace, rtol=0, atol=1e-13)
    assert torch.allclose(found.jacobian(), whole.square().sum(dim=(1, 2)), rtol=1e-12)


def test_all_modes_have_one_gradient() -> None:
    """With respect to parameters, through the divergence alone."""
    field, z = seeded(lambda: MLP(DIM, (8,))), points()

    def gradient(mode: str | None) -> Tensor:
        rates = Exact(mode).rates(lambda z: field(z[0, 0], z), z, None)
        return torch.cat(
            [g.flatten() for g in torch.autograd.grad(rates.divergence.square().sum(),
             [p for p in field.parameters() if p.dim() == 2])]
        )  # fmt: skip

    assert torch.allclose(gradient("reverse"), gradient("forward"), rtol=1e-10)
    assert torch.allclose(gradient("reverse"), gradient(None), rtol=1e-10)


def test_a_field_that_cannot_be_batched_has_its_products_one_by_one() -> None:
    """Torch has no batches of sparse products."""
    matrix = torch.tensor([[0.2, -0.7, 0.0], [0.4, 0.1, 0.0], [0.0, 0.3, 0.5]], dtype=FLOAT)
    sparse, z = matrix.to_sparse(), torch.ones(5, 3, dtype=FLOAT)
    found = Exact("reverse").rates(lambda z: torch.sparse.mm(sparse, z.t()).t(), z, None)
    assert torch.allclose(found.divergence, matrix.trace().expand(5), rtol=1e-12)


def test_products_of_a_small_batch_take_one_pass_back() -> None:
    """Those of a large one a pass for each variable, which is then cheaper."""

    class Followed(Tensor):
        """As a compiler has them."""

    def passes(n: int, mode: str | None, kind: type[Tensor] = Tensor) -> int:
        calls = []

        class Counted(torch.autograd.Function):
            generate_vmap_rule = True

            @staticmethod
            def forward(x: Tensor) -> Tensor:
                return x.clone()

            @staticmethod
            def setup_context(ctx: object, inputs: object, output: object) -> None:
                """Nothing is kept."""

            @staticmethod
            def backward(ctx: object, grad: Tensor) -> Tensor:
                calls.append(1)
                return grad.clone()

        Exact(mode).rates(Counted.apply, torch.ones(n, DIM).as_subclass(kind), None)
        return len(calls)

    assert [passes(10, None), passes(10, "reverse"), passes(3000, None)] == [1, DIM, DIM]
    assert passes(10, None, Followed) == DIM


def test_events_of_any_shape_have_a_divergence() -> None:
    """Images as well as vectors."""
    z = torch.randn(3, 2, 2, 2, dtype=FLOAT)
    wanted = torch.cos(z).flatten(1).sum(dim=1)
    # A diagonal Jacobian: Hutchinson's estimate has no variance.
    for strategy in (Exact(), Exact("reverse"), Exact("forward"), Hutchinson()):
        noise = strategy.draw(torch.sin, z)
        assert torch.allclose(strategy.rates(torch.sin, z, noise).divergence, wanted)


def linear(matrix: Tensor) -> Field:
    """The field z -> A z, whose Jacobian is A."""
    return lambda z: z @ matrix.t()


def estimates(strategy: Divergence, matrix: Tensor, n: int) -> Tensor:
    """Estimates of tr A, one for each of n different samples, [n]."""
    z = torch.randn(n, len(matrix), generator=torch.Generator().manual_seed(9), dtype=FLOAT)
    return strategy.rates(linear(matrix), z, strategy.draw(linear(matrix), z)).divergence


MATRIX = torch.randn(6, 6, generator=torch.Generator().manual_seed(2), dtype=FLOAT)
N = 20_000


@pytest.mark.parametrize(
    "strategy",
    [
        Hutchinson(1, "rademacher", seed=1),
        Hutchinson(3, "rademacher", seed=2),
        Hutchinson(1, "gaussian", seed=3),
        Hutchinson(4, "gaussian", seed=4),
        HutchPlusPlus(2, 1, seed=5),
        HutchPlusPlus(1, 3, "gaussian", seed=6),
    ],
    ids=repr,
)
def test_an_estimate_is_unbiased(strategy: Divergence) -> None:
    """The mean over many samples is the trace within four standard errors: no factor of k."""
    found = estimates(strategy, MATRIX, N)
    assert abs(float(found.mean() - MATRIX.trace())) < 4 * float(found.std()) / N**0.5


@pytest.mark.parametrize("law", ["rademacher", "gaussian"])
@pytest.mark.parametrize("k", [1, 4])
def test_the_variance_is_the_known_one(law: str, k: int) -> None:
    """2 |S|^2 / k for Gaussian probes, without S's diagonal for Rademacher (S: symmetric part)."""
    s = (MATRIX + MATRIX.t()) / 2
    if law == "rademacher":
        s = s - torch.diag(s.diagonal())
    wanted = float(2 * s.square().sum() / k)
    found = float(estimates(Hutchinson(k, law, seed=8), MATRIX, N).var())
    assert abs(found / wanted - 1) < 0.1  # a variance from 20,000 numbers of kurtosis up to ~10


def test_the_squared_norm_is_unbiased_too() -> None:
    """What the Jacobian cost of RNODE integrates."""
    z = torch.randn(N, 6, generator=torch.Generator().manual_seed(9), dtype=FLOAT)
    for strategy in (Hutchinson(2, seed=1), HutchPlusPlus(2, 2, seed=2)):
        found = strategy.rates(linear(MATRIX), z, strategy.draw(linear(MATRIX), z)).jacobian()
        wanted = float(MATRIX.square().sum())
        assert abs(float(found.mean()) - wanted) < 4 * float(found.std()) / N**0.5


def test_hutch_plus_plus_varies_less_where_few_directions_matter() -> None:
    """A Jacobian of rank two and a small rest; the same number of products, four."""
    g = torch.Generator().manual_seed(4)
    left = torch.randn(12, 2, generator=g, dtype=FLOAT)
    matrix = left @ left.t() + 0.05 * torch.randn(12, 12, generator=g, dtype=FLOAT)
    plain = estimates(Hutchinson(4, seed=1), matrix, 4000).var()
    better = estimates(HutchPlusPlus(3, 1, seed=1), matrix, 4000).var()
    assert float(better) < float(plain) / 20


def test_hutch_plus_plus_is_exact_on_a_jacobian_of_low_rank() -> None:
    """Nothing is left to estimate."""
    left = torch.randn(8, 2, generator=torch.Generator().manual_seed(4), dtype=FLOAT)
    matrix = left @ left.t()
    found = estimates(HutchPlusPlus(2, 1, seed=1), matrix, 50)
    assert torch.allclose(found, matrix.trace().expand(50), rtol=1e-10)


@pytest.mark.parametrize("strategy", [Hutchinson(2, seed=1), HutchPlusPlus(1, 2, seed=1)], ids=repr)
def test_estimates_do_not_depend_on_the_order_of_rows(strategy: Divergence) -> None:
    """Permuted samples have permuted estimates."""
    field, z = seeded(lambda: MLP(DIM, (8,))), points(9)
    rows = torch.tensor([3, 1, 8, 0, 5])

    def found(z: Tensor) -> Tensor:
        def f(z: Tensor) -> Tensor:
            return field(z[0, 0], z)

        return strategy.rates(f, z, strategy.draw(f, z)).divergence

    assert torch.allclose(found(z)[rows], found(z[rows]), rtol=1e-12)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Exact("both"), "'reverse' or 'forward', got 'both'"),
        (lambda: Hutchinson(0), "`n_probes` must be an integer of at least 1, got 0"),
        (lambda: Hutchinson(law="uniform"), "'rademacher' or 'gaussian', got 'uniform'"),
        (lambda: HutchPlusPlus(n_sketch=0), "`n_sketch` must be an integer of at least 1, got 0"),
        (lambda: HutchPlusPlus(5).draw(torch.sin, points()), "at most the number of variables 4"),
        (lambda: Hutchinson().rates(torch.sin, points(), None), "what `draw` returned, got None"),
        (lambda: Planar(0, 3), "`dim` must be a positive integer, got 0"),
        (lambda: PotentialField(2, rank=0), "`rank` must be a positive integer, got 0"),
        (lambda: FreeForm(2, (0,)), "`hidden` must be an integer of at least 1, got 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make: Callable[[], object], said: str) -> None:
    """With what was wrong and what was given."""
    with pytest.raises(InvalidProblem, match=said):
        make()
