"""Resident memory of a call, by the kernel's own book; knows no library of tensors."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

__all__ = ["ALLOCATOR", "growth"]

# Small blocks come from the heap and stay there; everything larger comes from the kernel and goes
# back at once, so that what is resident is what is alive. (glibc reads these at the start.)
ALLOCATOR: Mapping[str, str] = {
    "MALLOC_MMAP_THRESHOLD_": "16384",
    "MALLOC_TRIM_THRESHOLD_": "16384",
}
_PROCESS = Path("/proc/self")


def growth(run: Callable[[], object]) -> int | None:
    """Bytes by which the resident memory of this process rises at most during a call.

    Args:
        run: What to call; it should have run before, so that nothing is compiled meanwhile.

    Returns:
        The rise above what was resident before; None where the kernel keeps no such book.
    """
    if not sys.platform.startswith("linux"):
        return None
    gc.collect()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        (_PROCESS / "clear_refs").write_text("5")  # the peak begins anew (proc(5))
        before = _kib("VmRSS")
        run()
        return 1024 * max(0, _kib("VmHWM") - before)
    except OSError:
        return None


def _kib(name: str) -> int:
    lines = (_PROCESS / "status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
