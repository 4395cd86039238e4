"""How the compiler writes a loop: a turn's own values lie on the stack, what it reads is borrowed.

As inductor writes a loop, each turn makes a tensor for every value that it needs for itself, and
one more for everything that it reads: a hundred allocations for a step of a small network, which
cost more than its arithmetic. What a turn hands to the next is written in turns to two tensors that
are made once.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from torch._inductor import ir
from torch._inductor.codegen import common
from torch._inductor.codegen.cpp_utils import DTYPE_TO_CPP
from torch._inductor.codegen.cpp_wrapper_cpu import CppWrapperCpu
from torch._inductor.codegen.wrapper import ReuseLine
from torch._inductor.graph import SubgraphLowering
from torch._inductor.scheduler import OutputNode
from torch._inductor.virtualized import V
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

__all__ = ["lean_loops"]

_MOST_OF_ONE = 32 * 1024  # bytes; larger values take longer to compute than to allocate
_MOST = 256 * 1024  # bytes of a turn: a thread may have a stack of half a megabyte
_MOST_OUTSIDE = 64 * 1024  # bytes of what is outside of loops

# Neither owns anything, and neither becomes a tensor that does: where the compiler would want one,
# there is an error at compile time, and the loop is written in the compiler's own way.
_HEADER = """
namespace {
template <typename T>
struct CtflowLocal {
    T* pointer;
    T* data_ptr() const { return pointer; }
    void reset() {}
};
struct CtflowBorrowed {
    AtenTensorHandle handle;
    explicit CtflowBorrowed(AtenTensorHandle of) : handle(of) {}
    operator AtenTensorHandle() const { return handle; }
    AtenTensorHandle get() const { return handle; }
    void* data_ptr() const {
        void* result = nullptr;
        AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(handle, &result));
        return result;
    }
    void reset() {}
};
struct CtflowPool {  // a set for even turns, one for odd turns, one for what no other turn sees
    using RAIIAtenTensorHandle = torch::aot_inductor::RAIIAtenTensorHandle;
    std::vector<RAIIAtenTensorHandle> kept[3];
    int turn = 0;
    static constexpr int own = 2;
    void next() { turn ^= 1; }
    bool lacks(int set, size_t i) {
        if (kept[set].size() <= i) kept[set].resize(i + 1);
        return kept[set][i].get() == nullptr;
    }
    void keep(int set, size_t i, AtenTensorHandle made) {
        kept[set][i] = RAIIAtenTensorHandle(made);
    }
    AtenTensorHandle share(int set, size_t i) {
        AtenTensorHandle result = nullptr;
        AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_new_tensor_handle(kept[set][i].get(), &result));
        return result;
    }
};
}  // namespace
"""


@contextmanager
def lean_loops() -> Generator[None]:
    """Loops that are compiled for the processor meanwhile are written as said above."""
    common.init_backend_registration()
    before = common.device_codegens["cpu"]
    common.device_codegens["cpu"] = common.DeviceCodegen(
        before.scheduling, before.wrapper_codegen, LeanLoops, before.fx_wrapper_codegen
    )
    try:
        yield
    finally:
        common.device_codegens["cpu"] = before


class _Named:
    """Stands for a tensor that has a name in the code already."""

    def __init__(self, name: str) -> None:
        self._name = name

    def codegen_reference(self, writer: object = None) -> str:
        """The name."""
        del writer
        return self._name


class LeanLoops(CppWrapperCpu):
    """Writes the C++ that calls the kernels."""

    def __init__(self) -> None:
        super().__init__()
        self._in_loop = False
        self._local: dict[str, bool] = {}
        self._spent: dict[str, int] = {}
        self._pools: dict[int, str] = {}
        self._turns: dict[int, str] = {}
        self._n_pooled = 0

    @staticmethod
    def create(*_: object, **__: object) -> LeanLoops:
        """Make one."""
        return LeanLoops()

    def write_header(self) -> None:
        """What the code uses."""
        super().write_header()
        if not V.graph.is_const_graph:
            self.header.splice(_HEADER)

    def codegen_while_loop(self, while_loop: Any, stack_output: bool = False) -> None:  # noqa: ANN401
        """A loop; views that it reads are made before it."""
        inputs, outside = while_loop.additional_inputs, self._in_loop
        named: list[Any] = []
        for i, one in enumerate(inputs):
            reference = one.codegen_reference()
            if not reference.isidentifier():
                name = f"{while_loop.get_name()}_read{i}"
                self.writeline(f"auto {name} = {reference};")
                reference = name
            named.append(_Named(reference))
        while_loop.additional_inputs, self._in_loop = named, True
        parts = (while_loop.cond_subgraph.graph, while_loop.body_subgraph.graph)
        if not any(_hands_through(part) for part in parts):
            pool = f"{while_loop.get_name()}_pool"
            self.writeline(f"CtflowPool {pool};")
            self._pools.update((id(part), pool) for part in parts)
            self._turns[id(parts[0])] = pool
        try:
            super().codegen_while_loop(while_loop, stack_output)
        finally:
            while_loop.additional_inputs, self._in_loop = inputs, outside

    def codegen_conditional(self, conditional: Any) -> None:  # noqa: ANN401
        """A branch, whose inputs may be temporary."""
        outside, self._in_loop = self._in_loop, False
        try:
            super().codegen_conditional(conditional)
        finally:
            self._in_loop = outside

    def codegen_subgraph_prefix(
        self, subgraph: Any, outer_inputs: Any, outer_outputs: Any  # noqa: ANN401
    ) -> None:  # fmt: skip
        """What a turn reads."""
        if not self._in_loop:
            super().codegen_subgraph_prefix(subgraph, outer_inputs, outer_outputs)
            return
        if pool := self._turns.get(id(subgraph.graph)):
            self.writeline(f"{pool}.next();")
        for (name, value), outer in zip(
            subgraph.graph.graph_inputs.items(), outer_inputs, strict=True
        ):
            if isinstance(value, ir.TensorBox):
                self.writeline(f"CtflowBorrowed {name}({outer});")

    def make_buffer_allocation(self, buffer: Any) -> str:  # noqa: ANN401
        """A value of a turn: on the stack if only kernels see it."""
        if not self._is_local(buffer):
            pool = self._pool_of(buffer)
            make = super().make_buffer_allocation
            return make(buffer) if pool is None else self._from_pool(buffer, pool, make)
        name, kind = buffer.get_name(), DTYPE_TO_CPP[buffer.get_dtype()]
        numel = max(1, int(V.graph.get_allocation_storage_size(buffer)))
        return (
            f"alignas(64) {kind} {name}_storage[{numel}]; "
            f"CtflowLocal<{kind}> {name}{{{name}_storage}};"
        )

    def _pool_of(self, buffer: Any) -> str | None:  # noqa: ANN401
        """The pool of the loop in which a value is made, if its size is the same in every turn."""
        pool = self._pools.get(id(self.get_codegened_graph()))
        if pool is None or not _is_plain(buffer) or buffer.get_is_pinned():
            return None
        size = list(buffer.get_size())
        if any(free_unbacked_symbols(extent) for extent in size):
            return None
        return pool if list(V.graph.get_allocation_size(buffer)) == size else None

    def _from_pool(self, buffer: Any, pool: str, make: Callable[[Any], str]) -> str:  # noqa: ANN401
        """A tensor of an earlier turn, whose value nobody reads any more."""
        name, graph = buffer.get_name(), self.get_codegened_graph()
        own = all(_stays(each, graph) for each in self._sharing(buffer))
        where = f"{pool}.own" if own else f"{pool}.turn"
        place = f"{where}, {self._n_pooled}"
        self._n_pooled += 1
        lines: list[Any] = self.wrapper_call._lines  # pyright: ignore[reportPrivateUsage]
        before = len(lines)
        make(buffer)
        (made,) = (i for i in range(before, len(lines)) if "empty_strided" in str(lines[i]))
        once = f"{lines[made]} {pool}.keep({place}, {name}_handle);"
        lines[made] = f"if ({pool}.lacks({place})) {{ {once} }}"
        return f"RAIIAtenTensorHandle {name}({pool}.share({place}));"

    def make_buffer_reuse(self, old: Any, new: Any, delete_old: bool) -> str:  # noqa: ANN401
        """A value in the place of an earlier one, which its kernel may read there."""
        if self._is_local(old):
            return f"auto {new.get_name()} = {old.get_name()};  // reuse"
        return super().make_buffer_reuse(old, new, delete_old)

    def codegen_deferred_allocation(self, name: str, view: ir.ReinterpretView) -> None:
        """A part of a value."""
        base: Any = view.data.data if isinstance(view.data, ir.StorageBox) else view.data
        kind = DTYPE_TO_CPP.get(view.get_dtype())
        if not isinstance(base, ir.Buffer) or kind is None:
            super().codegen_deferred_allocation(name, view)
            return
        if self._is_local(base):
            start = f"{base.get_name()}.data_ptr() + {int(view.layout.offset)}"
        elif self._pool_of(base) and _kernels_only(self.get_codegened_graph(), name, part=True):
            offset = self.codegen_sizevar(view.layout.offset)
            start = f"({kind}*){base.get_name()}.data_ptr() + {offset}"
        else:
            super().codegen_deferred_allocation(name, view)
            return
        self.writeline(common.DeferredLine(name, f"CtflowLocal<{kind}> {name}{{{start}}};"))

    def _is_local(self, buffer: Any) -> bool:  # noqa: ANN401
        """Whether a value lies on the stack; with all that take its place, or none of them."""
        name = buffer.get_name()
        if name not in self._local:
            graph, sharing = self.get_codegened_graph(), self._sharing(buffer)
            found = all(self._may_be_local(each, graph) for each in sharing)
            self._local.update((each.get_name(), found) for each in sharing)
        return self._local[name]

    def _sharing(self, buffer: Any) -> list[Any]:  # noqa: ANN401
        """The values that lie in one place, one after the other."""
        found = {buffer.get_name(): buffer}
        pairs = [(x.node, x.reused_as) for x in self.lines if isinstance(x, ReuseLine)]
        while True:
            new = [
                other
                for pair in pairs
                for one, other in (pair, pair[::-1])
                if one.get_name() in found and other.get_name() not in found
            ]
            if not new:
                return list(found.values())
            found.update((each.get_name(), each) for each in new)

    def _may_be_local(self, buffer: Any, graph: Any) -> bool:  # noqa: ANN401
        if not (_is_plain(buffer) and self.can_prove_buffer_has_static_shape(buffer)):
            return False
        size = _size_of(buffer)
        if size > _MOST_OF_ONE or not _stays(buffer, graph):
            return False
        most = _MOST if isinstance(graph, SubgraphLowering) else _MOST_OUTSIDE
        spent = self._spent.get(str(graph.name), 0) + size
        if spent > most:
            return False
        self._spent[str(graph.name)] = spent
        return True


def _is_plain(buffer: Any) -> bool:  # noqa: ANN401
    """Whether a value is one of the processor's, of numbers as C++ has them."""
    kind = buffer.get_dtype()
    return buffer.get_device().type == "cpu" and kind in DTYPE_TO_CPP and not kind.is_complex


