"""From a module of phases to a program: export, compile, keep on disk, load, call."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._filelock import FileLock

from ctflow.backends.compiled.fingerprint import fingerprint
from ctflow.backends.compiled.linker import folders_without_spaces
from ctflow.backends.compiled.loops import lean_loops
from ctflow.backends.compiled.memory import keep_freed_memory
from ctflow.backends.compiled.products import by_library
from ctflow.backends.compiled.ranges import checked_ranges, out_of_range
from ctflow.errors import BackendUnavailable, CtflowError, Unsupported

__all__ = ["Program", "built", "cache_directory", "counts", "hushed"]

logger = logging.getLogger("ctflow.compiled")

# Fused multiply-add is what the rest of torch's kernels use; without it a small network's solve
# takes half as long again.
_OPTIONS: Mapping[str, Any] = MappingProxyType(
    {
        "cpp.enable_floating_point_contract_flag": "fast",
        "cpp.min_chunk_size": 1024,  # elements that are worth a thread: to wake one takes as long
        "aot_inductor.use_runtime_constant_folding": False,
    }
)
# States lie as they are given. With the channels of an image last instead, which the compiler
# prefers, every value that crosses between convolutions and the solver's sums is turned round.
_ON_CPU: Mapping[str, Any] = MappingProxyType({"layout_optimization": False})
_OLDEST = (2, 13)  # 2.11 and 2.12 export no while_loop that changes its records in place


@dataclass
class Counted:
    """How many programs this process compiled, and how many it loaded from disk."""

    compiled: int = 0
    loaded: int = 0


counts = Counted()


class Program:
    """A compiled program.

    Args:
        path: Its package.
    """

    def __init__(self, path: Path) -> None:
        keep_freed_memory()
        with _quiet():
            model: Any = torch._inductor.aoti_load_package(str(path))  # pyright: ignore
        self._model = model
        self._run: Callable[[list[Tensor]], list[Tensor]] = model.loader.run

    def __call__(self, inputs: list[Tensor]) -> list[Tensor]:
        """Run it: flat tensors in, flat tensors out.

        Raises:
            IndexError: If `f` uses an index that is out of range.
        """
        try:
            return self._run(inputs)
        except RuntimeError as error:
            about_index = out_of_range(error)
            if about_index is None:
                raise
            raise about_index from error


def cache_directory() -> Path:
    """Where programs are kept between processes: `CTFLOW_CACHE_DIR`, or the user's cache."""
    chosen = os.environ.get("CTFLOW_CACHE_DIR")
    if chosen:
        return Path(chosen) / "compiled"
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "ctflow" / "compiled"


def built(module: nn.Module, inputs: Sequence[Tensor], dynamic: Any, name: str) -> Program:  # noqa: ANN401
    """Compile a module, or load it where an equal one was compiled before.

    Args:
        module: Its forward takes and returns flat tensors.
        inputs: Examples, all different tensors.
        dynamic: Sizes that may change, as `torch.export` wants them.
        name: For the log.

    Raises:
        BackendUnavailable: If torch is too old, or there is no C++ compiler that works.
        Unsupported: If an operation cannot be compiled, or Python runs without `assert`.

    Cost:
        Tens of seconds; a second from disk.
    """
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < _OLDEST:
        raise BackendUnavailable(
            f"backend 'compiled' needs torch 2.13 or newer, got {torch.__version__}. "
            "Run `pip install -U torch`, or use backend='native'."
        )
    if not __debug__:
        raise Unsupported(
            "backend 'compiled' cannot be used under `python -O`: torch's compiler gives other "
            "values where its `assert` statements are left out. Run without -O, or use "
            "backend='native'."
        )
    began = time.perf_counter()
    try:
        options = _options(inputs)
        path = cache_directory() / f"{fingerprint(module, inputs, dynamic, options)}.pt2"
        program = _loaded(path)
        if program is None:
            with _alone(path):
                program = _loaded(path)  # another process may have made it meanwhile
                if program is None:
                    torch._inductor.cpp_builder.get_cpp_compiler()  # pyright: ignore
                    logger.info("compiling %s; the next process finds it in %s", name, path.parent)
                    with torch.no_grad(), _quiet():
                        exported = torch.export.export(
                            module, tuple(inputs), dynamic_shapes=dynamic, strict=True
                        )
                    program = _compiled(exported, options, path)
                    counts.compiled += 1
                    logger.info("compiled %s in %.1f s", name, time.perf_counter() - began)
                    return program
    except (BackendUnavailable, Unsupported):
        raise
    except Exception as error:
        raise _refusal(getattr(error, "inner_exception", error)) from error
    counts.loaded += 1
    logger.info("loaded %s in %.1f s", name, time.perf_counter() - began)
    return program


