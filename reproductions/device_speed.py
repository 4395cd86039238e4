"""Native, compiled and torchdiffeq on one device: the benchmarks' workloads, and training steps.

Four workloads (`benchmarks.workloads`), each forward and with gradients of the mean square, and a
training step of each family of models: the paper's ODE-Net (64 channels, batch 128, tolerance
1e-3), two flows in the plane (512 points, exact trace, 1e-5; the paper's planar field, and a
free-form one) and the latent ODE of the spirals (batch 200, 100 points, 1e-6). Everybody has the
same weights, start, method (dopri5), tolerances and one step size for the batch. Turns are
interleaved; a turn waits for the device at its end. A training step's gradient is that of the steps
taken; its error is against a float64 solve at a thousandth of the tolerance.

Arithmetic is float32 as torch does it by default: no TF32 in products of matrices, TF32 in cuDNN's
convolutions on a CUDA device, no autocast.

Source:
    Networks of the sizes in Chen et al. 2018 (arXiv 1806.07366v5), sections 3 to 5. The paper
    compares no libraries.
"""

from __future__ import annotations

import copy
import platform
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from _harness.bands import Band, beside_the_paper
from _harness.devices import present
from _harness.flow_peers import base
from _harness.live import LiveLine
from _harness.records import environment, need, write_figure, write_json
from _harness.shapes import SHAPES
from _harness.spiral_training import Job, Recipe, build, data_of
from _harness.threads import torch_threads
from benchmarks.measuring import Pace, Spread, Stopwatch, in_rounds
from benchmarks.torch_peers import contestants
from benchmarks.workloads import WORKLOADS
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.distributions import kl_divergence
from torch.nn.functional import cross_entropy

from ctflow import Solver
from ctflow.cli import main as command_line
from ctflow.dynamics import MLP, ODEBlock, ode_net
from ctflow.errors import GradientWarning
from ctflow.flows import ContinuousFlow, HyperPlanar
from ctflow.latent import LatentODE, Observations

PEER = "torchdiffeq"
OWN_NAMES = {"ctflow native": "native", "ctflow compiled": "compiled", PEER: PEER}


@dataclass(frozen=True)
class Config:
    """Everything that the result depends on, beside the code and the machine."""

    preset: str
    seed: int = 0
    device: str = "cpu"
    backends: tuple[str, ...] = ("native", "compiled", PEER)
    workloads: tuple[str, ...] = tuple(WORKLOADS)
    families: tuple[str, ...] = ("ODE-Net", "planar flow", "free-form flow", "latent ODE")
    tasks: tuple[str, ...] = ("forward", "direct", "checkpointed", "adjoint")
    rows: int | None = None  # most rows of a state
    rounds: int = 7
    seconds: float = 0.1  # of a turn
    slow: float = 1.0  # what takes longer, seconds, is measured in two rounds alone
    worse: float | None = 1.5  # band on our gradient's error over torchdiffeq's, at one tolerance
    results: Path = Path(__file__).parent / "results" / "device_speed"


PRESETS = {
    "smoke": Config(
        "smoke",
        backends=("native", PEER),
        workloads=("spiral-mlp",),
        families=("planar flow", "latent ODE"),
        tasks=("forward", "direct"),
        rows=4,
        rounds=1,
        seconds=0.0,
        worse=None,
    ),
    "quick": Config(
        "quick",
        backends=("native", PEER),
        workloads=("spiral-mlp", "latent-ode"),
        families=("latent ODE",),
        tasks=("forward", "direct"),
    ),
    "full": Config("full"),
    "paper": Config("paper", device="cuda", tasks=("forward", "direct"), rounds=5, seconds=0.05),
}


