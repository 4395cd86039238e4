"""What a checkout's reproductions are, by every name that they go by."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ctflow.cli.checkout import scripts
from ctflow.errors import CtflowError

__all__ = ["ALL", "Listed", "listing", "named"]

ALL = "all"


@dataclass(frozen=True)
class Listed:
    """One reproduction as the command line knows it.

    Args:
        name: Of its script.
        of: What of the paper it reproduces.
        shows: What it shows, in one line.
        minutes: Of one processor, by preset; empty where nobody has measured them.
        aliases: Other names.
        alone: Whether it measures times that other work beside it would spoil.
    """

    name: str
    of: str = ""
    shows: str = ""
    minutes: Mapping[str, float] = field(default_factory=dict[str, float])
    aliases: tuple[str, ...] = ()
    alone: bool = False


def listing(root: Path) -> list[Listed]:
    """The reproductions of a checkout in the order of its registry, then scripts beyond it."""
    found = {name: Listed(name) for name in scripts(root)}
    known = [
        Listed(each.name, each.of, each.shows, each.minutes, each.aliases, each.alone)
        for each in _registry(root)
        if each.name in found
    ]
    return known + [found[name] for name in found if name not in {each.name for each in known}]


def named(root: Path, names: Sequence[str]) -> list[Listed]:
    """The reproductions that names and aliases stand for, each once; `all` stands for every one.

    Raises:
        CtflowError: If there is none of a name.
    """
    known = listing(root)
    by_name = {name: each for each in known for name in (each.name, *each.aliases)}
    unknown = [name for name in names if name not in by_name and name != ALL]
    if unknown:
        raise CtflowError(
            f"there is no reproduction {unknown[0]!r}; there are: "
            f"{', '.join(sorted(each.name for each in known))}. Give one of these names, or `all`; "
            "`ctflow reproduce --list` says what they show."
        )
    wanted = known if ALL in names else [by_name[name] for name in names]
    return list({each.name: each for each in wanted}.values())


def _registry(root: Path) -> Sequence[Any]:
    """What the checkout says of its scripts; nothing where it says nothing."""
    path = root / "reproductions" / "_harness" / "registry.py"
    if not path.is_file():
        return ()
    name = "ctflow_reproductions_registry"  # another checkout's may be imported already
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise CtflowError(f"{path} cannot be loaded. Check that it is a Python file.")
    module: Any = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up while it runs
    spec.loader.exec_module(module)
    return module.REPRODUCTIONS
