"""The pytest plugin, which imports neither ctflow nor torch when it is loaded.

It is installed as a module of its own beside the package, so that test runs that have nothing to do
with vector fields pay nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest

_MARKER = (
    "dynamics(shape=..., times=(0, 1), **settings): check the vector field that the test returns "
    "with ctflow.testing.check_dynamics; `shape` is that of a state, or give `states`."
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --ctflow-backend."""
    group = parser.getgroup("ctflow")
    group.addoption(
        "--ctflow-backend",
        action="append",
        default=[],
        metavar="NAME",
        help="backend for tests that ask for `ctflow_backend`; again for another one; "
        "otherwise every one that is installed",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line("markers", _MARKER)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each backend, where a test asks for one."""
    if "ctflow_backend" not in metafunc.fixturenames:
        return
    chosen = metafunc.config.getoption("--ctflow-backend")
    names = chosen or import_module("ctflow.backends").available()
    metafunc.parametrize("ctflow_backend", list(names))


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a marked test and check the vector field that it returns."""
    marker = pyfuncitem.get_closest_marker("dynamics")
    if marker is None:
        return None
    names = pyfuncitem._fixtureinfo.argnames  # pyright: ignore[reportPrivateUsage]
    field: Any = pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names})
    if field is None:
        pytest.fail("a test marked `dynamics` must return a vector field f(t, y)", pytrace=False)
    testing = import_module("ctflow.testing")
    try:
        testing.check_dynamics(field, *marker.args, **_settings(dict(marker.kwargs)))
    except testing.CheckFailed as error:
        pytest.fail(str(error), pytrace=False)
    return True


def _settings(given: dict[str, Any]) -> dict[str, Any]:
    """`shape` becomes a state of zeros; its dtype is `dtype`, or torch's default."""
    settings = given.copy()
    shape, dtype = settings.pop("shape", None), settings.pop("dtype", None)
    if shape is not None:
        settings["states"] = import_module("torch").zeros(shape, dtype=dtype)
    return settings
