"""An ODE-Net learns handwritten digits; then every backend solves and differentiates it.

The network is the paper's for MNIST at the size of the data: convolutions to a small image, one
`ODEBlock` over a `ConvField`, a linear layer. Its data are the 1797 digits of 8x8 pixels from UCI
that scikit-learn ships; a quarter of them, chosen by the seed and in equal parts of each digit, is
kept for testing and used for nothing else. The activation is smooth, so that gradients exist.

Once trained, the same weights go through every installed backend and every gradient method that it
offers. Accuracy, evaluations and time are those of the training tolerance in float32. Gradients are
compared in float64 at a tight tolerance with a reference at rtol 1e-10, on eight test samples:
||g - reference|| / ||reference|| over all parameters together.

Source:
    Chen et al. 2018 (arXiv 1806.07366v5), section 3 and Table 1. The paper has no number for these
    digits; the bands are ours.
"""

from __future__ import annotations

import copy
import math
import sys
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from _harness.bands import Band
from _harness.comparison import Row, accepted_solvers, evaluations, table_of, timed
from _harness.live import Epoch, LiveLine
from _harness.records import environment, need, write_figure, write_json
from _harness.session import Session, run_session
from rich.console import Console
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

from ctflow import ODEProblem, Solver
from ctflow.cli import main as command_line
from ctflow.dynamics import ConvField, ODEBlock
from ctflow.errors import GradientWarning

Samples = tuple[Tensor, Tensor]
"""Images [N, 1, 8, 8] in [0, 1], and labels [N]."""


@dataclass(frozen=True)
class Config:
    """Everything that the result depends on, beside the code and the machine."""

    preset: str
    seed: int = 0
    backend: str = "native"  # the one that trains
    channels: int = 24
    epochs: int = 24
    batch: int = 64
    learning_rate: float = 1e-2
    weight_decay: float = 1e-2
    smoothing: float = 0.05  # of the labels
    tolerance: float = 1e-3  # rtol and atol in training: the paper's
    tight: float = 1e-9  # rtol of the compared gradients; atol is a hundredth of it
    reference: float = 1e-10  # rtol of the reference, likewise
    samples: int = 1797
    repeats: int = 3  # timings, of which the median counts
    accuracy: float | None = 0.97  # band; None: too short a run to have one
    agreement: float = 1e-6  # band of the gradient differences
    threads: int = 1  # the images are small: more threads cost more than they bring
    minutes: float = math.inf  # stop after so long; the same call goes on from there
    resume: bool = True  # go on with an unfinished call of the same settings
    results: Path = Path(__file__).parent / "results" / "digits"


PRESETS = {
    "smoke": Config(
        "smoke", channels=4, epochs=1, batch=32, samples=120, tight=1e-8, repeats=1, accuracy=None
    ),
    "quick": Config("quick"),
    "full": Config("full", channels=32, epochs=60, accuracy=0.98),
}


class Digits(nn.Module):
    """The ODE-Net: convolutions to [B, C, 4, 4], the ODE block, a linear layer to ten classes."""

    def __init__(self, channels: int, solver: Solver) -> None:
        """Draw the weights."""
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, channels, 3, padding=1),
            nn.GroupNorm(channels, channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 4, stride=2, padding=1),
        )
        self.block = ODEBlock(ConvField(channels, activation=nn.SiLU), solver=solver)
        self.head = nn.Sequential(
            nn.GroupNorm(channels, channels), nn.SiLU(), nn.Flatten(), nn.Linear(16 * channels, 10)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, 1, 8, 8] to logits [B, 10]."""
        return self.head(self.block(self.stem(x)))

    @torch.no_grad()
    def accuracy(self, x: Tensor, label: Tensor) -> float:
        """Share of the images [N, 1, 8, 8] whose largest logit is the label's [N]."""
        return (self(x).argmax(dim=1) == label).double().mean().item()


def main(config: Config) -> dict[str, object]:
    """Train, compare, print, and write JSON and PNG; returns what the JSON holds."""
    need("sklearn", "matplotlib")
    return run_session("digits", config, run, threads=config.threads)


def run(config: Config, console: Console, session: Session) -> dict[str, object]:
    """The experiment, from data to files."""
    from _harness.figures import learning_and_agreement  # matplotlib is optional

    torch.manual_seed(config.seed)
    train_set, test_set = load(config)
    solver = Solver(config.backend, rtol=config.tolerance, atol=config.tolerance)
    model = Digits(config.channels, solver)
    sizes = f"{len(train_set[0])} digits to learn from and {len(test_set[0])} to test with"
    console.print(f"{sizes}; split and weights by seed {config.seed}", highlight=False)
    with LiveLine(console) as line:
        history = train(model, train_set, test_set, config, session, line)
    with LiveLine(console) as line:
        rows = list(compare(model, train_set, test_set, config, line))
    largest, lowest = max(row.difference for row in rows), min(row.accuracy for row in rows)
    bands = [Band("largest gradient difference", largest, high=config.agreement)]
    if config.accuracy is not None:
        bands.append(Band("smallest test accuracy", lowest, low=config.accuracy))
    console.print(table_of(rows), *map(str, bands), sep="\n", highlight=False)
    record = {
        "config": session.config,
        "environment": environment(),
        "parameters": sum(p.numel() for p in model.parameters()),
        "samples": {"train": len(train_set[0]), "test": len(test_set[0])},
        "history": [asdict(epoch) for epoch in history],
        "comparison": [asdict(row) for row in rows],
        "bands": [band.record() for band in bands],
    }
    write_json(config.results / f"{config.preset}.json", record)
    title = f"ODE-Net on 8x8 digits, trained with {config.backend}, seed {config.seed}"
    figure = learning_and_agreement(title, history, rows, config.agreement)
    write_figure(config.results / f"{config.preset}.png", figure)
    console.print(f"Written: {config.preset}.json and {config.preset}.png in {config.results}")
    return record


