"""A device that has no float64, for want of one: CPU tensors behind torch's free device type.

Run as a module it solves the problems of `device_cases` there and on the CPU, and prints both as
JSON. It has a process of its own, since a device type once registered stays.
"""

# ruff: noqa: ANN401 - what a dispatch hands on is anything

from __future__ import annotations

import json
import os
import sys
import traceback
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

import ctflow.state
from tests.backends.device_cases import CASES

NAME = "narrow_device"
DOUBLE = (torch.float64, torch.complex128)


class Narrow(Tensor):
    """A tensor of the device."""

    inner: Tensor

    @staticmethod
    def __new__(cls: type[Narrow], inner: Tensor) -> Narrow:
        """Refuse what the device does not have, as MPS does."""
        if inner.dtype in DOUBLE:
            raise TypeError(f"the device has no {inner.dtype}")
        made: Any = Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(),
            dtype=inner.dtype, device=torch.device(NAME, 0),
        )  # fmt: skip
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """On the CPU."""
        return computed(func, args, kwargs or {})


class Device(TorchDispatchMode):
    """Makes what is asked for there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """On the CPU."""
        return computed(func, args, kwargs or {})


class Module(backend_registration._DummyBackendModule):
    """`torch.narrow_device`."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        """What autocast may cast to."""
        return [torch.bfloat16]


def computed(func: Any, args: Any, kwargs: Any) -> Any:
    """On the CPU, and put back where it belongs."""
    asked = kwargs.get("device")
    own = any(isinstance(x, Narrow) for x in tree_leaves((args, kwargs)))
    there = own if asked is None else torch.device(asked).type == NAME
    found = (args, kwargs)
    found = tree_map_only(Narrow, lambda x: x.inner, found)
    found = tree_map_only(
        torch.device, lambda d: torch.device("cpu") if d.type == NAME else d, found
    )
    out = func(*found[0], **found[1])
    return tree_map_only(Tensor, Narrow, out) if there else out


class Factories(TorchFunctionMode):
    """`torch.tensor` makes its tensors below the level of a dispatch mode."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """On the CPU first."""
        kwargs = kwargs or {}
        asked = kwargs.get("device")
        if func in (torch.tensor, torch.as_tensor) and asked is not None:
            return func(*args, **kwargs | {"device": "cpu"}).to(asked)
        if func is Tensor.tolist and isinstance(args[0], Narrow):
            return args[0].cpu().tolist()
        if func is Tensor.new_tensor and isinstance(args[0], Narrow):
            return torch.tensor(args[1], dtype=args[0].dtype).to(args[0].device)
        return func(*args, **kwargs)


def main() -> None:
    """Every case on both."""
    torch.utils.rename_privateuse1_backend(NAME)
    torch._register_device_module(NAME, Module())
    kept = backend_registration._DummyPrivateUse1Hook(), backend_registration._DummyDeviceGuard()
    torch._C._acc.register_python_privateuseone_hook(kept[0])
    torch._C._acc.register_python_privateuseone_device_guard(kept[1])
    ctflow.state._WITHOUT_FLOAT64 |= {NAME}
    found: dict[str, Any] = {}
    for name, case in CASES.items():
        try:
            wanted = case("cpu")
            with Device(), Factories():
                got = case(NAME)
            found[name] = [
                (a.tolist(), b.detach().cpu().tolist()) for a, b in zip(wanted, got, strict=True)
            ]
        except Exception:
            found[name] = traceback.format_exc()
    json.dump(found, sys.stdout)
    sys.stdout.flush()
    # Autograd's thread of the device needs the interpreter's lock as it ends; when Python 3.11 is
    # gone by then, the process is aborted. So it ends here, before Python's own ending begins.
    os._exit(0)


if __name__ == "__main__":
    main()
