"""What tells programs apart on disk: everything that the machine code depends on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from ctflow.backends.captures import Autocast

__all__ = ["fingerprint"]

_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


def fingerprint(
    module: nn.Module, inputs: Sequence[Tensor], dynamic: object, options: Mapping[str, Any]
) -> str:
    """Operations, constants, sizes, versions, processor.

    Of the graphs as they are, and not of what `torch.export` makes of them: it makes the same of
    the same each time, and takes half the time that a program from disk would be waited for.

    Args:
        module: Graphs, put together by classes of this package, and whole numbers that say how.
        inputs: Examples.
        dynamic: Sizes that may change.
        options: What the compiler is told.

    Raises:
        TypeError: If the module holds anything else, by which programs would be mistaken.
    """
    parts = hashlib.sha256()
    for name, part in module.named_modules():
        parts.update(f"\n{name}: {type(part).__qualname__}\n".encode())
        for line in _of_graph(part) if isinstance(part, fx.GraphModule) else _of_others(part):
            parts.update(line)
    about = (
        [(x.dtype, x.device, tuple(x.shape), x.stride()) for x in inputs],
        dynamic,
        sorted(options.items()),
        # What operations are made to mean where a graph leaves it open.
        [Autocast.now(device) for device in sorted({x.device.type for x in inputs})],
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.are_deterministic_algorithms_enabled(),
        _source(),
        torch.__version__,
        torch.version.git_version,
        torch.get_num_threads(),
        torch.backends.cpu.get_cpu_capability(),
        str(torch._inductor.cpu_vec_isa.pick_vec_isa()),  # pyright: ignore
        torch.cuda.get_device_name() if torch.cuda.is_available() else "",
    )
    parts.update(repr(about).encode())
    return parts.hexdigest()


def _of_graph(graph: fx.GraphModule) -> Iterator[bytes]:
    yield graph.code.encode()
    for node in graph.graph.nodes:
        if node.op != "get_attr":
            continue
        value: Any = graph
        for name in node.target.split("."):
            value = getattr(value, name)
        if isinstance(value, Tensor):
            yield f"{node.target} {value.dtype} {value.device} {tuple(value.shape)}".encode()
            yield f" {value.stride()} ".encode()
            plain = value.detach().cpu().resolve_conj().resolve_neg().contiguous()
            yield plain.reshape(-1).view(torch.uint8).numpy().tobytes()
        elif not isinstance(value, nn.Module):  # a module is looked at by itself
            raise TypeError(f"a graph's constant must be a tensor, got {type(value).__name__}")


def _of_others(part: nn.Module) -> Iterator[bytes]:
    if [*part.parameters(recurse=False), *part.buffers(recurse=False)]:
        raise TypeError(f"tensors of a program must be its inputs, got {type(part).__name__}'s own")
    for name, value in sorted(vars(part).items()):
        if name in _OF_EVERY_MODULE:
            continue
        if not isinstance(value, int):
            raise TypeError(f"{name} must be a whole number, got {type(value).__name__}")
        yield f"{name}={value} ".encode()


@lru_cache(maxsize=1)
def _source() -> str:
    """What makes the programs: kernels and rewrites may change where a graph does not."""
    parts = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        parts.update(path.read_bytes())
    return parts.hexdigest()
