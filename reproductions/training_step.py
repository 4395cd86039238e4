"""A training step of the paper's ODE-Net: its time beside torchdiffeq's, its memory by tolerance.

The network is the released example's: 64 channels, ReLU, 28 pixels to 6, one ODE at a tolerance of
1e-3. A step is forward pass, loss, backward pass and update; the update's rate is 0, so that every
step is of the same weights. Ours and torchdiffeq's run in turn, round by round, in one process on
one thread, and all of them solve with dopri5 and one step size for the batch. Times are those of
the processor, which other work on the machine disturbs least; what is compared are medians, of the
faster gradient of each side: of the ODE block, which is what a backend can change, and of the whole
network, whose convolutions before the block are the same for all. Each gradient's error is that
against a solve at a thousandth of the tolerance in float64: the faster one must not be so by being
worse.

Memory is the peak of live tensor storage over forward and backward pass of the ODE block alone, at
tolerances from 1e-1 to 1e-5, in a smaller network: the adjoint's does not grow, that of
back-propagation grows with the steps.

Source:
    Chen et al. 2018 (arXiv 1806.07366v5), section 3, Table 1: memory O(1) in the adjoint's steps.
    The time is no claim of the paper; the band is ours.
"""

from __future__ import annotations

import copy
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

import torch
from _harness.bands import Band
from _harness.live import LiveLine
from _harness.records import environment, need, write_figure, write_json
from _harness.storage import peak_bytes
from _harness.threads import torch_threads
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ctflow import Solver
from ctflow.backends import Feature, get
from ctflow.cli import main as command_line
from ctflow.dynamics import ODEBlock, ode_net
from ctflow.errors import GradientWarning

PEER = "torchdiffeq"
PARTS = ("network", "block")
METHODS = ("adjoint", "checkpointed", "direct")
"""Gradients whose memory is measured, where the backend has them."""


@dataclass(frozen=True)
class Config:
    """Everything that the result depends on, beside the code and the machine."""

    preset: str
    seed: int = 0
    backend: str = "native"
    channels: int = 64
    batch: int = 128
    tolerance: float = 1e-3  # the paper's
    rounds: int = 10
    rounds_of_adjoints: int = 2  # which take several times as long
    tolerances: tuple[float, ...] = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)  # of the memory
    small_channels: int = 8
    small_batch: int = 4
    faster: float | None = 1.4  # band on the peer's time over ours
    claims: bool = True
    results: Path = Path(__file__).parent / "results" / "training_step"


PRESETS = {
    "smoke": Config(
        "smoke",
        channels=2,
        batch=2,
        rounds=1,
        tolerances=(1e-1, 1e-2),
        small_channels=2,
        claims=False,
    ),
    "quick": Config("quick"),
    "full": Config("full", rounds=40, rounds_of_adjoints=5),
}


@dataclass(frozen=True)
class Pace:
    """A training step with one backend and gradient.

    Args:
        part: "network", or "block" for the ODE block alone.
        backend: Who solves.
        gradient: How it differentiates.
        milliseconds: Of the processor, for every round.
        forward: Evaluations of the field in the forward pass.
        backward: Likewise backward, where the field is evaluated again.
        error: ||gradient - reference|| / ||reference||, over all parameters.
    """

    part: str
    backend: str
    gradient: str
    milliseconds: list[float]
    forward: float
    backward: float
    error: float


@dataclass(frozen=True)
class Peaks:
    """Peak storage by tolerance.

    Args:
        gradient: How the block differentiates.
        steps: Accepted steps of the forward pass, by tolerance.
        kib: Peak live storage, likewise.
    """

    gradient: str
    steps: list[int]
    kib: list[float]


def main(config: Config) -> dict[str, object]:
    """Measure, print, and write JSON and PNG; returns what the JSON holds."""
    need("matplotlib")
    with torch_threads(1):
        return run(config, Console())


