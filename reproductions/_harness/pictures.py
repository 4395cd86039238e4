"""Pictures that lie in a page itself, small enough for a phone.

This module imports Pillow, which comes with matplotlib: use it after `need("matplotlib")`.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

__all__ = ["Picture", "picture"]

_WIDEST = 1200  # pixels: more than a column of the page has, on a screen of double density
_COLOURS = 72  # figures have few; a palette is a third of the size


@dataclass(frozen=True)
class Picture:
    """An image inside a page.

    Args:
        url: All of it, as a data URI.
        width: Pixels.
        height: Pixels.
    """

    url: str
    width: int
    height: int


def picture(path: Path) -> Picture:
    """A PNG or a GIF, the former made narrower where it is wide and put on a palette."""
    with Image.open(path) as image:
        if path.suffix == ".gif":
            return _inline(path.read_bytes(), "gif", image.size)
        wide = image.convert("RGB")
    if wide.width > _WIDEST:
        height = round(wide.height * _WIDEST / wide.width)
        wide = wide.resize((_WIDEST, height), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    few = wide.quantize(_COLOURS, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    few.convert("RGB").save(out, "webp", lossless=True)  # a seventh smaller than as PNG
    return _inline(out.getvalue(), "webp", wide.size)


def _inline(data: bytes, kind: str, size: tuple[int, int]) -> Picture:
    return Picture(f"data:image/{kind};base64,{base64.b64encode(data).decode()}", *size)
