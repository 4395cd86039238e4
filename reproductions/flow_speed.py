"""A training step of a flow in the plane: ctflow, torchdiffeq and zuko side by side in one run.

512 points of two moons, the exact trace, dopri5 at one tolerance, one thread: log-likelihood, its
gradient, and a step of Adam (whose rate is zero, so that all go on with the same weights). The
free-form field is zuko's own, weights included, so that its flow is the same model; the planar one
is the paper's. torchdiffeq is used as its users do, without ctflow, with and without its adjoint.
Turns are interleaved, and ratios are taken round by round.

Beside the times stand the errors of loss and gradient, against float64 at a far tighter tolerance:
one tolerance does not mean one error. Then every backend is asked for the log-density of 10,000
samples of a flow that moves points by about one. (One that makes its data much thinner than the
base magnifies every solver's errors as much: on the moons, backends differ by 20 tolerances.)

Source:
    The model of Chen et al. 2018 (arXiv 1806.07366v5), section 4; zuko's CNF (zuko.flows.CNF, 1.6).
    The bands are ours.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path

import torch
from _harness.bands import Band
from _harness.flow_peers import MODELS, Model, Step, base, steps
from _harness.live import LiveLine
from _harness.records import environment, need, write_figure, write_json
from _harness.shapes import SHAPES
from _harness.threads import torch_threads
from benchmarks.measuring import Pace, Spread, Stopwatch, in_rounds, ratio
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from ctflow import Solver
from ctflow.cli import main as command_line
from ctflow.flows import ContinuousFlow, GatedPlanar

EXACT = "exact"


@dataclass(frozen=True)
class Config:
    """Everything that the result depends on, beside the code and the machine."""

    preset: str
    seed: int = 0
    backend: str = "compiled"
    beside: tuple[str, ...] = ("native",)
    models: tuple[str, ...] = ("free-form", "planar")
    width: int = 64
    batch: int = 512
    tolerance: float = 1e-5
    reference: float = 1e-9  # tolerance of what errors are taken against
    rounds: int = 7
    seconds: float = 0.3  # of a turn
    points: int = 10_000  # whose log-density all backends are asked for
    backends: tuple[str, ...] = ("native", "compiled", "torchdiffeq", "scipy")
    # Bands on how many times as long they take, by model and library.
    times: tuple[tuple[str, str, float], ...] = (
        ("planar", "torchdiffeq", 3.0),
        ("free-form", "torchdiffeq", 3.0),
        ("free-form", "zuko", 1.0),
    )
    results: Path = Path(__file__).parent / "results" / "flow_speed"


PRESETS = {
    "smoke": Config(
        "smoke", backend="native", beside=(), width=4, batch=8, tolerance=1e-3, reference=1e-6,
        rounds=2, seconds=0.0, points=20, backends=("native",), times=(),
    ),
    "quick": Config("quick"),
    "full": Config("full", rounds=25, seconds=0.4),
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One contestant on one model.

    Args:
        model: The field.
        who: Library and gradient.
        milliseconds: Of a training step, median over the rounds.
        low: Lower quartile.
        high: Upper quartile.
        loss_error: Distance of the loss from the reference, nats.
        gradient_error: Distance of the gradient from the reference's, over its norm.
    """

    model: str
    who: str
    milliseconds: float
    low: float
    high: float
    loss_error: float
    gradient_error: float


def main(config: Config) -> dict[str, object]:
    """Measure, print, and write JSON and PNG; returns what the JSON holds."""
    need("matplotlib", "zuko")
    with torch_threads(1):
        return run(config, Console())


def run(config: Config, console: Console) -> dict[str, object]:
    """The measurement, from models to files."""
    from _harness.speed_figure import speed_figure  # matplotlib is optional

    rows: list[Row] = []
    bands: list[Band] = []
    with LiveLine(console) as line:
        for name in config.models:
            own, claims = contest(config, name, line.show)
            rows += own
            bands += claims
        line.show("log-densities by every backend")
        found = log_probs(config)
    errors = {name: rms(value - found[EXACT]) for name, value in found.items() if name != EXACT}
    ours = [value for name, value in found.items() if name != EXACT]
    apart = max((rms(a - b) for a, b in combinations(ours, 2)), default=0.0)
    bands.append(
        Band(
            f"log-densities of {config.points} points by any two backends: RMS "
            "difference over 10 x tolerance",
            apart / (10 * config.tolerance),
            high=1.0,
        )
    )
    console.print(table_of(rows), *map(str, bands), sep="\n", highlight=False)
    record = {
        "config": {key: value for key, value in asdict(config).items() if key != "results"},
        "environment": environment(),
        "rows": [asdict(row) for row in rows],
        "log_density": {"rms_difference": apart, "rms_errors": errors},
        "bands": [band.record() for band in bands],
    }
    write_json(config.results / f"{config.preset}.json", record)
    write_figure(config.results / f"{config.preset}.png", speed_figure(rows, config.batch))
    console.print(f"Written: {config.preset}.json and {config.preset}.png in {config.results}")
    return record


