"""Writes the lower end of what ctflow supports as pins, for an environment that tests it.

Usage: python .ci/lowest_versions.py testing plots data flows > lowest.txt
       python -m pip install . -r lowest.txt
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

PROJECT = Path(__file__).parents[1] / "pyproject.toml"


def lowest(extras: list[str]) -> list[str]:
    """Pins of the runtime dependencies and of these extras, each at its lower bound."""
    project = tomllib.loads(PROJECT.read_text())["project"]
    texts = [*project["dependencies"]]
    for extra in extras:
        texts += project["optional-dependencies"][extra]
    return [_pin(Requirement(text)) for text in texts]


def _pin(requirement: Requirement) -> str:
    bounds = [each.version for each in requirement.specifier if each.operator == ">="]
    if len(bounds) != 1:
        raise SystemExit(f"lowest versions: {requirement} has no lower bound, or several")
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    return f"{requirement.name}{extras}=={bounds[0]}"


if __name__ == "__main__":
    sys.stdout.write("\n".join(lowest(sys.argv[1:])) + "\n")
