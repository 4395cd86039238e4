"""Recurrent networks as generative models: what a latent ODE is compared with."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ctflow.errors import InvalidProblem
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
        at = at.to(data.t).expand(len(data.x), -1)
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
        check_features(data, self.features)
        few = data.counts < least
        if bool(few.any()):
            b = int(few.nonzero()[0])
            raise InvalidProblem(
                f"each series needs at least {least} observation{'s' if least > 1 else ''}, got "
                f"{int(data.counts[b])} in sample {b}. Drop it."
            )
        return data
