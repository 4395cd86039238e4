"""How flows are trained: with clipped gradients, and a rate that rises and then falls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from _harness.loop import Training
from _harness.session import Session

__all__ = ["minimise", "one_cycle", "training_of"]

_CLIP = 5.0  # largest norm of a gradient


def one_cycle(
    optimiser: torch.optim.Optimizer, rate: float, total: int
) -> torch.optim.lr_scheduler.OneCycleLR:
    """A rate that rises for a tenth of the training and then falls."""
    return torch.optim.lr_scheduler.OneCycleLR(
        optimiser, rate, total_steps=total, pct_start=0.1, cycle_momentum=False
    )


def training_of(
    session: Session,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    loss: Callable[..., Tensor],
    name: str,
    settings: Mapping[str, object] | None = None,
) -> Training:
    """A training of a flow; the first loss is evaluated twice, and timed once."""
    return session.training(
        model, optimiser, loss, schedule=schedule, name=name, clip=_CLIP, warm=True,
        settings=settings or {},
    )  # fmt: skip


def minimise(
    training: Training,
    draw: Callable[[], Sequence[Tensor]],
    until: int,
    show: Callable[[str], None],
) -> None:
    """Go on up to iteration `until`.

    Args:
        training: What is trained.
        draw: The tensors of a batch.
        until: Iterations in all, earlier slices included.
        show: Told how far it is.

    Raises:
        Unfinished: When the slice's time is over.
    """
    for step in training.steps(until):
        value = training.descend(*draw())
        show(
            f"{training.name}  iteration {step + 1}/{until}  loss {value:.3f}  "
            f"{training.seconds:.0f} s"
        )