def run(config: Config, console: Console) -> dict[str, object]:
    """The experiment, from weights to files."""
    from _harness.step_figure import times_and_memory  # matplotlib is optional

    with LiveLine(console) as line:
        paces = [each for part in PARTS for each in measured(part, config, line.show)]
        line.show("memory by tolerance")
        peaks = list(peaks_of(config))
    bands = list(bands_of(config, paces, peaks)) if config.claims else []
    console.print(table_of(paces), highlight=False)
    for each in peaks:
        kib = ", ".join(f"{value:.0f}" for value in each.kib)
        console.print(f"{each.gradient}: steps {each.steps}, peak KiB {kib}", highlight=False)
    console.print(*map(str, bands), sep="\n", highlight=False)
    record = {
        "config": {key: value for key, value in asdict(config).items() if key != "results"},
        "environment": environment(),
        "paces": [asdict(each) for each in paces],
        "memory": [asdict(each) for each in peaks],
        "bands": [band.record() for band in bands],
    }
    write_json(config.results / f"{config.preset}.json", record)
    times = {f"{e.part}: {e.backend}, {e.gradient}": e.milliseconds for e in paces}
    memory = {each.gradient: each.kib for each in peaks}
    figure = times_and_memory(times, memory, config.tolerances)
    write_figure(config.results / f"{config.preset}.png", figure)
    return record


def solvers_of(config: Config) -> dict[tuple[str, str], Solver]:
    """Ours by every exact gradient of the backend and by the adjoint, then the peer's two."""
    base = Solver(
        config.backend,
        method="dopri5",
        rtol=config.tolerance,
        atol=config.tolerance,
        coupling="shared",
    )
    own = [(config.backend, name) for name in METHODS if _able(config.backend, name)]
    peer = [(PEER, "direct"), (PEER, "adjoint")]
    return {
        (backend, gradient): replace(base, backend=backend, gradient=gradient)
        for backend, gradient in dict.fromkeys([*own, *peer])
    }


def measured(part: str, config: Config, show: Callable[[str], None]) -> list[Pace]:
    """The same training step under every solver in turn; the first round is not counted."""
    torch.manual_seed(config.seed)
    net = ode_net(config.channels)
    x, y = torch.randn(config.batch, 1, 28, 28), torch.randint(0, 10, (config.batch,))
    model: nn.Module = net
    if part == "block":
        x = net.stem(x).detach().requires_grad_()
        model = nn.Sequential(net.body, net.head)
    block: ODEBlock = net.body  # pyright: ignore[reportAssignmentType]
    optimiser = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
    solvers = solvers_of(config)
    times: dict[tuple[str, str], list[float]] = {key: [] for key in solvers}
    gradients: dict[tuple[str, str], Tensor] = {}
    counts: dict[tuple[str, str], tuple[float, float]] = {}
    for round_ in range(config.rounds + 1):
        for key, solver in solvers.items():
            if key[1] == "adjoint" and round_ > config.rounds_of_adjoints:
                continue
            show(f"{part}, round {round_}/{config.rounds}: {', '.join(key)}")
            block.solver = solver
            began = time.process_time()
            step(model, optimiser, x, y)
            times[key].append(round(1e3 * (time.process_time() - began), 3))
            if key not in gradients:
                gradients[key] = flat([p.grad for p in model.parameters()])
                counts[key] = evaluations_of(block)
    tight = 1e-3 * config.tolerance
    block.solver = Solver(rtol=tight, atol=tight, gradient="direct", coupling="shared")
    show("reference")
    double = copy.deepcopy(model).double()
    loss = cross_entropy(double(x.detach().double()), y)
    reference = flat(torch.autograd.grad(loss, list(double.parameters())))
    size = reference.norm()
    return [
        Pace(
            part,
            *key,
            times[key][1:],
            *counts[key],
            float((gradients[key] - reference).norm() / size),
        )
        for key in solvers
    ]


def flat(gradients: Iterable[Tensor | None]) -> Tensor:
    """All of them in one vector, in float64."""
    return torch.cat([each.double().reshape(-1) for each in gradients if each is not None])


