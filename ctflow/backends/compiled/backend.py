"""`backend="compiled"`: the whole adaptive solve as one program."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from ctflow.backends.captures import Autocast
from ctflow.backends.compiled.adjoint import Adjoint
from ctflow.backends.compiled.checkpointed import Checkpointed
from ctflow.backends.compiled.controls import usual_control
from ctflow.backends.compiled.forward import Found, forward
from ctflow.backends.compiled.job import Job, rest_of
from ctflow.backends.compiled.library import Sketch
from ctflow.backends.compiled.reads import Reads, read
from ctflow.backends.field import Field
from ctflow.backends.native.backend import NativeBackend, counted, method_of, stops_of
from ctflow.backends.native.control import Control
from ctflow.backends.native.gradients.times import attach
from ctflow.backends.native.loop import Integration
from ctflow.backends.protocol import Feature, Solver, leaves_out, resolved
from ctflow.backends.tableau import Tableau
from ctflow.backends.times import shift
from ctflow.errors import Unsupported
from ctflow.problem import ODEProblem
from ctflow.solution import GradientReport, Solution, Stats
from ctflow.state import Layout, leaves_of, widest
from ctflow.transforms import touched, untraced

__all__ = ["CompiledBackend"]


_FEATURES = frozenset(Feature) - {
    Feature.SECOND_ORDER,
    Feature.LOCAL_ERROR,
    Feature.DENSE,
    Feature.COMPLEX,
    Feature.RAGGED,
    Feature.EVENTS,
    Feature.TRANSFORMS,
}


@dataclass(frozen=True)
class CompiledBackend:
    """ctflow's solver as compiled programs: native's numbers without Python in the loop.

    Args:
        tableau: A method in place of the one that `Solver.method` names.
        control: A step-size control of your own, in place of `Solver.step`, `rtol` and `atol`.
        exact: Leave elementary functions to the compiler; False writes tanh and softplus of
            float32 out, within 3 units in the last place.

    Cost:
        Compiling takes tens of seconds a program, once a machine: programs are kept on disk
        (`CTFLOW_CACHE_DIR`). Everything but Python values and sizes is an input.
    """

    tableau: Tableau | None = None
    control: Control | None = None
    exact: bool = False

    @property
    def name(self) -> str:
        """Its name in messages and tables."""
        return "compiled"

    @property
    def features(self) -> frozenset[Feature]:
        """What it can do."""
        return _FEATURES

    def refuse(self, problem: ODEProblem, solver: Solver) -> list[str]:
        """Reasons why it cannot do what is asked."""
        reasons = NativeBackend(self.tableau, self.control).refuse(problem, solver)
        method = self.tableau or method_of(solver)
        if method is not None and method.implicit:
            reasons.append(
                f"method={method.name!r} is implicit, and it compiles explicit ones; use "
                "backend='native'"
            )
        seminorm = leaves_out(solver.backward)
        if isinstance(method, Tableau) and method.e_low is not None and seminorm:
            reasons.append(f"method={method.name!r} has two estimates, no seminorm can add up both")
        return reasons

    def solve(self, problem: ODEProblem, solver: Solver) -> Solution:
        """Solve with complete settings; see `ctflow.backends.Backend.solve`."""
        if torch.compiler.is_compiling():
            return self._outside(problem, solver)
        return self._solve(problem, solver)

    @untraced  # it is compiled already
    def _outside(self, problem: ODEProblem, solver: Solver) -> Solution:
        return self._solve(problem, solver)

    def follow(self, problem: ODEProblem, solver: Solver) -> None:
        """Follow `f` and its derivative as a solve would, and compile nothing.

        Raises:
            Unsupported: If they cannot be followed; with the line.
            InvalidProblem: If `f` changes its input or what it reads.

        Cost:
            Two or three evaluations of `f` without values; under a second.
        """
        job, _, _ = self._job(problem, solver)
        sketch = Sketch(())
        stand_ins = [sketch.tensor(x, (None,) * x.dim()) for x in rest_of(job)]
        job.traced(sketch, stand_ins)

    def _job(self, problem: ODEProblem, solver: Solver) -> tuple[Job, Tensor, Tensor]:
        """The solve before it begins; initial state [B, N] and times [B, T] with their history."""
        tableau = self.tableau or cast("Tableau", method_of(solver))
        layout = Layout.of(problem.y0, per_sample=solver.coupling == "per_sample")
        control = self.control or usual_control(solver, counted(problem, layout), layout.size)
        reads = read(problem)
        _refuse_transforms(problem, reads)
        wide = widest(problem.t.device) is torch.float64
        times = problem.t.double() if wide else problem.t.float()  # half of what `to` takes
        times = times.expand(layout.batch, -1).contiguous()
        y0 = layout.pack(problem.y0)
        wanted = None
        if torch.is_grad_enabled():
            wanted = tuple(i for i, x in enumerate(reads.tensors) if x.requires_grad)
            if not (wanted or y0.requires_grad or times.requires_grad):
                wanted = None
        autocast = Autocast.now(layout.device.type)
        job = Job(
            problem, reads, layout, tableau, control, self.exact, solver, times.detach(), wanted,
            autocast, stops_of(problem, solver, times),
        )  # fmt: skip
        return job, y0, times

    def _solve(self, problem: ODEProblem, solver: Solver) -> Solution:
        job, y0, times = self._job(problem, solver)
        moving = job.wanted is not None and times.requires_grad
        stats: list[Stats] = []
        by_adjoint = solver.gradient == "adjoint"
        report = GradientReport(None if by_adjoint else "this gradient is that of the steps taken")
        if job.wanted is None:
            found, out = _without_gradient(job, y0)
        else:
            gradient = str(solver.gradient)
            field = Field(problem, job.layout)
            plan = Integration(
                job.tableau, job.control, job.times, solver.max_steps, stops=job.stops
            )
            after, before = plan.beside(field, after=True), plan.beside(field, after=False)
            start = y0
            if moving:
                with torch.no_grad():
                    f0 = after(times[:, 0].to(y0.dtype), y0)
                start = shift(after, times[:, 0], y0, -1.0, f0, gradient)
            tensors = (job.reads.tensors[i] for i in job.wanted)
            kept: list[Found] = []
            if gradient == "adjoint":
                out = Adjoint.apply(job, kept, stats, report, start, *tensors)  # pyright: ignore
            else:
                out = Checkpointed.apply(job, kept, stats, start, *tensors)  # pyright: ignore
            found = kept[0]
            out = attach(before, times, y0, out, found.outcome, gradient) if moving else out
        result = Stats(
            resolved(solver, self, job.tableau.name),
            found.outcome.counts,
            None,
            found.outcome.trace,
        )
        stats.append(result)
        return Solution(
            problem.t,
            job.layout.unpack(out),
            found.outcome.status,
            result,
            found.outcome.stops,
            None,
            report,
        )


def _without_gradient(job: Job, y0: Tensor) -> tuple[Found, Tensor]:
    """Solve, also under inference mode, whose tensors no program may write into."""
    if not torch.is_inference_mode_enabled():
        with torch.no_grad():
            found = forward(job, y0.detach())
        return found, found.out
    with torch.inference_mode(False), torch.no_grad():
        found = forward(job, y0.clone())
    return found, found.out.clone()


def _refuse_transforms(problem: ODEProblem, reads: Reads) -> None:
    """Programs know nothing of functorch's wrappers or of tangents, in what `f` reads neither."""
    if touched((*leaves_of(problem.y0), problem.t, *reads.tensors)):
        raise Unsupported(
            "backend 'compiled' cannot be used under torch.func transforms or in forward mode. "
            "Use backend='native' with gradient='direct'."
        )
