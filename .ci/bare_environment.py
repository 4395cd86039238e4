"""Makes an environment that holds ctflow's runtime dependencies and pytest, and nothing else.

Every distribution that ctflow and pytest require, without any optional extra, is linked from the
environment that runs this script, so nothing is downloaded and torch takes no space twice. What is
not linked cannot be imported: the new environment sees no other directory.

Usage: .venv/bin/python .ci/bare_environment.py .venv-bare
"""

from __future__ import annotations

import subprocess
import sys
import venv
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOTS = ("ctflow", "pytest")
WHERE = "import sysconfig; print(sysconfig.get_path('purelib'))"
LIST_NAMES = "from importlib.metadata import distributions as d; print(*(x.name for x in d()))"


def requirements(name: str, extras: frozenset[str]) -> list[Requirement]:
    """What a distribution requires on this machine with these of its extras."""
    parsed = [Requirement(text) for text in metadata.requires(name) or []]
    return [
        requirement
        for requirement in parsed
        if requirement.marker is None
        or any(requirement.marker.evaluate({"extra": extra}) for extra in ("", *extras))
    ]


def closure(roots: tuple[str, ...]) -> set[str]:
    """Canonical names of the distributions that the roots need, themselves included."""
    seen: set[tuple[str, frozenset[str]]] = set()
    pending = [(name, frozenset[str]()) for name in roots]
    while pending:
        entry = pending.pop()
        if entry in seen:
            continue
        seen.add(entry)
        pending += [
            (canonicalize_name(found.name), frozenset(found.extras))
            for found in requirements(*entry)
        ]
    return {canonicalize_name(name) for name, _ in seen}


def link(name: str, site_packages: Path) -> None:
    """Link the packages, modules and metadata of one distribution into `site_packages`."""
    distribution = metadata.distribution(name)
    if distribution.files is None:
        raise SystemExit(f"bare environment: {name} does not say which files are its own")
    for part in {file.parts[0] for file in distribution.files} - {"..", "__pycache__"}:
        target = site_packages / part
        if not target.exists():
            target.symlink_to(Path(str(distribution.locate_file(part))).resolve())


def main(folder: Path) -> None:
    """Make the environment anew and check what it holds."""
    venv.EnvBuilder(clear=True, symlinks=True, with_pip=False).create(folder)
    python = folder / "bin" / "python"
    answer = subprocess.run([python, "-c", WHERE], check=True, capture_output=True, text=True)
    wanted = closure(ROOTS)
    for name in sorted(wanted):
        link(name, Path(answer.stdout.strip()))
    listed = subprocess.run([python, "-c", LIST_NAMES], check=True, capture_output=True, text=True)
    found = {canonicalize_name(name) for name in listed.stdout.split()}
    if found != wanted:
        raise SystemExit(f"bare environment: expected {sorted(wanted)}, got {sorted(found)}")
    sys.stdout.write(f"{folder}: {len(found)} distributions, none from an optional extra\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