@dataclass(frozen=True)
class Step:
    """A training step of a model: what it costs everybody, and where its solver is set.

    Args:
        model: What is trained.
        loss: Of the model, with the graph for a gradient.
        place: Puts a solver into the model.
        tolerance: rtol and atol.
    """

    model: nn.Module
    loss: Callable[[nn.Module], Tensor]
    place: Callable[[nn.Module, Solver], None]
    tolerance: float

    def solver(self, backend: str) -> Solver:
        """A solver of this tolerance with the gradient of the steps taken."""
        return Solver(
            backend,
            method="dopri5",
            rtol=self.tolerance,
            atol=self.tolerance,
            coupling="shared",
            gradient="direct",
        )

    def run(self, backend: str, optimiser: torch.optim.Optimizer) -> None:
        """Once."""
        self.place(self.model, self.solver(backend))
        optimiser.zero_grad()
        self.loss(self.model).backward()
        optimiser.step()

    def gradient(self, solver: Solver, model: nn.Module | None = None) -> Tensor:
        """Of all parameters, as one vector in float64."""
        model = self.model if model is None else model
        self.place(model, solver)
        wanted = [p for p in model.parameters() if p.requires_grad]
        found = torch.autograd.grad(self.loss(model), wanted)
        return torch.cat([each.double().flatten() for each in found])


@dataclass(frozen=True)
class Row:
    """One contestant's time.

    Args:
        what: Workload or family.
        task: "forward", "direct", "checkpointed", "adjoint", or "training step".
        backend: Who solves.
        milliseconds: Median over the rounds.
        low: Lower quartile.
        high: Upper quartile.
        error: Of states, or of the gradient where there is one, over the reference's norm.
        apart: Whether it was timed in a process of its own, once, while others compiled: at most
            as fast as in turn.
    """

    what: str
    task: str
    backend: str
    milliseconds: float
    low: float
    high: float
    error: float
    apart: bool = False


def main(config: Config) -> dict[str, object]:
    """Measure, print, and write JSON and PNG; returns what the JSON holds."""
    need("matplotlib")
    with torch_threads(1):
        return run(config, Console())


def run(config: Config, console: Console) -> dict[str, object]:
    """The measurement, from weights to files."""
    from _harness.device_figure import times_by_workload  # matplotlib is optional

    name = device_name(config.device)
    rows: list[Row] = []
    with LiveLine(console) as line:
        for what in (*config.workloads, *config.families):
            rows += measured(what, config, line.show)
    bands = beside_the_paper("device_speed", bands_of(config, rows))
    console.print(table_of(rows, name), *map(str, bands), sep="\n", highlight=False)
    record = {
        "config": {key: value for key, value in asdict(config).items() if key != "results"},
        "environment": environment(),
        "device": name,
        "rows": [asdict(row) for row in rows],
        "bands": [band.record() for band in bands],
    }
    write_json(config.results / f"{config.preset}.json", record)
    figure = times_by_workload(rows, name)
    write_figure(config.results / f"{config.preset}.png", figure)
    return record


def device_name(device: str) -> str:
    """What the device is called.

    Raises:
        CtflowError: If it is not here.
    """
    if present(device).type == "cpu":
        return platform.processor() or platform.machine()
    return torch.cuda.get_device_name(device)


