"""What is done to graphs before they are compiled leaves values alone; nothing is compiled here."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import Tensor, nn

from ctflow import InvalidProblem, ODEProblem, Solver, Stats, Unsupported, solve
from ctflow.backends.compiled import job
from ctflow.backends.compiled.backend import CompiledBackend
from ctflow.backends.compiled.keep import split
from ctflow.backends.compiled.library import Free, Sketch
from ctflow.backends.compiled.reads import read
from ctflow.backends.compiled.rewrite import improved
from ctflow.backends.compiled.trace import Traced, graph_of, trace
from ctflow.latent import PoissonProcess, elbo
from ctflow.state import Layout
from tests.backends.compiled.conftest import operator_by_operator
from tests.latent.parts import DTYPE, small_model


def _network(width: int, dtype: torch.dtype) -> nn.Module:
    return nn.Sequential(
        nn.Linear(2, width), nn.Tanh(), nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU(),
        nn.Linear(width, 2),
    ).to(dtype)  # fmt: skip


def _traced(f: object, y0: Tensor) -> tuple[Traced, Tensor, Tensor, tuple[Tensor, ...]]:
    problem = ODEProblem(f, y0, [0.0, 1.0])  # pyright: ignore
    reads, layout = read(problem), Layout.of(y0, per_sample=False)
    t, y = torch.zeros(1, dtype=y0.dtype), layout.pack(y0)
    wanted = tuple(i for i, x in enumerate(reads.tensors) if x.requires_grad)
    return trace(problem, reads, layout, (t, y), reads.tensors, wanted), t, y, reads.tensors


@pytest.mark.parametrize("width", [4, 40])
def test_the_two_halves_of_a_derivative_are_the_derivative(width: int) -> None:
    """What is kept of an evaluation is enough, to the last bit."""
    net, y0 = _network(width, torch.float64), torch.randn(6, 2, dtype=torch.float64)
    traced, t, y, tensors = _traced(lambda t, y: net(y) * torch.cos(t), y0)
    halves = split(traced)
    g = torch.randn_like(y)
    with torch.no_grad():
        f, *saved = halves.kept(t, y, *tensors)
        found = halves.recalled(g, *saved, *tensors)
        assert traced.pulled is not None
        value, *wanted = traced.pulled(t, y, g, *tensors)
    assert torch.equal(f, value)
    for ours, theirs in zip(found, wanted, strict=True):
        assert torch.equal(ours, theirs)
    assert [x.shape for x in saved] == [x.shape for x in halves.saved]
    kept = sum(x.numel() for x in saved)
    assert kept <= 6 * (2 + 5 * width) + 40, "more is kept than the layers' inputs"


@pytest.mark.parametrize("width", [3, 12, 60])
@pytest.mark.parametrize("exact", [True, False])
def test_a_rewritten_graph_has_the_same_values(width: int, exact: bool) -> None:
    """Products to rounding; in float64 no function is approximated."""
    net, y0 = _network(width, torch.float64), torch.randn(6, 2, dtype=torch.float64)
    inputs = [y0, *(x.detach() for x in net.parameters())]
    names = [name for name, _ in net.named_parameters()]

    def function(y: Tensor, *weights: Tensor) -> Tensor:
        return torch.func.functional_call(net, dict(zip(names, weights, strict=True)), (y,))

    sketch = Sketch(())
    stand_ins = [sketch.tensor(x, (None,) * x.dim()) for x in inputs]
    with torch.no_grad(), sketch.mode:
        graph = improved(graph_of(function, stand_ins), exact)
    with torch.no_grad():
        before, after = function(*inputs), graph(*inputs)
    torch.testing.assert_close(after, before, rtol=1e-14, atol=1e-14)
    assert any("tanh" in str(node.target) for node in graph.graph.nodes)
    assert width == 60 or not any("addmm" in str(node.target) for node in graph.graph.nodes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("exact", [True, False])
def test_functions_are_written_out_in_float32_that_need_not_be_exact(
    dtype: torch.dtype, exact: bool
) -> None:
    """The graph says which tanh it is; a softplus of another slope is the compiler's."""

    def all_of_them(x: Tensor) -> tuple[Tensor, ...]:
        steep = nn.functional.softplus(x, beta=2.0)
        return torch.tanh(x), nn.functional.softplus(x), nn.functional.softplus(x, 1, 20), steep

    x = torch.randn(5, dtype=dtype)
    graph = improved(graph_of(all_of_them, (x,)), exact=exact)
    ours = sum("ctflow" in str(node.target) for node in graph.graph.nodes)
    assert ours == (0 if exact or dtype == torch.float64 else 2)  # equal ones are one
    for found, wanted in zip(graph(x), all_of_them(x), strict=True):
        torch.testing.assert_close(found, wanted)


