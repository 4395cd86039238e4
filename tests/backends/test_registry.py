"""Backends are found by name, imported only when named, and cannot break each other."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest
import torch

from ctflow import BackendUnavailable, InvalidProblem, ODEProblem, Solution, Solver, odeint
from ctflow.backends import Backend, Feature, available, get, register, registry
from tests.problems import decay

Y0, T = torch.ones(2), torch.tensor([0.0, 1.0])


class Borrowed:
    """A third party's backend: it lets native do the work."""

    name = "borrowed"
    features = frozenset({Feature.ADAPTIVE})

    def refuse(self, problem: ODEProblem, solver: Solver) -> list[str]:
        return []

    def solve(self, problem: ODEProblem, solver: Solver) -> Solution:
        return get("native").solve(problem, solver)


class Empty:
    """Has nothing that a backend must have."""


BORROWED = Borrowed()


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Registrations and loaded backends of a test are its own."""
    monkeypatch.setattr(registry, "_registered", {})
    monkeypatch.setattr(registry, "_made", {})


def announce(monkeypatch: pytest.MonkeyPatch, **targets: str) -> None:
    """Let installed packages announce these backends."""
    points = EntryPoints(EntryPoint(n, value, registry.GROUP) for n, value in targets.items())

    def entry_points(**wanted: Any) -> EntryPoints:  # noqa: ANN401
        return points.select(**wanted)

    monkeypatch.setattr(registry, "entry_points", entry_points)


@pytest.mark.parametrize("attribute", ["Borrowed", "BORROWED"])
def test_a_registered_class_or_object_is_used_by_its_name(attribute: str) -> None:
    """From an import string, which imports nothing before the name is used."""
    register("borrowed", f"{__name__}:{attribute}")
    assert "borrowed" in available()
    assert torch.equal(odeint(decay, Y0, T, backend="borrowed"), odeint(decay, Y0, T))


def test_an_announced_backend_is_used_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the metadata of an installed package."""
    announce(monkeypatch, borrowed=f"{__name__}:Borrowed")
    assert isinstance(get("borrowed"), Borrowed)
    assert "borrowed" in registry.names()


def test_a_backend_is_made_once() -> None:
    """The same object for the same name, and an object is itself."""
    assert get("native") is get("native")
    assert get(BORROWED) is BORROWED


def test_registering_again_replaces_what_was_loaded() -> None:
    """The last registration holds."""
    register("mine", f"{__name__}:Borrowed")
    first = get("mine")
    register("mine", f"{__name__}:BORROWED")
    assert get("mine") is BORROWED is not first


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    """The message lists them and says what to install."""
    with pytest.raises(BackendUnavailable, match=r"'natvie'; known here: 'native', .*install"):
        get("natvie")


@pytest.mark.parametrize(
    "text",
    ["", "raise RuntimeError('broken on purpose')", "import nothing_", "1 +"],
    ids=["no attribute", "raises", "imports", "syntax"],
)
def test_a_broken_plug_in_breaks_nothing_else(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is left out of the available ones; named, it says what is broken and who else there is."""
    (tmp_path / "broken_plug_in.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "broken_plug_in", raising=False)
    announce(monkeypatch, broken="broken_plug_in:Solver", borrowed=f"{__name__}:Borrowed")
    assert {"native", "borrowed"} <= set(available())
    assert "broken" not in available()
    with pytest.raises(BackendUnavailable, match=r"'broken' cannot be loaded.*others.*'native'"):
        odeint(decay, Y0, T, backend="broken")


def test_what_is_no_backend_is_refused() -> None:
    """By what it lacks."""
    register("empty", f"{__name__}:Empty")
    with pytest.raises(BackendUnavailable, match="Empty lacks name, features, refuse or solve"):
        get("empty")
    with pytest.raises(InvalidProblem, match="`backend` must be a name or a backend object"):
        get(Empty())  # type: ignore[arg-type]


@pytest.mark.parametrize("target", ["module", "module:", ":attribute", ""])
def test_a_target_names_module_and_attribute(target: str) -> None:
    """With a colon between them."""
    with pytest.raises(InvalidProblem, match=r"`target` must read 'module:attr'"):
        register("mine", target)


def test_a_built_in_name_cannot_be_taken() -> None:
    """Nobody's "native" is another solver than ours."""
    with pytest.raises(InvalidProblem, match="`name` must be new, got the built-in 'native'"):
        register("native", f"{__name__}:Borrowed")


@pytest.mark.parametrize("name", available())
def test_every_installed_backend_keeps_the_protocol(name: str) -> None:
    """It has the name under which it is found, and refuses no plain problem."""
    backend = get(name)
    assert isinstance(backend, Backend)
    assert backend.name == name
    assert backend.features <= frozenset(Feature)
    assert backend.refuse(ODEProblem(decay, Y0, T), Solver(backend=name)) == []


def run(code: str) -> str:
    """What a new process prints."""
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


OTHERS = ("torchdiffeq", "torchsde", "scipy", "sklearn", "matplotlib", "typer", "hypothesis")
COMPILER = ("torch._dynamo", "torch._inductor")


def test_importing_ctflow_imports_no_other_solver_and_no_compiler() -> None:
    """Nor does a solve with the native one, nor naming the known backends."""
    code = (
        "import sys, torch, ctflow, ctflow.dynamics; from ctflow.backends import registry;"
        "import ctflow.latent, ctflow.testing;"
        "ctflow.odeint(lambda t, y: -y, torch.ones(2), [0.0, 1.0]); registry.names();"
        f"print([name for name in {(*OTHERS, *COMPILER)!r} if name in sys.modules])"
    )
    assert run(code) == "[]"


@pytest.mark.once
def test_a_missing_library_leaves_the_rest_usable() -> None:
    """Where torchdiffeq cannot be imported, native works and the message says what is missing."""
    code = (
        "import sys; sys.modules['torchdiffeq'] = None\n"
        "import torch, ctflow; from ctflow.backends import available\n"
        "ctflow.odeint(lambda t, y: -y, torch.ones(2), [0.0, 1.0])\n"
        "try: ctflow.odeint(lambda t, y: -y, torch.ones(2), [0.0, 1.0], backend='torchdiffeq')\n"
        "except ctflow.BackendUnavailable as error: print(available()[0], str(error))"
    )
    printed = run(code)
    assert printed.startswith("native ")
    assert "torchdiffeq" in printed
    assert "nstall" in printed