def measured(what: str, config: Config, show: Callable[[str], None]) -> list[Row]:
    """Everybody on one workload or model, in turn."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GradientWarning)
        timed, errors = (of_workload if what in WORKLOADS else of_family)(what, config, show)
        pace = Pace(config.rounds, config.seconds, config.slow, few=2)
        samples = in_rounds(timed, pace, lambda said: show(f"{what}, {said}"))
    rows = []
    for key, taken in samples.items():
        backend, _, task = key.partition(": ")
        spread = Spread.of(taken)
        rows.append(
            Row(what, task, backend, spread.median, spread.low, spread.high, errors[key])
        )  # fmt: skip
    return rows


def of_workload(
    name: str, config: Config, show: Callable[[str], None]
) -> tuple[list[Stopwatch], dict[str, float]]:
    """Forward pass and gradients of a workload by everybody asked for, and their errors."""
    workload = WORKLOADS[name]
    fine = workload.case(config.seed, config.rows, torch.float64).to(config.device)
    exact = replace(fine, tolerance=1e-3 * fine.tolerance)
    show(f"{name}, reference")
    reference = next(
        each for each in contestants(exact) if each.key == "ctflow native checkpointed"
    ).answer()
    timed, errors = [], {}
    for each in contestants(workload.case(config.seed, config.rows).to(config.device)):
        backend = OWN_NAMES.get(each.entry.library)
        if backend not in config.backends or each.entry.mode not in config.tasks:
            continue
        key = f"{backend}: {each.entry.mode}"
        show(f"{name}, error of {key}")
        timed.append(Stopwatch(key, waiting(each.run, config.device)))
        answer = each.answer()
        got, right = answer.states, reference.states
        if answer.gradients is not None and reference.gradients is not None:
            got, right = answer.gradients, reference.gradients
        errors[key] = float(((got - right) ** 2).sum() ** 0.5 / (right**2).sum() ** 0.5)
    return timed, errors


def of_family(
    name: str, config: Config, show: Callable[[str], None]
) -> tuple[list[Stopwatch], dict[str, float]]:
    """A training step of a model by everybody asked for, and the errors of its gradient."""
    step = FAMILIES[name](config)
    double = copy.deepcopy(step.model).double()
    tight = 1e-3 * step.tolerance
    show(f"{name}, reference")
    right = step.gradient(replace(step.solver("native"), rtol=tight, atol=tight), double)
    optimiser = torch.optim.Adam(step.model.parameters(), lr=0.0)
    timed, errors = [], {}
    for backend in config.backends:
        key = f"{backend}: training step"
        show(f"{name}, error of {key}")
        got = step.gradient(step.solver(backend))
        errors[key] = ((got - right).norm() / right.norm()).item()
        run = waiting(_once(step, backend, optimiser), config.device)
        timed.append(Stopwatch(key, run))
    return timed, errors


def _once(step: Step, backend: str, optimiser: torch.optim.Optimizer) -> Callable[[], None]:
    return lambda: step.run(backend, optimiser)


def waiting(run: Callable[[], object], device: str) -> Callable[[], object]:
    """The call, until the device has done what it asks."""
    if torch.device(device).type != "cuda":
        return run

    def until_done() -> None:
        run()
        torch.cuda.synchronize(device)

    return until_done


def odenet_step(config: Config) -> Step:
    """The paper's network on noise: 28 pixels to 6, one ODE, a linear head."""
    torch.manual_seed(config.seed)
    rows = 128 if config.rows is None else config.rows
    x, y = torch.randn(rows, 1, 28, 28), torch.randint(0, 10, (rows,))
    x, y = x.to(config.device), y.to(config.device)

    def loss(net: nn.Module) -> Tensor:
        return cross_entropy(net(x.to(_dtype(net))), y)

    def place(net: nn.Module, solver: Solver) -> None:
        body: ODEBlock = net.body  # pyright: ignore[reportAssignmentType]
        body.solver = solver

    return Step(ode_net(64).to(config.device), loss, place, 1e-3)


def flow_step(config: Config, field: nn.Module) -> Step:
    """Log-likelihood of two moons under a flow with this field."""
    rows = 512 if config.rows is None else config.rows
    x = SHAPES["moons"].sample(rows).to(config.device)
    solvers: list[Solver] = []

    def loss(field: nn.Module) -> Tensor:
        dtype = _dtype(field)
        start = base(dtype, config.device)
        flow = ContinuousFlow(start, field, solver=solvers[-1])
        return -flow.log_prob(x.to(dtype)).mean()

    return Step(field.to(config.device), loss, lambda _, solver: solvers.append(solver), 1e-5)


def planar_step(config: Config) -> Step:
    """The paper's field: 64 planar units with weights that are functions of time."""
    torch.manual_seed(config.seed)
    return flow_step(config, HyperPlanar(2, 64))


def free_form_step(config: Config) -> Step:
    """A network of (x, t) with two hidden layers of 64."""
    torch.manual_seed(config.seed)
    return flow_step(config, MLP(2, (64, 64)))