FACTOR = 2.0  # a global that a test changes


class Field(nn.Module):
    """A field with everything that can be changed about it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(2, 2)
        self.scale = 1.0
        self.names = ["a"]

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """Evaluate it."""
        return self.scale * self.net(y)


CHANGES = {
    "an attribute": lambda f: setattr(f, "scale", 2.0),
    "its mode": lambda f: f.eval(),
    "a submodule": lambda f: setattr(f, "net", nn.Sequential(nn.Linear(2, 2), nn.Tanh())),
    "a list": lambda f: f.names.append("b"),
    "a hook": lambda f: f.net.register_forward_hook(lambda m, x, y: 2 * y),
    "no gradient": lambda f: f.net.requires_grad_(False),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_seen_before_the_next_solve(change: str) -> None:
    """And another instance with equal attributes has the same key."""
    f, y0 = Field(), torch.ones(3, 2)

    def key(f: nn.Module) -> object:
        reads = read(ODEProblem(f, y0, [0.0, 1.0]))
        return reads.key, tuple(x.requires_grad for x in reads.tensors)

    before = key(f)
    assert key(f) == before == key(Field())
    CHANGES[change](f)
    assert key(f) != before


def test_after_a_change_the_answer_is_that_of_what_f_is_now() -> None:
    """One change after the other: an attribute, its mode, a submodule."""
    f, y0 = Field().double(), torch.ones(3, 2, dtype=DTYPE)
    made: list[int] = []
    with operator_by_operator(), torch.no_grad():
        for change in (None, "an attribute", "its mode", "a submodule"):
            if change is not None:
                CHANGES[change](f)
                f.double()
            ours, native = (
                solve(ODEProblem(f, y0, [0.0, 1.0]), Solver(backend)).y  # pyright: ignore
                for backend in (CompiledBackend(), "native")
            )
            torch.testing.assert_close(ours, native, rtol=1e-9, atol=1e-9)
            made.append(sum(len(family.stages) for family in job._FAMILIES.values()))
    assert made == [1, 2, 3, 4]


def test_other_values_of_tensors_are_no_change() -> None:
    """In place, or by another tensor of the same kind."""
    f, y0 = Field(), torch.ones(3, 2)
    before = read(ODEProblem(f, y0, [0.0, 1.0]))
    with torch.no_grad():
        f.net.weight.mul_(2.0)
    f.net.bias = nn.Parameter(torch.ones(2))
    after = read(ODEProblem(f, y0, [0.0, 1.0]))
    assert after.key == before.key
    assert any(x is f.net.bias for x in after.tensors)


def _follow(f: object, y0: Tensor) -> None:
    solver = Solver(backend=CompiledBackend(), method="dopri5", coupling="shared", rtol=1e-6,
                    atol=1e-8, gradient="checkpointed")  # fmt: skip
    CompiledBackend().follow(ODEProblem(f, y0, [0.0, 1.0]), solver)  # pyright: ignore


def test_what_cannot_be_followed_is_refused_before_anything_is_compiled() -> None:
    """Each with its cause."""
    y0, noise = torch.ones(3, 2), nn.Dropout(0.5)
    with pytest.raises(Unsupported, match="random numbers"):
        _follow(lambda t, y: noise(y), y0)
    with pytest.raises(Unsupported, match=r"test_graphs\.py:\d+.*backend='native'"):
        _follow(lambda t, y: y if y.sum() > 0 else -y, y0)
    with pytest.raises(InvalidProblem, match="must not change its input"):
        _follow(lambda t, y: y.mul_(2.0), y0)
    norm = nn.BatchNorm1d(2)
    with pytest.raises(InvalidProblem, match="batch norm"):
        _follow(lambda t, y: norm(y), y0)
    _follow(lambda t, y: norm.eval()(y), y0)


def test_a_counter_in_f_is_no_reason_to_refuse() -> None:
    """It is left out of what the program depends on."""

    class Counting(Field):
        def __init__(self) -> None:
            super().__init__()
            self.calls = 0

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            self.calls += 1
            return super().forward(t, y)

    f, y0 = Counting(), torch.ones(3, 2)
    _follow(f, y0)
    before = read(ODEProblem(f, y0, [0.0, 1.0])).key
    f(torch.tensor(0.0), y0)
    assert read(ODEProblem(f, y0, [0.0, 1.0])).key == before
    f.scale = 3.0
    assert read(ODEProblem(f, y0, [0.0, 1.0])).key != before


def test_a_global_with_the_name_of_an_attribute_is_not_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A change of it asks for no other program; one of a global that `f` looks up does."""

    class Named(Field):
        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return super().forward(t, y) * self.scale * FACTOR

    f, y0 = Named(), torch.ones(3, 2)
    before = read(ODEProblem(f, y0, [0.0, 1.0])).key
    monkeypatch.setitem(globals(), "scale", 7.0)
    assert read(ODEProblem(f, y0, [0.0, 1.0])).key == before
    monkeypatch.setitem(globals(), "FACTOR", 3.0)
    assert read(ODEProblem(f, y0, [0.0, 1.0])).key != before


