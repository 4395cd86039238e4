"""Elementary functions that are written out: right over every magnitude, however they are used."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ctflow.backends.compiled import elementary
from ctflow.backends.compiled.build import built

pytestmark = pytest.mark.compiler


class _Both(nn.Module):
    """By vectors, by vectors side by side (beside float64), one for a row; with several readers."""

    def forward(self, x: Tensor, wide: Tensor) -> tuple[Tensor, ...]:
        """Of every number, of each times one of float64, of few; a sum, and a table."""
        tanh, softplus = elementary.tanh(x), elementary.softplus(x)
        few = elementary.tanh(x[:5] + x[5:10])
        table = elementary.softplus(x[5:9]).unsqueeze(1) * elementary.tanh(x[-99:]).unsqueeze(0)
        total = (1 - tanh * tanh).nan_to_num().sum()
        return tanh, softplus, tanh.double() * wide, few, total, table


@pytest.fixture(
    params=[True, pytest.param(False, marks=pytest.mark.slow)],
    ids=["vectors", "numbers"],
    scope="module",
)
def found(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Tensor, ...]:
    """Numbers of every magnitude, numbers of float64, and what a program makes of them."""
    small = torch.logspace(-44, 2.03, 400_001, dtype=torch.float64).float()
    ends = torch.tensor([torch.inf, torch.nan, 0.0, 9.2, 120.0])
    x = torch.cat([ends, small, torch.linspace(0, 10, 400_001)])
    x = torch.cat([x, -x])
    wide = torch.rand(len(x), dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CTFLOW_CACHE_DIR", str(tmp_path_factory.mktemp("programs")))
        with torch._inductor.config.patch({} if request.param else {"cpp.simdlen": 1}):
            return (x, wide, *built(_Both(), [x, wide], None, "functions")([x, wide]))


def _units(got: Tensor, wanted: Tensor) -> float:
    """Largest error in units of the last place, of float32."""
    size = wanted.abs().float()
    unit = (size - torch.nextafter(size, torch.zeros(()))).double().clamp(min=1e-45)
    return float(((got.double() - wanted).abs() / unit).max())


def test_tanh_is_within_three_units_in_the_last_place(found: tuple[Tensor, ...]) -> None:
    """Odd to the last bit, at most 1, and NaN where it should be."""
    x, wide, tanh, softplus, widened, few, total, table = found
    known = ~x.isnan()
    assert torch.equal(tanh.isnan(), ~known)
    half = len(x) // 2
    assert torch.equal(tanh[half:][known[half:]], -tanh[:half][known[:half]])
    assert torch.equal(torch.signbit(tanh[known]), torch.signbit(x[known]))
    assert bool((tanh[known].abs() <= 1).all())
    assert tanh[[0, 4]].tolist() == [1.0, 1.0]
    assert _units(tanh[known], torch.tanh(x[known].double())) <= 3
    torch.testing.assert_close(widened, tanh.double() * wide, rtol=1e-15, atol=0, equal_nan=True)
    torch.testing.assert_close(few, torch.tanh(x[:5] + x[5:10]), equal_nan=True)
    torch.testing.assert_close(table, softplus[5:9].unsqueeze(1) * tanh[-99:].unsqueeze(0))
    torch.testing.assert_close(total, (1 - tanh * tanh).nan_to_num().sum(), rtol=1e-4, atol=0)


def test_softplus_is_within_three_units_in_the_last_place(found: tuple[Tensor, ...]) -> None:
    """Down to the smallest number of float32; nothing below, and infinite at infinity."""
    x, softplus = found[0], found[3]
    known = x.isfinite()
    assert torch.equal(softplus.isnan(), x.isnan())
    assert softplus[x.isinf()].tolist() == [torch.inf, 0.0]
    exact = x[known].double()
    assert _units(softplus[known], exact.clamp(min=0) + torch.log1p(torch.exp(-exact.abs()))) <= 3
