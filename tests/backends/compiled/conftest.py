"""Programs without the compiler: for all that does not depend on what it makes of them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from torch import Tensor, nn

from ctflow.backends.compiled import job, library
from ctflow.backends.compiled.linker import folders_without_spaces
from ctflow.backends.compiled.rewrite import EitherWay


@pytest.fixture
def any_folder() -> Iterator[None]:
    """What a test gives to torch.compile is linked in a folder with spaces too."""
    with folders_without_spaces():
        yield


@contextmanager
def operator_by_operator() -> Iterator[None]:
    """Programs as improved graphs, that are run as they are before they become machine code."""

    def better(both: EitherWay, *inputs: Tensor) -> tuple[Tensor, ...]:
        return both.better(*inputs)

    def built(module: nn.Module, *_: object) -> Callable[[list[Tensor]], list[Tensor]]:
        def program(inputs: list[Tensor]) -> list[Tensor]:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(EitherWay, "forward", better)
                found: Any = module(*inputs)
            return [found] if isinstance(found, Tensor) else list(found)

        return program

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "built", built)
        patch.setattr(job, "_FAMILIES", OrderedDict())
        yield


@pytest.fixture(scope="module")
def by_operator() -> Iterator[None]:
    """For all tests of a module."""
    with operator_by_operator():
        yield


@pytest.fixture(
    params=[
        "by operator",
        pytest.param("compiled", marks=[pytest.mark.slow, pytest.mark.compiler]),
    ]
)
def either_way(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """A test's programs run operator by operator, and with --slow compiled too."""
    if request.param == "by operator":
        with operator_by_operator():
            yield request.param
        return
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.getbasetemp() / "programs"
        patch.setenv("CTFLOW_CACHE_DIR", str(folder))
        yield request.param
