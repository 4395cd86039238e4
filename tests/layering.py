"""Reads every import of ctflow's modules and says which ones break the import order.

A module imports only from the rows above its own, as the table in docs/design.md has it. Imports
inside functions and under TYPE_CHECKING hide cycles, so they are breaches wherever they point.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

__all__ = ["order_breaches", "public_name_breaches"]


class Place(NamedTuple):
    """Where a module stands: its row, and the rows that it may import from."""

    row: int
    over: frozenset[int]


_BACKEND = Place(6, frozenset(range(1, 5)))  # not the registry, which loads it by a string
_MODEL = frozenset({1, 2, 3, 4, 7})  # what a model sees: never a backend, never the registry
_TOP = Place(10, frozenset(range(1, 10)))

# Single modules, by name. `ctflow` and `ctflow.backends` only gather public names.
_MODULES = {
    "ctflow.errors": Place(1, frozenset()),
    "ctflow.state": Place(2, frozenset({1})),
    "ctflow.transforms": Place(2, frozenset({1})),
    "ctflow.problem": Place(3, frozenset({1, 2})),
    "ctflow.sde": Place(3, frozenset({1, 2})),
    "ctflow.dense": Place(3, frozenset({1, 2})),
    "ctflow.event": Place(3, frozenset({1, 2})),
    "ctflow.solution": Place(3, frozenset({1, 2})),
    "ctflow.backends.protocol": Place(4, frozenset({1, 2, 3})),
    "ctflow.backends.field": Place(4, frozenset({1, 2, 3})),
    "ctflow.backends.places": Place(4, frozenset()),
    "ctflow.backends.captures": Place(4, frozenset({1, 2, 3})),
    "ctflow.backends.times": Place(4, frozenset({1, 2, 3})),
    "ctflow.backends.controller": Place(4, frozenset({1})),
    "ctflow.backends.trees": Place(4, frozenset()),
    "ctflow.backends.tableau": Place(4, frozenset({1})),
    "ctflow.backends.jacobian": Place(4, frozenset()),
    "ctflow.backends.cost": Place(4, frozenset({1, 2, 3})),
    "ctflow.backends.events": Place(4, frozenset({1, 2, 3})),
    "ctflow.backends.adjoint": Place(4, frozenset({1, 2, 3})),
    "ctflow.backends.adjoint_node": Place(4, frozenset()),
    "ctflow.backends.registry": Place(5, frozenset(range(1, 5))),
    "ctflow.backends": Place(5, frozenset(range(1, 6))),
    "ctflow.api": Place(7, frozenset(range(1, 6))),
    "ctflow.api_sde": Place(7, frozenset(range(1, 6))),
    "ctflow.__main__": Place(12, frozenset({11})),
    "ctflow": Place(9, frozenset({1, 2, 3, 4, 5, 7})),
    "ctflow.dynamics.block": Place(8, _MODEL),
    "ctflow.dynamics.images": Place(8, _MODEL),
}
# Packages, whose modules import each other freely; an adapter may also be a single module.
_PACKAGES = {
    "ctflow.backends.native": _BACKEND,
    "ctflow.backends.compiled": _BACKEND,
    "ctflow.backends.torchdiffeq": _BACKEND,
    "ctflow.backends.torchsde": _BACKEND,
    "ctflow.backends.scipy": _BACKEND,
    "ctflow.dynamics": Place(8, frozenset({1, 2})),  # fields; the layer is `block`, above
    "ctflow.flows": Place(9, _MODEL | {8}),
    "ctflow.latent": Place(9, _MODEL | {8}),
    "ctflow.testing": _TOP,
    "ctflow.plotting": _TOP,
    "ctflow.compat": _TOP,
    "ctflow.cli": Place(11, frozenset(range(1, 11))),
}
# Within a row: compiled reuses native's parts; what all backends share is built up in steps, the
# field, then the tensors that it captures, then what its times and its adjoint make of both; what
# is stochastic builds on what is not.
_ALSO = {
    ("ctflow.backends.compiled", "ctflow.backends.native"),
    ("ctflow.sde", "ctflow.problem"),
    ("ctflow.problem", "ctflow.event"),
    ("ctflow.solution", "ctflow.dense"),
    ("ctflow.solution", "ctflow.event"),
    ("ctflow.api_sde", "ctflow.api"),
    ("ctflow.backends.captures", "ctflow.backends.field"),
    ("ctflow.backends.captures", "ctflow.backends.places"),
    ("ctflow.backends.times", "ctflow.backends.captures"),
    ("ctflow.backends.tableau", "ctflow.backends.trees"),
    ("ctflow.backends.protocol", "ctflow.backends.controller"),
    ("ctflow.backends.protocol", "ctflow.backends.tableau"),
    ("ctflow.backends.adjoint", "ctflow.backends.field"),
    ("ctflow.backends.adjoint", "ctflow.backends.captures"),
    ("ctflow.backends.adjoint_node", "ctflow.backends.captures"),
    ("ctflow.dynamics.images", "ctflow.dynamics"),  # a whole network: a field in the layer
    ("ctflow.dynamics.images", "ctflow.dynamics.block"),
}
# Whose modules only their own tests, and the backend that reuses them, look into.
_OWN_TESTS = {
    "ctflow.backends.native": ("tests/backends/native", "tests/backends/compiled"),
    "ctflow.backends.compiled": ("tests/backends/compiled",),
}
_BREAKS = Path("tests/testing/broken_backends.py")  # edits native, to see that it is noticed


class Import(NamedTuple):
    """One imported name: `from module import name`, or `import module` with no name."""

    module: str
    name: str | None
    line: int
    in_function: bool

    def target(self, modules: dict[str, Path]) -> str:
        """The module that is loaded: `from package import module` loads the module."""
        full = f"{self.module}.{self.name}"
        return full if full in modules else self.module


def order_breaches(root: Path) -> list[str]:
    """Every import below `root`/ctflow that breaks the order, as 'file:line: what is wrong'."""
    modules = _modules(root)
    breaches: list[str] = []
    for module, path in modules.items():
        tree = ast.parse(path.read_text())
        where = path.relative_to(root)
        breaches += [f"{where}:{line}: TYPE_CHECKING import" for line in _type_checking(tree)]
        for found in _imports(tree, module, is_package=path.name == "__init__.py"):
            target = found.target(modules)
            if found.in_function:
                breaches.append(f"{where}:{found.line}: {target} imported inside a function")
            if not _allowed(module, target, gathers=path.name == "__init__.py"):
                breaches.append(f"{where}:{found.line}: {module} imports {target}")
    return breaches


def public_name_breaches(root: Path, folder: str) -> list[str]:
    """Every import of ctflow below `root`/`folder` that is not of a public name."""
    modules = _modules(root)
    breaches: list[str] = []
    for path in sorted((root / folder).rglob("*.py")):
        where = path.relative_to(root)
        for found in _imports(ast.parse(path.read_text()), "", is_package=False):
            target = found.target(modules)
            for package in _OWN_TESTS:
                own = any(where.is_relative_to(folder) for folder in _OWN_TESTS[package])
                looks = own or where == _BREAKS
                if target.startswith(f"{package}.") and not looks:
                    breaches.append(f"{where}:{found.line}: {target} is internal to {package}")
            if not _is_public(found, target, modules):
                breaches.append(f"{where}:{found.line}: {found.module}: {found.name} is not public")
    return breaches


def _modules(root: Path) -> dict[str, Path]:
    """Dotted name -> file of every module in the package."""
    modules: dict[str, Path] = {}
    for path in sorted((root / "ctflow").rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


def _unit(module: str) -> str | None:
    """The entry of the table that a module belongs to, or None."""
    if module in _MODULES:
        return module
    parts = module.split(".")
    parents = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
    return next((parent for parent in parents if parent in _PACKAGES), None)


def _allowed(importer: str, target: str, *, gathers: bool) -> bool:
    """Whether the table lets `importer` import `target`; what is not in it may do nothing."""
    own, other = _unit(importer), _unit(target)
    if own is None or other is None:
        return False
    if own == other or (own, other) in _ALSO:
        return True
    if gathers and importer in _PACKAGES and target.startswith(f"{importer}."):
        return True
    places = _MODULES | _PACKAGES
    return places[other].row in places[own].over


def _imports(tree: ast.Module, module: str, *, is_package: bool) -> Iterator[Import]:
    """Every import of ctflow in one file, with relative ones made absolute."""
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found = [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            source = _absolute(node, module, is_package=is_package)
            found = [(source, alias.name) for alias in node.names]
        else:
            continue
        for source, name in found:
            if source.split(".")[0] == "ctflow":
                yield Import(source, name, node.lineno, id(node) in inside)


def _absolute(node: ast.ImportFrom, module: str, *, is_package: bool) -> str:
    """The absolute name of the module that `from ... import` names."""
    if node.level == 0:
        return node.module or ""
    parts = module.split(".")
    package = parts[: len(parts) - node.level + is_package]
    return ".".join([*package, *([node.module] if node.module else [])])


def _type_checking(tree: ast.Module) -> Iterator[int]:
    """Lines that name typing.TYPE_CHECKING."""
    for node in ast.walk(tree):
        imported = isinstance(node, ast.alias) and node.name == "TYPE_CHECKING"
        if imported or (isinstance(node, ast.Attribute) and node.attr == "TYPE_CHECKING"):
            yield node.lineno


def _is_public(found: Import, target: str, modules: dict[str, Path]) -> bool:
    """Whether the name is in its module's `__all__`, or is itself a module without underscore."""
    if target not in modules or any(part.startswith("_") for part in target.split(".")):
        return False
    if found.name is None or target != found.module:
        return True
    return found.name == "__version__" or found.name in _all_of(modules[target])


def _all_of(path: Path) -> list[str]:
    """The names in a module's `__all__`."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return [str(name) for name in ast.literal_eval(node.value)]
    return []