def contest(config: Config, name: str, show: Callable[[str], None]) -> tuple[list[Row], list[Band]]:
    """Everybody on one model: times in turn, errors, and our standing."""
    torch.manual_seed(config.seed)
    model = MODELS[name](config.width, config.tolerance)
    x = SHAPES["moons"].sample(config.batch)
    wanted = reference(config, model, x)
    entries = list(steps(model, (config.backend, *config.beside), config.tolerance))
    errors = {each.key: errors_of(each, model.field, x, wanted) for each in entries}
    timed = [Stopwatch(each.key, training_step(each, model.field, x)) for each in entries]
    for each in timed:
        show(f"{name}, first call: {each.key}")
        each.first()
    pace = Pace(config.rounds, config.seconds)
    samples = in_rounds(timed, pace, lambda said: show(f"{name}, {said}"))
    rows = []
    for key, taken in samples.items():
        spread = Spread.of(taken)
        rows.append(Row(name, key, spread.median, spread.low, spread.high, *errors[key]))
    own = f"ctflow {config.backend}"
    bands = [Band(f"error of the gradient, {own}, {name}", errors[own][1], high=1e-2)]
    for model_name, peer, least in config.times:
        if model_name == name:
            able = [each for each in rows if each.who.startswith(peer)]
            best = min(able, key=lambda row: row.milliseconds)
            times = ratio(samples, best.who, own).median
            bands.append(Band(f"time of {best.who} over ours, {name}", times, low=least))
    return rows, bands


def training_step(step: Step, field: nn.Module, x: Tensor) -> Callable[[], None]:
    """Loss, gradient, and a step of the optimiser that changes nothing."""
    optimiser = torch.optim.Adam(field.parameters(), lr=0.0)

    def run() -> None:
        optimiser.zero_grad()
        (-step.log_prob(x).mean()).backward()
        optimiser.step()

    return run


def loss_and_gradient(step: Step, field: nn.Module, x: Tensor) -> tuple[float, Tensor]:
    """In float64; the gradient of all parameters as one vector."""
    loss = -step.log_prob(x).mean()
    found = torch.autograd.grad(loss, list(field.parameters()))
    return loss.item(), torch.cat([each.flatten() for each in found]).double()


def reference(config: Config, model: Model, x: Tensor) -> tuple[float, Tensor]:
    """Loss and gradient in float64, by the native backend at a tight tolerance."""
    fine = Solver(rtol=config.reference, atol=config.reference, coupling="shared")
    field = model.field.double()
    try:
        flow = ContinuousFlow(base(torch.float64), field, model.t, solver=fine)
        return loss_and_gradient(Step("reference", flow.log_prob), field, x.double())
    finally:
        field.float()


def errors_of(
    step: Step, field: nn.Module, x: Tensor, wanted: tuple[float, Tensor]
) -> tuple[float, float]:
    """Of the loss in nats, and of the gradient over its norm."""
    loss, gradient = loss_and_gradient(step, field, x)
    off = (gradient - wanted[1]).norm() / wanted[1].norm()
    return abs(loss - wanted[0]), off.item()


def log_probs(config: Config) -> dict[str, Tensor]:
    """Log-densities [points] by every backend, and by a far tighter solve; in float64."""
    torch.manual_seed(config.seed)
    dtype = torch.float64
    field = GatedPlanar(2, 16).to(dtype)
    with torch.no_grad():
        field.planar.u.mul_(3.0)  # as drawn it hardly moves a point
    exact = Solver(rtol=config.reference, atol=config.reference, coupling="shared")
    x = ContinuousFlow(base(dtype), field, solver=exact).sample((config.points,))

    def log_prob(name: str, tolerance: float) -> Tensor:
        solver = Solver(name, rtol=tolerance, atol=tolerance, coupling="shared")
        with torch.no_grad():
            return ContinuousFlow(base(dtype), field, solver=solver).log_prob(x)

    found = {name: log_prob(name, config.tolerance) for name in config.backends}
    return found | {EXACT: log_prob("native", config.reference)}


def rms(x: Tensor) -> float:
    """Root of the mean square."""
    return x.square().mean().sqrt().item()


def table_of(rows: list[Row]) -> Table:
    """Everybody's time and errors."""
    table = Table(
        "model", "who", "ms", "quartiles", "error of loss", "error of gradient",
        title="A training step, one thread",
    )  # fmt: skip
    for row in rows:
        table.add_row(
            row.model, row.who, f"{row.milliseconds:.1f}", f"{row.low:.1f} to {row.high:.1f}",
            f"{row.loss_error:.0e}", f"{row.gradient_error:.0e}",
        )  # fmt: skip
    return table


if __name__ == "__main__":
    root = str(Path(__file__).parents[1])
    command_line(["reproduce", "flow_speed", "--root", root, *sys.argv[1:]])
