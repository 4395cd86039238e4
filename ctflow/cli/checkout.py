"""Finding ctflow's source checkout, and the reproductions in it."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

from ctflow.errors import CtflowError

__all__ = ["find_root", "load_script", "load_shared", "scripts"]


def find_root(start: Path, named: Path | None) -> Path:
    """The source checkout: the folder that was named, or the first one from `start` upwards.

    Raises:
        CtflowError: If there is none; the reproductions are not part of the installed package.
    """
    if named is not None:
        if _is_checkout(named):
            return named.resolve()
        raise CtflowError(
            f"`--root` must be a source checkout of ctflow, got {str(named)!r}, which has no "
            "pyproject.toml of ctflow beside reproductions/. Name the folder that has both."
        )
    root = next((folder for folder in (start, *start.parents) if _is_checkout(folder)), None)
    if root is None:
        raise CtflowError(
            "reproductions need a source checkout of ctflow, and there is none in the working "
            "directory or above it. Change to one, or name it with `--root PATH`."
        )
    return root


def scripts(root: Path) -> list[str]:
    """Names of the reproductions in a checkout."""
    found = (root / "reproductions").glob("*.py")
    return sorted(path.stem for path in found if not path.stem.startswith("_"))


def load_script(root: Path, name: str) -> ModuleType:
    """The module of one reproduction, by its path; what the scripts share becomes importable.

    Raises:
        CtflowError: If there is no such reproduction.
    """
    if name not in scripts(root):
        raise CtflowError(
            f"there is no reproduction {name!r}; there are: {', '.join(scripts(root))}. "
            "Give one of these names."
        )
    folder = root / "reproductions"
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    if spec is None or spec.loader is None:
        raise CtflowError(f"{folder / name}.py cannot be loaded. Check that it is a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up while it runs
    spec.loader.exec_module(module)
    return module


def load_shared(root: Path, module: str, lacks: str) -> Any:  # noqa: ANN401 - a module of the checkout
    """A module that the scripts share, by its dotted name below reproductions/.

    Args:
        root: The checkout.
        module: Its name.
        lacks: What a checkout without it cannot do, for the error.

    Raises:
        CtflowError: If the checkout has none.
    """
    folder = root / "reproductions"
    if not (folder / f"{module.replace('.', '/')}.py").is_file():
        raise CtflowError(f"{str(folder)!r} {lacks}. Use a complete source checkout of ctflow.")
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    return importlib.import_module(module)


def _is_checkout(folder: Path) -> bool:
    metadata = folder / "pyproject.toml"
    if not (metadata.is_file() and (folder / "reproductions").is_dir()):
        return False
    try:
        project = tomllib.loads(metadata.read_text(encoding="utf-8")).get("project", {})
    except (OSError, ValueError):
        return False
    return project.get("name") == "ctflow"