def test_a_tensor_under_the_key_none_is_found() -> None:
    """A closure's cell is what has no key; a dict may have that one."""
    y0 = torch.ones(3, 2)
    f = Field()
    f.table = {None: torch.ones(2)}  # pyright: ignore
    problem = ODEProblem(f, y0, [0.0, 1.0])
    assert any(x is f.table[None] for x in read(problem).tensors)  # pyright: ignore
    before = read(problem).key
    f.table[None] = None  # pyright: ignore
    assert read(problem).key != before


def test_what_an_f_of_one_solve_held_is_let_go_with_it() -> None:
    """As a closure over a batch is, made anew for each."""
    f = Field()
    weight = weakref.ref(f.net.weight)
    read(ODEProblem(f, torch.ones(3, 2), [0.0, 1.0]))
    del f
    gc.collect()
    assert weight() is None


@pytest.mark.parametrize("fixed", [False, True])
def test_a_free_size_that_code_has_fixed_is_noticed(fixed: bool) -> None:
    """A program for any size of it would use the size that it was followed with."""
    sketch = Sketch(["batch", "outputs"])
    x = sketch.tensor(torch.empty(3, 2), (Free("batch", 2), None))
    y = sketch.tensor(torch.empty(3, 2), (Free("outputs", 1), None))
    with sketch.mode:
        torch.cat((x, y))
        if fixed:
            assert x.shape[0] == int(x.shape[0])
    assert sketch.check_free(["batch", "outputs"]) is not fixed


class _Pieces(nn.Module):
    """Splits its state, so that something that is no tensor is made of it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh())
        self.last = nn.Linear(16, 2)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """[B, 2]."""
        first, second = y.split(1, dim=1)
        return self.last(self.net(y)) * torch.cat((second, first), dim=1) - y.mean() * t


class _Ring(_Pieces):
    """Samples that see their neighbours: sizes that are no multiple of the batch's."""

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """[B, 2]."""
        h = self.net(y)
        return self.last(torch.cat((h[1:] * h[:-1], h[:1]))) - y * t


@pytest.mark.parametrize(
    ("field", "rows"),
    [
        pytest.param(_Pieces, (5, 9, 12), marks=pytest.mark.slow),
        pytest.param(_Pieces, (128, 200, 333), marks=pytest.mark.slow),
        (_Ring, (5, 9, 12)),
    ],
)
def test_direct_takes_any_batch_size_from_the_second_on(
    field: type[_Pieces], rows: tuple[int, ...]
) -> None:
    """What passes from one half of the derivative to the other has free sizes too."""
    torch.manual_seed(0)
    f, made = field().double(), []
    with operator_by_operator():
        for n in rows:
            found: list[Tensor] = []
            start = torch.randn(n, 2, dtype=torch.float64)
            for backend in (CompiledBackend(), "native"):
                y0 = start.clone().requires_grad_()
                solver = Solver(backend, gradient="direct")  # pyright: ignore
                loss = solve(ODEProblem(f, y0, [0.0, 0.5, 1.0]), solver).y.square().sum()
                wanted = (y0, *f.parameters())
                found.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, wanted)]))
            assert float((found[0] - found[1]).norm()) <= 1e-8 * float(found[1].norm())
            made.append(sum(len(family.stages) for family in job._FAMILIES.values()))
    assert made == [2, 4, 4]


