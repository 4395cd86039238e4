"""Options, markers and settings that every test shares."""

from __future__ import annotations

import gc
import importlib.util
import os
import warnings

import pytest
import torch

if importlib.util.find_spec("hypothesis") is not None:  # absent in the run with no extra installed
    from hypothesis import HealthCheck, settings

    # The same examples every time, and no limit on how long one takes: a busy machine is no fault.
    settings.register_profile(
        "ci", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
    # New examples each time and more of them: pytest --hypothesis-profile explore
    settings.register_profile(
        "explore", settings.get_profile("ci"), derandomize=False, max_examples=1000
    )
    settings.load_profile("ci")

# Torch's compiler imports it when it first needs it, and it cannot be imported where warnings are
# errors: what is left of the first attempt then makes every later one fail.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    if importlib.util.find_spec("setuptools") is not None:
        importlib.import_module("setuptools")

os.environ.setdefault("MPLBACKEND", "Agg")  # no test opens a window
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # the workers share the cores among themselves already


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --slow and --few."""
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")
    parser.addoption(
        "--few", action="store_true", help="of each test's cases the first, the last, one between"
    )


def pytest_report_header() -> list[str]:
    """Name what the results depend on."""
    asserts = "on" if __debug__ else "off (python -O)"
    return [f"torch {torch.__version__}, {torch.get_num_threads()} threads, asserts {asserts}"]


def pytest_collection_finish() -> None:
    """Five thousand collected tests need not be looked through at each collection of garbage."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(trylast=True)  # what -m and -k leave
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what this run or this machine cannot do, with the reason; and leave out with --few."""
    no_compiler = os.environ.get("CTFLOW_NO_COMPILER") or ("" if __debug__ else "python -O")
    if not no_compiler and torch.__version__ < (2, 13):
        no_compiler = "torch is older than 2.13"
    reasons = {
        "slow": None if config.getoption("--slow") else "slow; run with --slow",
        "gpu": None if torch.cuda.is_available() else "no CUDA device",
        "compiler": f"compiled tests are off: {no_compiler}" if no_compiler else None,
    }
    for item in items:
        for marker, reason in reasons.items():
            if reason is not None and item.get_closest_marker(marker) is not None:
                item.add_marker(pytest.mark.skip(reason=reason))
    if config.getoption("--few"):
        kept = _few([item for item in items if item.get_closest_marker("skip") is None])
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = [item for item in items if item in kept]


def _few(items: list[pytest.Item]) -> set[pytest.Item]:
    """Of each test's cases the first, the last and one between."""
    tests: dict[tuple[object, ...], list[pytest.Item]] = {}
    for item in items:
        tests.setdefault((item.parent, getattr(item, "originalname", item)), []).append(item)
    return {cases[i] for cases in tests.values() for i in (0, len(cases) // 2, -1)}
