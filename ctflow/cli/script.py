"""Running a Python program in this process, as the interpreter itself would."""

from __future__ import annotations

import importlib.util
import io
import os
import runpy
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

from ctflow.cli.output import STOPPED

__all__ = ["run_module", "run_script"]

_OURS = Path(__file__).parent


def run_script(path: str, arguments: Sequence[str]) -> None:
    """Run a script as `python path arguments...` does.

    Its `__main__`, `sys.argv`, `sys.path[0]`, exit code and traceback are those that it would have
    there. Does not return: the process ends with the script.

    Args:
        path: Of the script, which is there.
        arguments: What follows it on the command line.

    Raises:
        SystemExit: With the script's exit code.
    """
    file = Path(path)
    sys.argv = [path, *arguments]
    _begin_path_with(str(file.resolve().parent))
    main = types.ModuleType("__main__")
    main.__dict__.update(__file__=path, __builtins__=__builtins__, __cached__=None)
    sys.modules["__main__"] = main

    def body() -> None:
        with io.open_code(str(file.resolve())) as source:
            code = compile(source.read(), path, "exec", dont_inherit=True)
        exec(code, main.__dict__)  # the program itself

    _to_its_end(body)


def run_module(name: str, arguments: Sequence[str]) -> None:
    """Run a module as `python -m name arguments...` does; see `run_script`.

    Args:
        name: Of the module.
        arguments: What follows it on the command line.

    Raises:
        SystemExit: With the module's exit code.
    """
    sys.argv = ["-m", *arguments]
    _begin_path_with(os.getcwd())
    if not _is_there(name):
        sys.stderr.write(f"{sys.executable}: No module named {name}\n")  # Python's own words
        raise SystemExit(1)

    def body() -> None:
        runpy.run_module(name, run_name="__main__", alter_sys=True)

    _to_its_end(body)


def _begin_path_with(folder: str) -> None:
    """Look for modules there first, in the place of where ctflow itself was started."""
    if not sys.flags.safe_path:
        sys.path[0] = folder


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _to_its_end(body: Callable[[], None]) -> None:
    """Run a program; an exception that it leaves is shown as Python does, without our frames."""
    try:
        body()
    except SystemExit:
        raise
    except BaseException as error:
        error.__traceback__ = _without_ours(error.__traceback__)
        sys.excepthook(type(error), error, error.__traceback__)
        raise SystemExit(STOPPED if isinstance(error, KeyboardInterrupt) else 1) from None
    raise SystemExit(0)


def _without_ours(trace: TracebackType | None) -> TracebackType | None:
    """The part of a traceback that begins in the program, or in what loads it."""
    while trace is not None and Path(trace.tb_frame.f_code.co_filename).is_relative_to(_OURS):
        trace = trace.tb_next
    return trace
