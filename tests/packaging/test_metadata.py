"""What pyproject.toml, constraints.txt and the built package say."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import ctflow
from tests.packaging.workplace import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
LINES = (ROOT / "constraints.txt").read_text().splitlines()
PINS = {
    canonicalize_name(name): version
    for name, _, version in (line.partition("==") for line in LINES if not line.startswith("#"))
}
TESTED = [*PROJECT["dependencies"], *(x for extra in EXTRAS for x in EXTRAS[extra])]


@pytest.mark.parametrize("text", TESTED)
def test_every_requirement_has_a_pin_that_meets_it(text: str) -> None:
    """The version we test with is one that we say we support."""
    requirement = Requirement(text)
    if requirement.name != "ctflow":
        assert Version(PINS[canonicalize_name(requirement.name)]) in requirement.specifier


@pytest.mark.parametrize(("name", "version"), PINS.items())
def test_a_pin_is_a_plain_public_version(name: str, version: str) -> None:
    """No build's local tag and no path, so that every machine can install it."""
    assert Version(version).local is None
    assert str(Version(version)) == version, name


def test_the_extras_are_the_documented_ones() -> None:
    """One extra for each purpose; `dev` has what the tests need."""
    assert set(EXTRAS) == {"testing", "plots", "data", "flows", "series", "docs", "dev"}
    assert "ctflow[testing,plots,data,flows,series,docs]" in EXTRAS["dev"]


def test_torch_may_be_older_than_the_pin() -> None:
    """The pin is what we test with; the requirement is what we support."""
    assert "torch>=2.11" in PROJECT["dependencies"]
    assert PROJECT["requires-python"] == ">=3.11"


def test_the_built_wheel_holds_the_package_alone(tmp_path: Path) -> None:
    """Types are announced, the tests stay out, and the version is the module's."""
    pytest.importorskip("build")
    pytest.importorskip("hatchling")
    arguments = ["--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run([sys.executable, "-m", "build", *arguments], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert wheel.name.startswith(f"ctflow-{ctflow.__version__}-")
    assert "ctflow/py.typed" in names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"ctflow", "ctflow_pytest.py"}
