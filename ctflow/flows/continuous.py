"""`ContinuousFlow`: a distribution whose samples flow along a vector field."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from ctflow.api import as_solver
from ctflow.backends.protocol import Solver
from ctflow.errors import InvalidProblem
from ctflow.flows.arguments import batch_of, check_base, check_parts, check_points
from ctflow.flows.costs import RunningCost
from ctflow.flows.divergence import Divergence
from ctflow.flows.likelihood import LogDensity, evaluated, not_finite
from ctflow.flows.transform import FlowTransform
from ctflow.flows.transport import Transport, arrived

__all__ = ["ContinuousFlow", "log_density"]


class ContinuousFlow(Distribution):
    """A continuous normalizing flow: base samples carried along  dz/dt = f(t, z)  from t0 to t1.

        log p(x) = log p0(z(t0)) - int_{t0}^{t1} tr(df/dz) dt,    z(t1) = x

    An ordinary distribution over an ordinary transform: `log_prob`, `sample`, `rsample`, `expand`,
    and `TransformedDistribution(base, flow.transform)` are torch's own. It holds no parameters;
    those are the field's, and the base's if it has any. Building one costs nothing, so a new
    context, interval or solver is a new flow over the same field.

    Where the backend can, each sample has its own steps: with an exact divergence, `log_prob` of a
    point does not depend on the other points that it is asked together with.

    Args:
        base: Distribution at t0 over events of at least one dimension.
        field: `f(t, z)` with z [N, *event], or `f(t, z, context)` with the context [N, C].
        t: Start and end; a tensor [2] gets gradients.
        context: What the flow is conditional on, [*batch, C]; its leading dimensions become a part
            of the batch shape.
        divergence: `Exact()`, `Hutchinson()`, `HutchPlusPlus()` or any `Divergence`; None: the
            field's own formula if it has one (`with_divergence`), else `Exact()`.
        running_costs: Functions such as `kinetic` that are integrated along every path that
            `log_density` follows.
        solver: A `Solver`, the name of a backend, or None for the defaults.
        validate_args: As in torch.

    Raises:
        InvalidProblem: If the base is discrete or has no event dimension, if the context does not
            broadcast, or if a part is not what it must be.

    Cost:
        One solve a call; `log_prob` carries D + 1 variables a point, `sample` D.

    Source:
        Chen et al. 2018 (arXiv 1806.07366v5), Theorem 1, eq. 8, and section 4.

    Example:
        >>> from torch.distributions import Independent, Normal
        >>> from ctflow.dynamics import MLP
        >>> base = Independent(Normal(torch.zeros(2), torch.ones(2)), 1)
        >>> flow = ContinuousFlow(base, MLP(2, (16,)))
        >>> x = flow.sample((5,))
        >>> flow.log_prob(x).shape
        torch.Size([5])
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012  # pyright: ignore[reportIncompatibleMethodOverride] - as torch's own distributions have it

    def __init__(
        self,
        base: Distribution,
        field: Callable[..., Tensor],
        t: Sequence[float] | Tensor = (0.0, 1.0),
        *,
        context: Tensor | None = None,
        divergence: Divergence | None = None,
        running_costs: Sequence[RunningCost] = (),
        solver: Solver | str | None = None,
        validate_args: bool | None = None,
    ) -> None:
        """Nothing is solved yet."""
        check_base(base)
        check_parts(field, divergence, running_costs)
        batch = batch_of(base, context)
        self.base = base.expand(batch)
        self.transform = FlowTransform(
            Transport(field, divergence, tuple(running_costs), as_solver(solver)),
            t,
            event_dim=len(base.event_shape),
            context=context,
        )
        super().__init__(batch, base.event_shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> Any:  # noqa: ANN401  # pyright: ignore[reportIncompatibleMethodOverride]
        """Real events; where the base's support is smaller, the rest has log-density -inf."""
        return constraints.independent(constraints.real, len(self.event_shape))

    @property
    def has_rsample(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the base can be differentiated through."""
        return self.base.has_rsample

    @property
    def field(self) -> Callable[..., Tensor]:
        """The vector field, whose parameters are the flow's."""
        return self.transform.transport.field

    @property
    def solver(self) -> Solver:
        """How it solves."""
        return self.transform.transport.solver

    def expand(self, batch_shape: Any, _instance: Any = None) -> ContinuousFlow:  # noqa: ANN401
        """The same flow with a larger batch shape; field and solver are shared."""
        context = self.transform.context
        if context is not None:
            context = context.expand(*batch_shape, context.shape[-1])
        return self._like(self.base.expand(batch_shape), self.transform.t, context)

    def at(self, time: float | Tensor) -> ContinuousFlow:
        """The distribution at another time on the way: base samples carried from t0 to `time`.

        Raises:
            InvalidProblem: At t0 itself, where the distribution is the base.
        """
        t = self.transform.t
        start = t[0]
        if float(start) == float(time):
            raise InvalidProblem(
                f"`time` must differ from t0, got {float(time):g} for both. "
                "There the distribution is `flow.base`."
            )
        if isinstance(start, Tensor) or isinstance(time, Tensor):
            ends: Any = torch.stack([torch.as_tensor(start), torch.as_tensor(time)])
        else:
            ends = (start, time)
        return self._like(self.base, ends, self.transform.context)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density in nats.

        Args:
            value: Points, [..., *event], finite.

        Returns:
            One number for each point, [...]; -inf off the support.

        Raises:
            InvalidProblem: If a point is not finite; names it. If the shapes do not fit.
            SolveFailed: If a point did not reach t0; names it, and carries the partial `Solution`.

        Cost:
            One solve.
        """
        check_points(value, self.base)
        bad = not_finite(value, len(self.event_shape))
        if bool(bad.any()):
            where = bad.nonzero()[0].tolist()
            raise InvalidProblem(
                f"`value` must be finite, got sample {_name(where)} with "
                f"{value[tuple(where)].flatten()[:4].tolist()} ({int(bad.sum())} of {bad.numel()} "
                "samples). Clean the data, or use log_density, which goes on without them."
            )
        if not value.numel():
            return self._no_densities(value)
        found = log_density(self, value)
        arrived(found.solution, found.status.shape)
        return found.value

    def sample(self, sample_shape: Any = ()) -> Tensor:  # noqa: ANN401
        """Samples, [*sample, *batch, *event]; no gradient, and no divergence is computed."""
        with torch.no_grad():
            return self._push(self.base.sample(torch.Size(sample_shape)))

    def rsample(self, sample_shape: Any = ()) -> Tensor:  # noqa: ANN401
        """Samples with gradients, [*sample, *batch, *event]; no divergence is computed."""
        return self._push(self.base.rsample(torch.Size(sample_shape)))

    def rsample_and_log_prob(self, sample_shape: Any = ()) -> tuple[Tensor, Tensor]:  # noqa: ANN401
        """Samples with gradients and their log-densities, from one solve.

        Returns:
            Samples [*sample, *batch, *event] and log-densities in nats [*sample, *batch].

        Raises:
            SolveFailed: If a sample did not reach t1.
        """
        z = self.base.rsample(torch.Size(sample_shape))
        if not z.numel():
            return z, self._no_densities(z)
        flat, context = self.transform.flat(z)
        carried = self.transform.carry(flat, context, forwards=True)
        log_prob = self.base.log_prob(z)
        arrived(carried.solution, log_prob.shape)
        return carried.z.reshape(z.shape), log_prob - carried.log_det.reshape(log_prob.shape)

    def trajectory(self, z: Tensor, t: Tensor | Sequence[float]) -> Tensor:
        """Paths of points: where z, which lies at t[0], is at every time of t.

        Args:
            z: Points [..., *event].
            t: Times, [T], strictly monotone in either direction.

        Returns:
            [T, ..., *event].

        Raises:
            InvalidProblem: If the points are not finite, or do not fit event and batch.
            SolveFailed: If a point did not reach the last time.
        """
        shape = check_points(z, self.base, "z")
        flat, context = self.transform.flat(z.expand(shape))
        batch = shape[: len(shape) - len(self.event_shape)]
        solution = arrived(self.transform.transport.follow(flat, t, context), batch)
        return solution.y.reshape(-1, *shape)

    def _no_densities(self, value: Tensor) -> Tensor:
        """Of no points: torch's `Independent` cannot say, and there is nothing to solve."""
        shape = torch.broadcast_shapes(value.shape, self.batch_shape + self.event_shape)
        return value.new_zeros(shape[: len(shape) - len(self.event_shape)])

    def _push(self, z: Tensor) -> Tensor:
        if not z.numel():
            return z
        flat, context = self.transform.flat(z)
        solution = self.transform.transport.follow(flat, self.transform.t, context)
        batch = z.shape[: z.dim() - len(self.event_shape)]
        return arrived(solution, batch).y[-1].reshape(z.shape)

    def _like(
        self, base: Distribution, t: Sequence[float] | Tensor, context: Tensor | None
    ) -> ContinuousFlow:
        transport = self.transform.transport
        return ContinuousFlow(
            base,
            transport.field,
            t,
            context=context,
            divergence=transport.divergence,
            running_costs=transport.costs,
            solver=transport.solver,
            validate_args=self._validate_args,
        )


def log_density(flow: ContinuousFlow, value: Tensor) -> LogDensity:
    """Log-densities of points where some may fail: the failure is a value, the rest is right.

    Args:
        flow: The distribution.
        value: Points, [..., *event]; one that is not finite is left out of the solve.

    Returns:
        A `LogDensity`. A failed point is a constant of the gradient.

    Cost:
        One solve, which also integrates the flow's running costs.

    Example:
        >>> from ctflow import Status
        >>> from torch.distributions import Independent, Normal
        >>> base = Independent(Normal(torch.zeros(1), torch.ones(1)), 1)
        >>> flow = ContinuousFlow(base, lambda t, z: -z)
        >>> found = log_density(flow, torch.tensor([[0.0], [torch.nan]]))
        >>> [Status(int(s)).name for s in found.status], bool(found.value[1].isnan())
        (['OK', 'NON_FINITE'], True)
    """
    return evaluated(flow.base, flow.transform, value)


def _name(where: list[int]) -> str:
    return str(where[0]) if len(where) == 1 else str(where)
