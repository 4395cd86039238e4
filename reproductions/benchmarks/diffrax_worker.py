"""diffrax's side: runs in an environment of its own and answers requests, one JSON line each.

    {"do": "load", "path": "case.npz", "kind": "spiral", "tolerance": 1e-6}
    {"do": "first", "task": "forward"}           -> {"value": seconds}
    {"do": "measure", "task": ..., "seconds": s} -> {"value": milliseconds}
    {"do": "answer", "task": ..., "path": p}     -> states and gradients written there as npz
    {"do": "tally", "task": ...}                 -> {"value": [forward, backward, accepted, ...]}
    {"do": "memory", "task": ...}                -> {"value": bytes or null}

A task is "forward", "checkpointed" or "backsolve". Whatever fails is answered by {"error": text}.
This module imports neither torch nor ctflow, and nothing of theirs is in its environment.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.resident import growth

Array = Any
State = Any


def network(p: Sequence[Array], x: Array) -> Array:
    """Linear layers with tanh between them; weights as torch has them."""
    *hidden, last = zip(p[::2], p[1::2], strict=True)
    for w, b in hidden:
        x = jnp.tanh(x @ w.T + b)
    return x @ last[0].T + last[1]


def spiral(t: Array, y: State, p: Sequence[Array]) -> State:  # noqa: ARG001 - autonomous
    """Network of y cubed."""
    return (network(p, y[0] ** 3),)


def plain(t: Array, y: State, p: Sequence[Array]) -> State:  # noqa: ARG001 - autonomous
    """Network of y."""
    return (network(p, y[0]),)


def flow(t: Array, y: State, p: Sequence[Array]) -> State:
    """Network of (x, t), and its exact trace by one VJP a dimension."""
    x = y[0]

    def velocity(x: Array) -> Array:
        return network(p, jnp.concatenate([x, jnp.full((x.shape[0], 1), t, x.dtype)], 1))

    dx, pull = jax.vjp(velocity, x)
    units = [jnp.zeros_like(dx).at[:, i].set(1) for i in range(dx.shape[1])]
    trace = sum(pull(unit)[0][:, i : i + 1] for i, unit in enumerate(units))
    return dx, -trace


def conv(t: Array, y: State, p: Sequence[Array]) -> State:
    """The MNIST network, channels last: so XLA's convolution is faster (5.5 for 6.7 ms)."""
    w1, b1, k1, c1, w2, b2, k2, c2, w3, b3 = p
    x = _convolved(t, jax.nn.relu(_normed(y[0], w1, b1)), k1, c1)
    x = _convolved(t, jax.nn.relu(_normed(x, w2, b2)), k2, c2)
    return (_normed(x, w3, b3),)


def _normed(x: Array, w: Array, b: Array) -> Array:
    n, height, width, channels = x.shape
    groups = min(32, channels)
    z = x.reshape(n, height * width, groups, channels // groups)
    mean = z.mean((1, 3), keepdims=True)
    z = (z - mean) * jax.lax.rsqrt(z.var((1, 3), keepdims=True) + 1e-5)
    return z.reshape(x.shape) * w + b


def _convolved(t: Array, x: Array, k: Array, c: Array) -> Array:
    time_channel = jnp.full((*x.shape[:3], 1), t, x.dtype)
    x = jnp.concatenate([time_channel, x], axis=3)
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=layout) + c


FIELDS = {"spiral": spiral, "plain": plain, "flow": flow, "conv": conv}
_LAST = {"y": (0, 2, 3, 1), "p": (2, 3, 1, 0)}  # to channels last, for leaves and weights
_FIRST = {"states": (0, 1, 4, 2, 3), "y": (0, 3, 1, 2), "p": (3, 2, 0, 1)}  # and back


class Problem(NamedTuple):
    """What `load` read."""

    kind: str
    tolerance: float
    y0: tuple[Array, ...]
    p: tuple[Array, ...]
    t: Array


