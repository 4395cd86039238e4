"""Indices out of range: an error in words on any number of threads, and nothing else afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ctflow.backends.compiled.build import built
from ctflow.backends.compiled.ranges import out_of_range, thrown_behind

_ROWS = 4096  # work for several threads


@pytest.fixture
def _two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


class Reads(nn.Module):
    """Indexing of each kind, each with indices of its own."""

    def forward(self, x: Tensor, rows: Tensor, columns: Tensor, places: Tensor) -> list[Tensor]:
        """Rows of x, an element of each row, and one row added up."""
        found = x.gather(1, columns.unsqueeze(1))
        total = torch.zeros_like(x[0]).index_put((places,), x[:, 0], accumulate=True)
        return [x[rows].exp(), found.exp(), total]


@pytest.mark.compiler
@pytest.mark.usefixtures("_two_threads")
def test_an_index_out_of_range_is_an_error_on_two_threads(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of native's kind, for each kind of indexing; and the next call is right again."""
    monkeypatch.setenv("CTFLOW_CACHE_DIR", str(tmp_path))
    x = torch.randn(_ROWS, 64, dtype=torch.float64)
    rows, columns, places = (torch.randint(0, n, (_ROWS,)) for n in (_ROWS, 64, 64))
    program = built(Reads(), (x, rows, columns, places), None, "reads")

    def check() -> None:
        found = program([x, rows, columns, places])
        for one, wanted in zip(found, Reads()(x, rows, columns, places), strict=True):
            torch.testing.assert_close(one, wanted)

    check()
    for indices, size, wrong in ((rows, _ROWS, -_ROWS - 1), (columns, 64, 64), (places, 64, 1000)):
        kept = int(indices[_ROWS - 7])
        indices[_ROWS - 7] = wrong
        with pytest.raises(IndexError, match=f"a dimension of size {size} that is out of range"):
            program([x, rows, columns, places])
        indices[_ROWS - 7] = kept
        check()


_KERNEL = """
extern "C"  void  kernel(double* out_ptr0)
{
    #pragma omp parallel num_threads(2)
    {
        #pragma omp for simd simdlen(4)  collapse(2)
        for(int64_t x0=0; x0<8; x0+=1)
        {
            for(int64_t x1=0; x1<8; x1+=1)
            {
                { AOTI_TORCH_CHECK(x1 < 7L, "index out of bounds: x1 < 7L"); }
            }
        }
        #pragma omp for
        for(int64_t x0=0; x0<8; x0+=1)
        {
            out_ptr0[x0] = 0;
        }
        #pragma omp single
        {
            AOTI_TORCH_CHECK(out_ptr0[0] > 1L, "index out of bounds: 1");
        }
    }
}
"""


def test_each_check_is_caught_in_the_iteration_that_it_is_in() -> None:
    """And thrown again behind the parallel region."""
    lines = [line.strip() for line in thrown_behind(_KERNEL).splitlines()]
    assert "#pragma omp for  collapse(2)" in lines  # what throws may not be simd
    inner = lines.index("for(int64_t x1=0; x1<8; x1+=1)")
    assert lines[inner + 1] == "{try {"
    assert sum("catch (...)" in line for line in lines) == 2
    assert lines[-2].startswith("if (ctflow_error)")
    assert not any("AOTI_TORCH_CHECK" in line for line in lines)


def test_a_kernel_without_a_check_stays_as_it_is() -> None:
    """It is the same object."""
    source = _KERNEL.replace("AOTI_TORCH_CHECK", "PLAIN")
    assert thrown_behind(source) is source


def test_other_errors_are_not_about_indices() -> None:
    """And a size that is not known is not said."""
    assert out_of_range(RuntimeError("out of memory")) is None
    assert "of size" not in str(out_of_range(RuntimeError("index out of bounds: tmp1 < ks0")))
