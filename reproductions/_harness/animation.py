"""A flow in time: samples beside their density, as frames of a GIF and as a strip.

This module imports matplotlib, which is optional: scripts import it after they have asked `need`.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from _harness.ranks import rank

__all__ = ["HALF", "animation", "filmstrip"]

HALF = 4.5  # of the window
_INK = "#0072B2"  # Okabe and Ito's palette
_COLOURS = 64  # of a GIF: a frame is a third of what 256 take, and looks the same
_MILLISECONDS, _HOLD = 70, 1400  # of a frame, and of the last

Frame = tuple[float, Tensor, Tensor]
"""Time, samples [n, 2], and density [pixels, pixels], rows from the top."""


def animation(path: Path, frames: Sequence[Frame]) -> None:
    """Write a GIF that repeats for ever; a reader sees the old file or the new one."""
    if rank() > 0:
        return  # of several processes the first one writes
    images = [_image(frame) for frame in frames]
    lasting = [_MILLISECONDS] * (len(images) - 1) + [_HOLD]
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        images[0].save(
            temporary, format="GIF", save_all=True, append_images=images[1:], duration=lasting,
            loop=0, optimize=True,
        )  # fmt: skip
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def filmstrip(frames: Sequence[Frame], columns: int = 6) -> Figure:
    """Some of the frames beside each other, samples above their density."""
    n = min(columns, len(frames))
    last = len(frames) - 1
    shown = [frames[round(i * last / max(1, n - 1))] for i in range(n)]
    figure = Figure(figsize=(1.9 * n, 4.0), layout="constrained")
    grid = figure.subplots(2, n, squeeze=False)
    for column, frame in zip(grid.T, shown, strict=True):
        _draw(column, frame)
        column[0].set_title(f"t = {frame[0]:.2f}", fontsize=9)
    return figure


def _image(frame: Frame) -> Image.Image:
    figure = Figure(figsize=(5.6, 2.9), dpi=100)
    panels = figure.subplots(1, 2)
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.01, top=0.92, wspace=0.02)
    _draw(panels, frame)
    figure.suptitle(f"t = {frame[0]:.2f}", fontsize=10, y=0.985)
    written = io.BytesIO()
    figure.savefig(written, format="png")
    written.seek(0)
    return Image.open(written).convert("RGB").quantize(_COLOURS, dither=Image.Dither.NONE)


def _draw(panels: Sequence[Axes], frame: Frame) -> None:
    _, points, density = frame
    left, right = panels
    left.plot(points[:, 0], points[:, 1], ".", color=_INK, markersize=1.5)
    left.set_xlim(-HALF, HALF)
    left.set_ylim(-HALF, HALF)
    left.set_aspect("equal")
    right.imshow(density.numpy(), cmap="viridis", vmin=0.0, interpolation="bilinear")
    for axes in panels:
        axes.set_xticks([])
        axes.set_yticks([])