class Worker:
    """The requests, as methods."""

    def __init__(self) -> None:
        """Nothing is loaded."""
        self._problem: Problem | None = None
        self._compiled: dict[str, Callable[[], Any]] = {}

    def load(self, path: str, kind: str, tolerance: float) -> None:
        """Read weights, start and times; float64 arrays turn jax's 64 bits on."""
        found = np.load(path)
        if found["t"].dtype == np.float64:
            jax.config.update("jax_enable_x64", True)

        def group(letter: str) -> tuple[Array, ...]:
            count = sum(key[0] == letter and key[1:].isdigit() for key in found)
            arrays = (found[f"{letter}{i}"] for i in range(count))
            return tuple(jnp.asarray(_moved(x, _LAST[letter], kind)) for x in arrays)

        self._problem = Problem(kind, tolerance, group("y"), group("p"), jnp.asarray(found["t"]))
        self._compiled = {}

    def first(self, task: str) -> float:
        """Seconds of the first call, which compiles."""
        self._compiled.pop(task, None)
        return self._timed(task)

    def measure(self, task: str, seconds: float) -> float:
        """Milliseconds of one call, as ctflow's are taken."""
        if self._timed(task) > seconds:
            return 1e3 * self._timed(task)
        times: list[float] = []
        while sum(times) < seconds or not times:
            times.append(self._timed(task))
        return 1e3 * median(times)

    def answer(self, task: str, path: str) -> None:
        """Write states and gradients, in torch's layout."""
        kind = self._loaded().kind
        states, gradients = self._call(task)
        arrays = {
            f"s{i}": _moved(np.asarray(x), _FIRST["states"], kind) for i, x in enumerate(states)
        }
        for letter, group in zip("yp", gradients or ((), ()), strict=True):
            for i, x in enumerate(group):
                arrays[f"{letter}{i}"] = _moved(np.asarray(x), _FIRST[letter], kind)
        np.savez(path, **arrays)

    def tally(self, task: str) -> list[int]:
        """Evaluations, forward and backward, counted by a callback; accepted, rejected steps."""
        calls = 0

        def count() -> None:
            nonlocal calls
            calls += 1

        def counted(t: Array, y: State, p: Sequence[Array]) -> State:
            jax.debug.callback(count)
            return FIELDS[self._loaded().kind](t, y, p)

        _, stats = self._jitted("forward", counted, with_stats=True)()
        jax.effects_barrier()
        n_forward, calls = calls, 0
        if task != "forward":
            self._jitted(task, counted)()
            jax.effects_barrier()
        n_backward = max(0, calls - n_forward)
        accepted, rejected = (
            int(stats[key]) for key in ("num_accepted_steps", "num_rejected_steps")
        )
        return [n_forward, n_backward, accepted, rejected]

    def memory(self, task: str) -> int | None:
        """Bytes by which the resident memory rises in a call that is warm."""
        self._call(task)
        return growth(lambda: self._call(task))

    def versions(self) -> dict[str, str]:
        """Of what was measured."""
        return {"jax": jax.__version__, "diffrax": diffrax.__version__}

    def _loaded(self) -> Problem:
        if self._problem is None:
            raise RuntimeError("nothing is loaded")
        return self._problem

    def _timed(self, task: str) -> float:
        began = time.perf_counter()
        self._call(task)
        return time.perf_counter() - began

    def _call(self, task: str) -> Any:  # noqa: ANN401 - arrays in tuples
        if task not in self._compiled:
            self._compiled[task] = self._jitted(task, FIELDS[self._loaded().kind])
        return self._compiled[task]()

    def _jitted(
        self, task: str, field: Callable[..., State], *, with_stats: bool = False
    ) -> Callable[[], Any]:
        """A program that solves, and differentiates if the task is a gradient."""
        problem = self._loaded()
        adjoint = diffrax.BacksolveAdjoint if task == "backsolve" else None

        def solved(y0: State, p: Sequence[Array], t: Array) -> tuple[State, Any]:
            solution = diffrax.diffeqsolve(
                diffrax.ODETerm(field),
                diffrax.Dopri5(),
                t[0],
                t[-1],
                None,
                y0,
                p,
                saveat=diffrax.SaveAt(ts=t),
                stepsize_controller=diffrax.PIDController(
                    rtol=problem.tolerance, atol=problem.tolerance
                ),
                adjoint=(adjoint or diffrax.RecursiveCheckpointAdjoint)(),
                max_steps=4096,
            )
            return solution.ys, solution.stats

        def loss(both: tuple[State, Sequence[Array]], t: Array) -> tuple[Array, State]:
            states, _ = solved(*both, t)
            size = sum(x.size for x in states)
            return sum((x**2).sum() for x in states) / size, states

        def forward(both: tuple[State, Sequence[Array]], t: Array) -> tuple[State, Any]:
            states, stats = solved(*both, t)
            return states, (stats if with_stats else None)

        def gradient(both: tuple[State, Sequence[Array]], t: Array) -> tuple[State, Any]:
            (_, states), gradients = jax.value_and_grad(loss, has_aux=True)(both, t)
            return states, gradients

        program = jax.jit(forward if task == "forward" else gradient)
        both = (problem.y0, problem.p)
        return lambda: jax.block_until_ready(program(both, problem.t))


def _moved(array: Array, order: tuple[int, ...], kind: str) -> Array:
    return array.transpose(order) if kind == "conv" and array.ndim == len(order) else array


def main() -> None:
    """Answer until the input ends."""
    worker = Worker()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply = {"value": getattr(worker, request.pop("do"))(**request)}
        except Exception as error:  # whatever it is, the other side has to hear of it
            reply = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        sys.stdout.write(json.dumps(reply) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