def latent_step(config: Config) -> Step:
    """The bound of the spirals' latent ODE, with the same noise every time."""
    recipe = Recipe(1000, batch=200 if config.rows is None else config.rows)
    solver = Solver("native", rtol=1e-6, atol=1e-6, coupling="shared")
    job = Job("latent ODE", 100, config.seed, recipe, solver)
    spirals, _ = data_of(job)
    x, t, _ = (each.to(config.device) for each in spirals.observed)
    x, noise = x[: recipe.batch], torch.randn(recipe.batch, 4).to(config.device)

    def loss(model: nn.Module) -> Tensor:
        latent: LatentODE = model  # pyright: ignore[reportAssignmentType]
        data = Observations(x.to(_dtype(model)), t.to(_dtype(model)))
        q = latent.encoder(data, latent.t0)
        path = latent.path((q.mean + q.stddev * noise).unsqueeze(0), data.t)
        decoded = latent.decoder(path.z)
        fits = latent.likelihood.log_prob(decoded, data.x, data.seen, path.integral)
        return (kl_divergence(q, latent.prior).sum(dim=-1) - fits.mean(dim=0)).mean()

    def place(model: nn.Module, solver: Solver) -> None:
        latent: LatentODE = model  # pyright: ignore[reportAssignmentType]
        latent.solver = solver

    return Step(build(job).to(config.device), loss, place, 1e-6)


FAMILIES: Mapping[str, Callable[[Config], Step]] = {
    "ODE-Net": odenet_step,
    "planar flow": planar_step,
    "free-form flow": free_form_step,
    "latent ODE": latent_step,
}


def _dtype(model: nn.Module) -> torch.dtype:
    return next(model.parameters()).dtype


def bands_of(config: Config, rows: Sequence[Row]) -> Iterator[Band]:
    """Nobody's gradient is worse, and no training step is slower, than torchdiffeq's."""
    if config.worse is None:
        return
    theirs = {(row.what, task_of(row)): row for row in rows if row.backend == PEER}
    ours = [row for row in rows if row.backend != PEER and (row.what, task_of(row)) in theirs]
    worst = max(
        row.error / theirs[row.what, task_of(row)].error for row in ours if row.task != "forward"
    )
    yield Band(f"error of our gradient over {PEER}'s, the largest", worst, high=config.worse)
    for what in config.families:
        own = [row for row in ours if row.what == what and not row.apart]
        best = min(own, key=lambda row: row.milliseconds)
        times = theirs[what, best.task].milliseconds / best.milliseconds
        yield Band(f"{PEER}'s time of a training step over {best.backend}'s, {what}", times,
                   low=1.0)  # fmt: skip


def table_of(rows: Sequence[Row], name: str) -> Table:
    """Everybody's time, and torchdiffeq's over it."""
    table = Table("what", "task", "backend", title=f"One call, {name}")
    for column in ("ms", "quartiles", "torchdiffeq over it", "error"):
        table.add_column(column, justify="right")
    peers = peer_times(rows)
    for row in rows:
        peer, mark = peers.get((row.what, task_of(row))), " *" if row.apart else ""
        table.add_row(
            row.what, row.task, row.backend + mark, f"{row.milliseconds:.2f}",
            f"{row.low:.2f} to {row.high:.2f}",
            "" if peer is None else f"{peer / row.milliseconds:.2f}",
            f"{row.error:.0e}",
        )  # fmt: skip
    return table


def task_of(row: Row) -> str:
    """What a row is compared in: the two exact gradients are alike."""
    return "exact" if row.task in ("direct", "checkpointed") else row.task


def peer_times(rows: Sequence[Row]) -> dict[tuple[str, str], float]:
    """torchdiffeq's milliseconds by workload and task."""
    return {(row.what, task_of(row)): row.milliseconds for row in rows if row.backend == PEER}


if __name__ == "__main__":
    root = str(Path(__file__).parents[1])
    command_line(["reproduce", "device_speed", "--root", root, *sys.argv[1:]])
