"""Hypothesis strategies for random initial value problems."""

from __future__ import annotations

from hypothesis import strategies as st

from tests.property.trial import CORES, PARTS, SHAPES, Choices

__all__ = ["times", "trials"]


@st.composite
def times(draw: st.DrawFn, longest: float = 5.0) -> tuple[float, ...]:
    """Two to five output times in either direction, over an interval of at most `longest`."""
    n = draw(st.integers(2, 5))
    start = draw(st.floats(-1, 1, allow_subnormal=False))
    length = draw(st.floats(0.1, longest, allow_subnormal=False))
    direction = draw(st.sampled_from([1, -1]))
    parts = draw(st.lists(st.integers(1, 10), min_size=n - 1, max_size=n - 1))
    shares = [sum(parts[: i + 1]) / sum(parts) for i in range(n - 1)]
    return (start, *(start + direction * length * share for share in shares))


@st.composite
def trials(draw: st.DrawFn, batched: bool | None = None, longest: float = 5.0) -> Choices:
    """Random dynamics, state, times and loss.

    Args:
        draw: Given by hypothesis.
        batched: True: always a batch of independent systems; False: never; None: either.
        longest: Longest interval; Lipschitz constants are 1.
    """
    wanted = draw(st.booleans()) if batched is None else batched
    return Choices(
        core=draw(st.sampled_from(sorted(CORES))),
        shape=draw(st.sampled_from(sorted(SHAPES))),
        batch=draw(st.integers(1, 3)) if wanted else None,
        times=draw(times(longest)),
        loss=draw(st.sampled_from(["last", "interior", "all"])),
        seed=draw(st.integers(0, 10_000)),
        wanted=draw(st.sampled_from([PARTS, PARTS, *((part,) for part in PARTS), PARTS[:2]])),
    )