class _Parts(_Pieces):
    """The same with a second part of the state, which grows with the first."""

    def forward(self, t: Tensor, y: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:  # pyright: ignore
        """[B, 2] and [B]."""
        dy = self.last(self.net(y[0])) * (1 + t)
        return dy, dy.square().sum(dim=1) - 0.1 * y[1]


@pytest.mark.parametrize(
    ("coupling", "gradient", "cost"),
    [
        ("shared", "checkpointed", False),
        ("per_sample", "checkpointed", True),
        pytest.param("per_sample", "adjoint", False, marks=pytest.mark.slow),
        pytest.param("shared", "direct", False, marks=pytest.mark.slow),
        pytest.param("per_sample", "checkpointed", False, marks=pytest.mark.slow),
        pytest.param("shared", "checkpointed", True, marks=pytest.mark.slow),
        pytest.param("per_sample", "direct", False, marks=pytest.mark.slow),
        pytest.param("shared", "adjoint", False, marks=pytest.mark.slow),
    ],
)
def test_any_batch_size_is_served_from_the_second_on(
    coupling: str, gradient: str, cost: bool
) -> None:
    """Of a state in parts, with steps of its own for each sample or not, or with a running cost."""
    torch.manual_seed(0)
    f, made = _Parts().double(), []
    running = (lambda t, y: y[0].square().sum(dim=1)) if cost else None
    with operator_by_operator():
        for n in (5, 7, 12):
            found: list[Tensor] = []
            start = torch.randn(n, 2, dtype=torch.float64)
            for backend in (CompiledBackend(), "native"):
                y0 = start.clone().requires_grad_()
                t = torch.linspace(0.0, 1.0, 3, dtype=torch.float64)
                problem = ODEProblem(
                    f, (y0, y0[:, 0].detach()), t, batched=True, running_cost=running
                )
                solver = Solver(
                    backend, gradient=gradient, coupling=coupling, rtol=1e-7, atol=1e-7  # pyright: ignore
                )  # fmt: skip
                solution = solve(problem, solver)
                loss = solution.y[0].square().sum() + solution.y[1].sum()
                loss = loss if solution.cost is None else loss + solution.cost.sum()
                wanted = (y0, *f.parameters())
                found.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, wanted)]))
            assert float((found[0] - found[1]).norm()) <= 1e-6 * float(found[1].norm())
            made.append(sum(len(family.stages) for family in job._FAMILIES.values()))
    assert made == [2, 4, 4]


def test_a_size_that_f_writes_into_itself_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """Every batch size is compiled then, tens of seconds each; the answers are right."""
    with operator_by_operator(), caplog.at_level("WARNING", "ctflow.compiled"):
        for n in (3, 4):
            y0 = torch.ones(n, 2, dtype=torch.float64)
            y = solve(ODEProblem(lambda t, y: -y * len(y), y0, [0.0, 1.0]), "compiled").y
            torch.testing.assert_close(y[-1], y0 * torch.e**-n, rtol=1e-4, atol=1e-4)
    (record,) = caplog.records
    assert "every batch size is compiled for itself" in record.getMessage()
    assert "x.shape[0]" in record.getMessage()


def test_statistics_kept_beside_f_are_no_change_of_it() -> None:
    """A model that notes what its last solve cost trains, with one program each way."""

    class Model(Field):
        def __init__(self) -> None:
            super().__init__()
            self.stats: Stats | None = None

        def solved(self, y0: Tensor) -> Tensor:
            problem = ODEProblem(self.forward, y0, [0.0, 1.0])
            solution = solve(problem, Solver(CompiledBackend(), gradient="checkpointed"))
            self.stats = solution.stats
            return solution.y

    model = Model().double()
    with operator_by_operator():
        for _ in range(3):
            model.solved(torch.ones(3, 2, dtype=torch.float64)).sum().backward()
        made = sum(len(family.stages) for family in job._FAMILIES.values())
    assert made == 2
    assert model.stats is not None


def test_a_model_of_events_trains() -> None:
    """Its rate is a running cost, and the model holds what the last solve cost."""
    windows, found = PoissonProcess((0.0, 2.0)), list[Tensor]()
    x = torch.ones(2, 3, 1, dtype=DTYPE)
    t = torch.tensor([[0.3, 0.9, 1.4], [0.1, 0.2, 1.9]], dtype=DTYPE)
    with operator_by_operator():
        for backend in (CompiledBackend(), "native"):
            solver = Solver(backend, rtol=1e-10, atol=1e-10, gradient="checkpointed")
            model = small_model(likelihood=windows, features=1, solver=solver)
            for _ in range(2):
                torch.manual_seed(0)
                elbo(model, x, t).value().sum().backward()
            found.append(
                torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
            )
    torch.testing.assert_close(found[0], found[1], rtol=1e-7, atol=1e-7)