def _stays(buffer: Any, graph: Any) -> bool:  # noqa: ANN401
    """Whether a value and its parts are seen by generated kernels alone."""
    parts = [x.get_name() for x in buffer.inputs] if isinstance(buffer, ir.ConcatKernel) else []
    return all(_kernels_only(graph, name) for name in (buffer.get_name(), *parts))


def _size_of(buffer: Any) -> int:  # noqa: ANN401
    """Bytes."""
    return int(V.graph.get_allocation_storage_size(buffer)) * buffer.get_dtype().itemsize


def _hands_through(graph: Any) -> bool:  # noqa: ANN401
    """Whether a turn returns what it was given, which then lives longer than a turn."""
    return any(name in graph.graph_inputs for name in graph.get_output_names())


def _kernels_only(graph: Any, name: str, part: bool = False) -> bool:  # noqa: ANN401
    """Whether a value is made and read by generated kernels alone; a part, beside its whole."""
    known: Any = graph.scheduler.name_to_buf.get(name)
    if known is None or name in graph.get_output_names():
        return False
    users: list[Any] = [user.node for user in known.users]
    if part:  # which counts the readers of the whole among its own
        users = [node for node in users if not isinstance(node, OutputNode)]
    if any(isinstance(node, OutputNode) or node.is_extern() for node in users):
        return False
    return known.defining_op is not None and not known.defining_op.is_extern()
