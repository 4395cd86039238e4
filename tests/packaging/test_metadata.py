"""What pyproject.toml, constraints.txt, CITATION.cff and CHANGELOG.md say."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib

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


def test_the_lower_end_can_be_written_as_pins() -> None:
    """Every runtime requirement has one lower bound, which the release's checks install."""
    command = [sys.executable, str(ROOT / ".ci" / "lowest_versions.py"), "testing"]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    texts = [*PROJECT["dependencies"], *EXTRAS["testing"]]
    pins = [Requirement(line) for line in result.stdout.split()]
    assert [pin.name for pin in pins] == [Requirement(text).name for text in texts]
    for pin, text in zip(pins, texts, strict=True):
        (bound,) = pin.specifier
        assert bound.version in Requirement(text).specifier


def test_version_and_date_are_the_same_everywhere() -> None:
    """The module's version is that of the citation and of the changelog's newest release."""
    citation = (ROOT / "CITATION.cff").read_text()
    changelog = (ROOT / "CHANGELOG.md").read_text()
    sections = re.findall(r"^## \[(.*?)\](?: - (\S+))?$", changelog, re.MULTILINE)
    assert sections[0] == ("Unreleased", "")
    version, date = sections[1]
    assert f"\nversion: {version}\n" in citation
    assert f"\ndate-released: {date}\n" in citation
    assert Version(ctflow.__version__) >= Version(version)
    if not Version(ctflow.__version__).is_devrelease:
        assert ctflow.__version__ == version


def test_every_python_that_is_announced_is_supported() -> None:
    """The classifiers begin where `requires-python` does."""
    announced = [c.rpartition(" ")[2] for c in PROJECT["classifiers"] if ":: 3." in c]
    assert f">={announced[0]}" == PROJECT["requires-python"]
    assert announced == sorted(announced, key=Version)
