"""Event times: the paper's figure 7, and the coal-mining disasters of Great Britain."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Events", "bursts", "coal_mining"]

# Days between explosions in coal mines that killed ten or more, from 15 March 1851 to 22 March
# 1962: R. G. Jarrett, "A note on the intervals between coal-mining disasters", Biometrika 66 (1979)
# 191-193.
_INTERVALS = """
157 123 2 124 12 4 10 216 80 12 33 66 232 826 40 12 29 190 97 65 186 23 92 197 431 16 154 95 25 19
78 202 36 110 276 16 88 225 53 17 538 187 34 101 41 139 42 1 250 80 3 324 56 31 96 70 41 93 24 91
143 16 27 144 45 6 208 29 112 43 193 134 420 95 125 34 127 218 2 0 378 36 15 31 215 11 137 4 15 72
96 124 50 120 203 176 55 93 59 315 59 61 1 13 189 345 20 81 286 114 108 188 233 28 22 61 78 99 326
275 54 217 113 32 388 151 361 312 354 307 275 78 17 1205 644 467 871 48 123 456 498 49 131 182 255
194 224 566 462 228 806 517 1643 54 326 1312 348 745 217 120 275 20 66 292 4 368 307 336 19 329 330
312 536 145 75 364 37 19 156 47 129 1630 29 217 7 18 1358 2366 952 632
"""
_FIRST = 1851 + 74 / 365.25  # 15 March 1851 as a decimal year


class Events(NamedTuple):
    """When something happened, and when it was watched.

    Attributes:
        t: Times, [N], growing; two on one day stand apart by a day's thousandth.
        windows: Intervals that the model is fitted on, [W, 2].
        held_out: Intervals that it is judged on, [W', 2]; none for a fit alone.
        unit: Of time, for axes.
    """

    t: Tensor
    windows: Tensor
    held_out: Tensor
    unit: str

    def inside(self, windows: Tensor) -> Tensor:
        """The events inside some intervals."""
        t = self.t.unsqueeze(1)
        return self.t[((t >= windows[:, 0]) & (t < windows[:, 1])).any(dim=1)]


def bursts() -> Events:
    """Figure 7's twenty events: two bursts of ten on [0, 5], 0.1 apart, read off the figure."""
    t = torch.cat([0.5 + 0.1 * torch.arange(10), 3.2 + 0.1 * torch.arange(10)]).double()
    none = torch.empty(0, 2, dtype=torch.float64)
    return Events(t, torch.tensor([[0.0, 5.0]], dtype=torch.float64), none, "time")


def coal_mining(*, years: float = 3.0, every: int = 4) -> Events:
    """191 disasters from 1851 to 1962, every so-many-th block of years held out.

    Args:
        years: Length of a block.
        every: One block of so many is held out.
    """
    gaps = torch.tensor([0.0] + [float(x) for x in _INTERVALS.split()], dtype=torch.float64)
    gaps = torch.where(gaps == 0, 1e-3, gaps)
    gaps[0] = 0.0
    t = _FIRST + gaps.cumsum(0) / 365.25
    n = int((1962.25 - 1851.0) // years)
    edges = 1851.0 + years * torch.arange(n + 1, dtype=torch.float64)
    edges[-1] = 1962.25
    blocks = torch.stack([edges[:-1], edges[1:]], dim=1)
    held = torch.arange(n) % every == every // 2
    return Events(t, blocks[~held], blocks[held], "year")