def _refusal(error: BaseException) -> CtflowError:
    """What a failed compilation means for the user."""
    if isinstance(error, torch._inductor.exc.InvalidCxxCompiler):  # pyright: ignore
        return BackendUnavailable(
            "backend 'compiled' needs a C++ compiler, got none that works. Install g++ or clang "
            "(Debian: apt install g++), or use backend='native'."
        )
    if isinstance(error, torch._inductor.exc.CppCompileError):  # pyright: ignore
        lines = [line for line in str(error).splitlines() if "error" in line]
        return BackendUnavailable(
            "backend 'compiled' got an error from the C++ compiler: "
            f"{lines[-1].strip() if lines else _last_line(error)}. Check that g++ works, or use "
            "backend='native'."
        )
    return Unsupported(
        f"backend 'compiled' cannot compile this `f`: {type(error).__name__}: {_last_line(error)}. "
        "Use backend='native'."
    )


@contextmanager
def _alone(path: Path) -> Generator[None]:
    """Keep other processes from compiling the same: torch's files of one program have one name.

    The ranks of a distributed training all want it at once. Where no lock can be had (a folder that
    cannot be written to), each goes on by itself.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock: Any = FileLock(str(path.with_suffix(".lock")))
        lock.acquire()
    except OSError as error:
        logger.debug("no lock in %s: %s", path.parent, error)
        yield
        return
    try:
        yield
    finally:
        lock.release()


def _compiled(exported: Any, options: Mapping[str, Any], path: Path) -> Program:  # noqa: ANN401
    """Compile, and move the package to its place in one step."""
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "program.pt2"
        with _quiet(), folders_without_spaces():
            _make_package(exported, options, package)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            kept = path.with_suffix(f".{os.getpid()}")
            shutil.copyfile(package, kept)
            kept.replace(path)
        except OSError as error:
            logger.warning("cannot keep the program in %s: %s", path.parent, error)
        return Program(package)


def _make_package(exported: Any, options: Mapping[str, Any], package: Path) -> None:  # noqa: ANN401
    """Compile with lean loops and our products, or in the compiler's way where that does not do."""

    def make() -> None:
        torch._inductor.aoti_compile_and_package(  # pyright: ignore
            exported,
            package_path=str(package),
            inductor_configs=dict(options),  # torch writes into it
        )

    try:
        with checked_ranges(), lean_loops():
            make()
    except Exception as error:  # if the fault is not in what is ours, it comes again
        logger.debug("compiling once more, in the compiler's own way: %s", _last_line(error))
        with checked_ranges(), by_library():
            make()


def _options(inputs: Sequence[Tensor]) -> Mapping[str, Any]:
    """What the compiler is told."""
    on_cpu = all(x.device.type == "cpu" for x in inputs)
    return {**_OPTIONS, **(_ON_CPU if on_cpu else {})}


def _loaded(path: Path) -> Program | None:
    """A program from disk; None where there is none, or none that is whole."""
    if not zipfile.is_zipfile(path):
        return None
    try:
        return Program(path)
    except RuntimeError as error:
        logger.warning("cannot load %s, compiling again: %s", path, _last_line(error))
        return None


@contextmanager
def hushed(name: str, level: int) -> Generator[None]:
    """Without what a logger says below a level."""
    noisy = logging.getLogger(name)
    before = noisy.level
    noisy.setLevel(level)
    try:
        yield
    finally:
        noisy.setLevel(before)


@contextmanager
def _quiet() -> Generator[None]:
    """Without warnings about the insides of torch, which no user can act on."""
    with hushed("torch._inductor", logging.ERROR), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _last_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    if type(error).__name__ == "LoweringException":  # says what it is first, and then where
        lines = lines[:1]
    return lines[-1][:300] if lines else type(error).__name__