def load(config: Config) -> tuple[Samples, Samples]:
    """What to train on, and what to test with."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    labels = torch.tensor(digits.target)
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16  # shades 0 to 16
    split = train_test_split(
        range(config.samples),
        test_size=0.25,
        random_state=config.seed,
        stratify=labels[: config.samples],
    )
    return tuple((images[rows], labels[rows]) for rows in split)


def train(
    model: Digits, samples: Samples, test: Samples, config: Config, session: Session, line: LiveLine
) -> list[Epoch]:
    """Train on shifted images; the test after each epoch is to show, and chooses nothing."""
    images, labels = samples
    batches = math.ceil(len(labels) / config.batch)
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, config.learning_rate, total_steps=config.epochs * batches
    )

    def loss(x: Tensor, label: Tensor) -> Tensor:
        return cross_entropy(model(x), label, label_smoothing=config.smoothing)

    training = session.training(model, optimiser, loss, schedule=schedule, name="digits")
    notes = training.notes
    notes.setdefault("history", [])
    accuracy = model.accuracy(*test)
    for step in training.steps(config.epochs * batches):
        epoch, batch = divmod(step, batches)
        if batch == 0:
            notes["order"], notes["total"] = torch.randperm(len(labels)), 0.0
        rows = notes["order"].split(config.batch)[batch]
        with warnings.catch_warnings():  # where an adjoint is in doubt, the comparison says so
            warnings.simplefilter("ignore", GradientWarning)
            found = training.descend(shifted(images[rows]), labels[rows])
        notes["total"] += found * len(rows)
        forward, backward = evaluations(model.block.stats)
        line.show(
            f"epoch {epoch + 1}/{config.epochs}  loss {found:.3f}  accuracy {accuracy:.2%}  "
            f"evaluations {forward:.1f} + {backward:.1f}  {training.seconds:.0f} s"
        )
        if batch == batches - 1:
            accuracy, mean = model.accuracy(*test), notes["total"] / len(labels)
            seconds = round(training.seconds, 1)
            after = Epoch(epoch + 1, mean, accuracy, forward, backward, seconds)
            notes["history"].append(asdict(after))
    return [Epoch(**each) for each in notes["history"]]


def shifted(images: Tensor) -> Tensor:
    """Each image moved by at most one pixel along each side; zeros move in."""
    windows = pad(images, (1, 1, 1, 1)).unfold(2, 8, 1).unfold(3, 8, 1)  # [B, 1, 3, 3, 8, 8]
    down, right = torch.randint(0, 3, (2, len(images)))
    return windows[torch.arange(len(images)), :, down, right]


def compare(
    model: Digits, samples: Samples, test: Samples, config: Config, line: LiveLine
) -> Iterator[Row]:
    """The trained weights under every backend and gradient method that accepts the problem."""
    few, batch = (test[0][:8], test[1][:8]), tuple(part[: config.batch] for part in samples)
    reference = gradient_of(model, few, config.reference, Solver(gradient="direct"))
    problem = ODEProblem(model.block.field, model.stem(few[0]), model.block.t, batched=True)
    for solver in accepted_solvers(problem, model.block.solver):
        line.show(f"comparing {solver.backend}, {solver.gradient}")
        gradient = gradient_of(model, few, config.tight, solver)
        model.block.solver = solver
        milliseconds, doubted = timed(
            lambda: cross_entropy(model(batch[0]), batch[1]).backward(), config.repeats
        )
        forward, backward = evaluations(model.block.stats)
        yield Row(
            backend=solver.backend,
            gradient=solver.gradient,
            accuracy=model.accuracy(*test),
            forward=forward,
            backward=backward,
            milliseconds=milliseconds,
            doubted=doubted,
            difference=((gradient - reference).norm() / reference.norm()).item(),
        )
    line.show("compared")


def gradient_of(model: Digits, samples: Samples, rtol: float, solver: Solver) -> Tensor:
    """Gradient of the loss in float64, for all parameters in one vector."""
    double = copy.deepcopy(model).double()
    double.block.solver = replace(solver, rtol=rtol, atol=rtol / 100)
    loss = cross_entropy(double(samples[0].double()), samples[1])
    gradients = torch.autograd.grad(loss, list(double.parameters()))
    return torch.cat([gradient.reshape(-1) for gradient in gradients])


if __name__ == "__main__":
    command_line(["reproduce", "digits", "--root", str(Path(__file__).parents[1]), *sys.argv[1:]])
