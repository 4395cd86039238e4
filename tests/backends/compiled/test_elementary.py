"""Elementary functions that are written out: right over every magnitude, however they are used."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ctflow.backends.compiled.build import built
from ctflow.backends.compiled.elementary import fast_tanh

pytestmark = pytest.mark.compiler


class _Tanh(nn.Module):
    """By vectors, by vectors side by side (beside float64), and with several readers."""

    def forward(self, x: Tensor, wide: Tensor) -> tuple[Tensor, ...]:
        """Of every number, and of each times one of float64."""
        found = fast_tanh(x)
        return found, found.double() * wide, (1 - found * found).sum(), fast_tanh(x[:5] + x[5:10])


@pytest.mark.parametrize("vectors", [True, False])
def test_tanh_is_within_three_units_in_the_last_place(
    vectors: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Over every magnitude; odd to the last bit; at most 1; infinity and NaN as they should be."""
    monkeypatch.setenv("CTFLOW_CACHE_DIR", str(tmp_path))
    small = torch.logspace(-44, 1.5, 400_001, dtype=torch.float64).float()
    ends = torch.tensor([torch.inf, torch.nan, 0.0, 9.2, 20.0])
    x = torch.cat([ends, small, torch.linspace(0, 10, 400_001)])
    x = torch.cat([x, -x])
    wide = torch.rand(len(x), dtype=torch.float64)
    with torch._inductor.config.patch({} if vectors else {"cpp.simdlen": 1}):
        found, widened, total, few = built(_Tanh(), [x, wide], None, "tanh")([x, wide])
    half = len(x) // 2
    nan = x.isnan()
    assert torch.equal(found.isnan(), nan)
    assert torch.equal(found[half:][~nan[half:]], -found[:half][~nan[:half]])
    assert torch.equal(torch.signbit(found[~nan]), torch.signbit(x[~nan]))
    assert bool((found[~nan].abs() <= 1).all())
    assert found[[0, 4]].tolist() == [1.0, 1.0]
    wanted = torch.tanh(x.double())[~nan]
    size = wanted.abs().float()
    unit = (size - torch.nextafter(size, torch.zeros(()))).double().clamp(min=1e-45)
    assert float(((found[~nan].double() - wanted).abs() / unit).max()) <= 3
    torch.testing.assert_close(widened, found.double() * wide, rtol=1e-15, atol=0, equal_nan=True)
    assert bool(total.isnan())
    torch.testing.assert_close(few, torch.tanh(x[:5] + x[5:10]), equal_nan=True)
