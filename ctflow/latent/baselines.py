"""Recurrent networks as generative models: what a latent ODE is compared with."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ctflow.errors import InvalidProblem
from ctflow.latent.checks import check_tensors
from ctflow.latent.encoders import Cell, check_features, keep_memory
from ctflow.latent.likelihoods import Likelihood
from ctflow.latent.observations import Observations

__all__ = ["RecurrentModel"]


class RecurrentModel(nn.Module):
    """A recurrent network that predicts each observation from those before it.

        log p(x) = sum_i log p(x_i | x_1, ..., x_{i-1})

    Without gaps it counts observations and knows nothing of time; with `gaps=True` it also reads
    how long it is to the observation that it predicts next, as in the paper's second baseline.
    It forecasts by feeding on its own expectations.

    Args:
        features: Features of the data, D.
        likelihood: Distribution of the data given the read-out.
        hidden: Width of the recurrence.
        cell: "rnn", tanh as in the paper, or "gru".
        gaps: Whether it reads the times.

    Raises:
        InvalidProblem: If the likelihood integrates a rate: there is no path to do it along.

    Cost:
        One pass over the observations; a forecast takes one step of the cell for each time.

    Source:
        Chen et al. 2018 (arXiv 1806.07366v5), section 5.1.

    Example:
        >>> from ctflow.latent import Gaussian
        >>> model = RecurrentModel(2, Gaussian(0.1), gaps=True)
        >>> model.log_prob(torch.zeros(5, 30, 2), torch.linspace(0, 1, 30)).shape
        torch.Size([5])
    """

    def __init__(
        self,
        features: int,
        likelihood: Likelihood,
        hidden: int = 25,
        *,
        cell: Cell = "rnn",
        gaps: bool = False,
    ) -> None:
        """Make the recurrence and its read-out."""
        super().__init__()
        if likelihood.windows is not None:
            raise InvalidProblem(
                "`likelihood` of a recurrent model must not integrate a rate, got one with windows "
                f"{likelihood.windows.tolist()}. Use a LatentODE."
            )
        if cell not in ("rnn", "gru"):
            raise InvalidProblem(f"`cell` must be 'rnn' or 'gru', got {cell!r}. Choose one.")
        self.features, self.gaps, self.likelihood = features, gaps, likelihood
        make = nn.GRU if cell == "gru" else nn.RNN
        self.recurrence = make(2 * features + int(gaps), hidden, batch_first=True)
        keep_memory(self.recurrence)
        self.readout = nn.Linear(hidden, features)

    def log_prob(self, x: Tensor, t: Tensor, mask: Tensor | None = None) -> Tensor:
        """Log-density of each series after its first observation, in nats, [B].

        Args:
            x: Values, [B, T, D].
            t: Times, [T] or [B, T].
            mask: True where a value was seen; None: everywhere.

        Raises:
            InvalidProblem: If the observations make no sense, or a series has fewer than two.
        """
        data = self._checked(x, t, mask, least=2).packed()
        ahead = data.times.diff(dim=1)
        decoded = self.readout(self._run(data, ahead)[0])
        return self.likelihood.log_prob(decoded, data.x[:, 1:], data.seen[:, 1:])

    def predict(self, x: Tensor, t: Tensor, mask: Tensor | None = None, *, at: Tensor) -> Tensor:
        """Expected data at times after the last observation, fed back step by step.

        Args:
            x: Values seen, [B, T, D].
            t: Their times, [T] or [B, T].
            mask: True where a value was seen; None: everywhere.
            at: Times to forecast, [T'] or [B, T'], growing, after those of the data. Without gaps
                only their number counts.

        Returns:
            [B, T', D].

        Raises:
            InvalidProblem: If a time to forecast is not after what came before it.
        """
        data = self._checked(x, t, mask, least=1).packed()
        last = data.counts.unsqueeze(1) - 1
        at = _of_each(at, data)
        steps = at - torch.cat([data.times.gather(1, last), at[:, :-1]], dim=1)
        if bool((steps <= 0).any()):
            b, i = (steps <= 0).nonzero()[0].tolist()
            raise InvalidProblem(
                f"`at` must grow and lie after the last observation, got t={at[b, i].item():g} at "
                f"index {i} of sample {b}. A recurrent model only predicts what comes next."
            )
        ahead = data.times.diff(dim=1, append=data.times[:, -1:])
        ahead = ahead.scatter(1, last, steps[:, :1])  # from the last observation to the first time
        return self._forecast(data, ahead, last, steps)

    def between(self, x: Tensor, t: Tensor, mask: Tensor | None = None, *, at: Tensor) -> Tensor:
        """Expected data at any times after the first observation, each from those before it alone.

        Nothing is fed back: a prediction is one step of the cell from the last observation before
        its time, as in `log_prob`, so it knows nothing of what comes after.

        Args:
            x: Values seen, [B, T, D].
            t: Their times, [T] or [B, T].
            mask: True where a value was seen; None: everywhere.
            at: Times, [T'] or [B, T'], in any order.

        Returns:
            [B, T', D].

        Raises:
            InvalidProblem: If a time does not lie after the series' first observation.

        Cost:
            One pass over the observations, and one step of the cell for each time.
        """
        data = self._checked(x, t, mask, least=1).packed()
        at = _of_each(at, data)
        times = torch.where(data.rows, data.times, torch.inf).contiguous()
        last = torch.searchsorted(times, at) - 1
        if bool((last < 0).any()):
            b, i = (last < 0).nonzero()[0].tolist()
            raise InvalidProblem(
                f"`at` must lie after the first observation, got t={at[b, i].item():g} at index {i}"
                f" of sample {b}, first seen at {times[b, 0].item():g}. A recurrent model only "
                "predicts what comes next."
            )
        states = data.x.new_zeros(len(data.x), 1, self.readout.in_features)  # before the first
        if times.shape[1] > 1:
            states = torch.cat([states, self._run(data, data.times.diff(dim=1))[0]], dim=1)
        inputs = [_rows(data.x, last), _rows(data.seen.to(data.x.dtype), last)]
        if self.gaps:
            gap = (at - times.gather(1, last)).to(data.x.dtype)
            inputs.append(gap.unsqueeze(-1))
        step = torch.cat(inputs, dim=-1).flatten(0, 1).unsqueeze(1)
        before = _rows(states, last).flatten(0, 1).unsqueeze(0)
        after = self.recurrence(step, before.contiguous())[0].reshape(*at.shape, -1)
        return self.likelihood.mean(self.readout(after))

    def _forecast(self, data: Observations, ahead: Tensor, last: Tensor, steps: Tensor) -> Tensor:
        states, _ = self._run(data, ahead)
        hidden = states.shape[2]
        state = states.gather(1, last.unsqueeze(-1).expand(-1, 1, hidden)).transpose(0, 1)
        state = state.contiguous()
        seen = torch.ones_like(data.x[:, :1])
        means: list[Tensor] = []
        for i in range(steps.shape[1]):
            mean = self.likelihood.mean(self.readout(state[-1]))
            means.append(mean)
            if i + 1 < steps.shape[1]:
                inputs = [mean.unsqueeze(1), seen]
                if self.gaps:
                    inputs.append(steps[:, i + 1].reshape(-1, 1, 1).to(mean.dtype))
                _, state = self.recurrence(torch.cat(inputs, dim=-1), state)
        return torch.stack(means, dim=1)

    def _run(self, data: Observations, ahead: Tensor) -> tuple[Tensor, Tensor]:
        """States after each observation that has a time ahead of it, [B, n, hidden]."""
        n = ahead.shape[1]
        inputs = [data.x[:, :n], data.seen[:, :n].to(data.x.dtype)]
        if self.gaps:
            both = data.rows[:, :n]
            gap = torch.where(both, ahead, 0.0).clamp(min=0.0)
            inputs.append(gap.unsqueeze(-1).to(data.x.dtype))
        return self.recurrence(torch.cat(inputs, dim=-1))

    def _checked(self, x: Tensor, t: Tensor, mask: Tensor | None, least: int) -> Observations:
        data = Observations(x, t, mask)
        check_features(data, self.features, self.readout.weight)
        few = data.counts < least
        if bool(few.any()):
            b = int(few.nonzero()[0])
            raise InvalidProblem(
                f"each series needs at least {least} observation{'s' if least > 1 else ''}, got "
                f"{int(data.counts[b])} in sample {b}. Drop it."
            )
        return data


def _of_each(at: Tensor, data: Observations) -> Tensor:
    """Times to predict, one row for each series, [B, T']."""
    check_tensors(at=at)
    if at.dim() not in (1, 2) or (at.dim() == 2 and len(at) != len(data.x)):
        raise InvalidProblem(
            f"`at` must be [T'] or [B, T'], got shape {list(at.shape)} for {len(data.x)} series. "
            "Give one row for each series."
        )
    if at.numel() == 0 or not bool(torch.isfinite(at).all()):
        what = "none" if at.numel() == 0 else "NaN or infinity"
        raise InvalidProblem(f"`at` must be finite times, got {what}. Leave such times out.")
    return at.to(data.t).expand(len(data.x), -1).contiguous()


def _rows(values: Tensor, places: Tensor) -> Tensor:
    """values [B, n, F] at places [B, T'], [B, T', F]."""
    return values.gather(1, places.unsqueeze(-1).expand(-1, -1, values.shape[2]))