def evaluations_of(block: ODEBlock) -> tuple[float, float]:
    """Of the last step, forward and backward; every evaluation is of the whole batch."""
    stats = block.stats
    if stats is None:
        return 0.0, 0.0
    backward = 0.0 if stats.backward is None else float(stats.backward.n_f_evals.max())
    return float(stats.forward.n_f_evals.max()), backward


def step(model: nn.Module, optimiser: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    """Forward pass, loss, backward pass, update."""
    optimiser.zero_grad()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GradientWarning)
        cross_entropy(model(x), y).backward()
    optimiser.step()


def peaks_of(config: Config) -> Iterator[Peaks]:
    """Peak storage of the block at every tolerance, by every gradient of the backend."""
    torch.manual_seed(config.seed)
    model = ode_net(config.small_channels, activation=nn.SiLU)
    block: ODEBlock = model.body  # pyright: ignore[reportAssignmentType]
    start = model.stem(torch.randn(config.small_batch, 1, 28, 28)).detach()

    def run() -> Sequence[Tensor]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", GradientWarning)
            return torch.autograd.grad(block(start).square().mean(), list(block.parameters()))

    for gradient in METHODS:
        if not _able(config.backend, gradient):
            continue
        steps, kib = [], []
        for tolerance in config.tolerances:
            block.solver = Solver(
                config.backend, rtol=tolerance, atol=tolerance, gradient=gradient, coupling="shared"
            )
            kib.append(peak_bytes(run) / 1024)
            steps.append(int(block.stats.forward.n_accepted.max()))  # pyright: ignore
        yield Peaks(gradient, steps, kib)


def _able(backend: str, gradient: str) -> bool:
    return Feature[gradient.upper()] in get(backend).features


def bands_of(config: Config, paces: Sequence[Pace], peaks: Sequence[Peaks]) -> Iterator[Band]:
    """What is claimed of time, of how right the gradient is, and of memory."""
    if config.faster is not None and config.backend == "native":
        for part in PARTS:
            name = f"{PEER}'s time of a training step of the {part} over ours"
            yield Band(name, ratio(paces, config, part), low=config.faster)
        ours, theirs = (fastest(paces, name, "block") for name in (config.backend, PEER))
        yield Band(f"error of our gradient over {PEER}'s", ours.error / theirs.error, high=1.5)
    by_gradient: Mapping[str, Peaks] = {each.gradient: each for each in peaks}
    if "adjoint" in by_gradient:
        own = by_gradient["adjoint"]
        growth = max(own.kib) / min(own.kib)
        yield Band("adjoint: largest over least memory", growth, high=1.1)
    if "direct" in by_gradient:
        own = by_gradient["direct"]
        growth = (own.kib[-1] / own.kib[0]) / (own.steps[-1] / own.steps[0])
        yield Band("direct: growth of memory over growth of steps", growth, 0.5, 1.5)


def fastest(paces: Sequence[Pace], backend: str, part: str) -> Pace:
    """The gradient of a backend with the least median."""
    own = [each for each in paces if (each.backend, each.part) == (backend, part)]
    return min(own, key=lambda each: median(each.milliseconds))


def ratio(paces: Sequence[Pace], config: Config, part: str) -> float:
    """The peer's median over ours, each by its faster gradient."""
    ours, theirs = (fastest(paces, name, part) for name in (config.backend, PEER))
    return median(theirs.milliseconds) / median(ours.milliseconds)


def table_of(paces: Sequence[Pace]) -> Table:
    """Everybody's step."""
    table = Table("of", "backend", "gradient", title="A training step, one thread")
    for column in ("ms", "least", "largest", "evaluations", "error of gradient"):
        table.add_column(column, justify="right")
    for each in paces:
        values = (median(each.milliseconds), min(each.milliseconds), max(each.milliseconds))
        counts = f"{each.forward:.0f} + {each.backward:.0f}"
        table.add_row(each.part, each.backend, each.gradient, *(f"{v:.0f}" for v in values), counts,
                      f"{each.error:.1e}")  # fmt: skip
    return table


if __name__ == "__main__":
    command_line(
        ["reproduce", "training_step", "--root", str(Path(__file__).parents[1]), *sys.argv[1:]]
    )
