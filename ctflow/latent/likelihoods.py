"""How likely what was seen is, given what the decoder says of it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ctflow.errors import InvalidProblem

__all__ = ["Bernoulli", "Gaussian", "Joint", "Likelihood", "check_width"]


class Likelihood(nn.Module, ABC):
    """A distribution of the data given the decoder's output, feature by feature.

    Every method takes `decoded`, the decoder's output [..., B, T, D], as it comes.
    """

    @property
    @abstractmethod
    def windows(self) -> Tensor | None:
        """Intervals of time [W, 2] over which `rate` is integrated; None if it is not."""

    @abstractmethod
    def rate(self, decoded: Tensor) -> Tensor:
        """What is integrated along the path, [..., K]; K may be 0."""

    @abstractmethod
    def log_prob(
        self, decoded: Tensor, x: Tensor, mask: Tensor, integral: Tensor | None = None
    ) -> Tensor:
        """Log-density of what was seen, in nats, summed over times and features.

        Args:
            decoded: Decoder's output at the times of the data, [..., B, T, D].
            x: Data, [B, T, D]; finite everywhere.
            mask: True where it was seen, bool [B, T, D].
            integral: Integral of `rate` over the windows, [..., B, K]; None where there are none.

        Returns:
            [..., B].
        """

    @abstractmethod
    def mean(self, decoded: Tensor) -> Tensor:
        """Expected data, [..., D]."""

    @abstractmethod
    def sample(self, decoded: Tensor) -> Tensor:
        """Data drawn at random from torch's global generator, [..., D]."""


def check_width(decoded: Tensor, x: Tensor, scale: Tensor | None = None) -> None:
    """Refuse what would be broadcast in silence.

    Args:
        decoded: Decoder's output, [..., B, T, D].
        x: Data, [B, T, D].
        scale: One number, or one for each feature.

    Raises:
        InvalidProblem: If the decoder, or the scale, has another width than the data.
    """
    if decoded.shape[-3:] != x.shape:
        raise InvalidProblem(
            f"the decoder must give [..., B, T, D] for data {list(x.shape)}, got "
            f"{list(decoded.shape)}. Build it with as many outputs as the data have features."
        )
    if scale is not None and scale.dim() == 1 and scale.shape != x.shape[-1:]:
        raise InvalidProblem(
            f"`scale` must be one number or {x.shape[-1]}, one for each feature, got {len(scale)}. "
            "Build the likelihood with the width of the data."
        )


class Gaussian(Likelihood):
    """Independent normal noise of one scale, or of one for each feature:  x ~ N(decoded, scale^2).

    Args:
        scale: Standard deviation, a number or [D], in units of the data.
        learned: Whether it is a parameter, kept positive by its logarithm.

    Raises:
        InvalidProblem: If the scale is not positive.

    Example:
        >>> x = torch.zeros(1, 3, 2)
        >>> Gaussian(0.1).log_prob(x, x, x == 0)
        tensor([8.3020])
    """

    log_scale: Tensor

    def __init__(self, scale: float | Sequence[float] = 0.1, *, learned: bool = False) -> None:
        """Keep the logarithm of the scale."""
        super().__init__()
        try:
            value = torch.as_tensor(scale, dtype=torch.float32).detach()
        except (TypeError, ValueError):  # no numbers: refused below
            value = torch.zeros(0)
        if (
            value.dim() > 1
            or value.numel() == 0
            or not bool((torch.isfinite(value) & (value > 0)).all())
        ):
            raise InvalidProblem(
                f"`scale` must be positive, a number or one for each feature, got {scale!r}. "
                "Give the standard deviation of the noise."
            )
        if learned:
            self.log_scale = nn.Parameter(value.log())
        else:
            self.register_buffer("log_scale", value.log())

    @property
    def windows(self) -> None:
        """Nothing is integrated."""

    def rate(self, decoded: Tensor) -> Tensor:
        """Nothing is integrated."""
        return decoded[..., :0]

    def log_prob(
        self,
        decoded: Tensor,
        x: Tensor,
        mask: Tensor,
        integral: Tensor | None = None,  # noqa: ARG002
    ) -> Tensor:
        """Log-density in nats, [..., B].

        Raises:
            InvalidProblem: If decoder, scale and data have different widths.
        """
        check_width(decoded, x, self.log_scale)
        log_scale = self.log_scale.to(decoded.dtype)
        residual = torch.where(mask, x - decoded, 0.0) * torch.exp(-log_scale)
        each = -0.5 * residual.square() - log_scale - 0.5 * math.log(2 * math.pi)
        return torch.where(mask, each, 0.0).sum(dim=(-2, -1))

    def mean(self, decoded: Tensor) -> Tensor:
        """The decoder's output itself."""
        return decoded

    def sample(self, decoded: Tensor) -> Tensor:
        """The decoder's output with noise."""
        return decoded + self.log_scale.exp().to(decoded.dtype) * torch.randn_like(decoded)


class Bernoulli(Likelihood):
    """Independent binary features, x in {0, 1}, with the decoder's output as log-odds.

    Example:
        >>> x = torch.ones(1, 1, 1)
        >>> Bernoulli().log_prob(torch.zeros(1, 1, 1), x, x == 1)
        tensor([-0.6931])
    """

    @property
    def windows(self) -> None:
        """Nothing is integrated."""

    def rate(self, decoded: Tensor) -> Tensor:
        """Nothing is integrated."""
        return decoded[..., :0]

    def log_prob(
        self,
        decoded: Tensor,
        x: Tensor,
        mask: Tensor,
        integral: Tensor | None = None,  # noqa: ARG002
    ) -> Tensor:
        """Log-probability in nats, [..., B].

        Raises:
            InvalidProblem: If something seen is neither 0 nor 1, or the widths differ.
        """
        check_width(decoded, x)
        wrong = mask & (x != 0) & (x != 1)
        if bool(wrong.any()):
            where = wrong.nonzero()[0].tolist()
            raise InvalidProblem(
                f"`x` of a Bernoulli likelihood must be 0 or 1, got {x[tuple(where)].item()} at "
                f"index {where}. Threshold the data, or use Gaussian()."
            )
        each = torch.where(x > 0.5, nn.functional.logsigmoid(decoded), 0.0)
        each = each + torch.where(x > 0.5, 0.0, nn.functional.logsigmoid(-decoded))
        return torch.where(mask, each, 0.0).sum(dim=(-2, -1))

    def mean(self, decoded: Tensor) -> Tensor:
        """Probability of a one."""
        return decoded.sigmoid()

    def sample(self, decoded: Tensor) -> Tensor:
        """Zeros and ones."""
        return torch.bernoulli(decoded.sigmoid())


class Joint(Likelihood):
    """Several likelihoods side by side, each of its own features; their logarithms add up.

    Args:
        parts: Pairs of a likelihood and its number of features, in the order in which the features
            lie in the data and in the decoder's output. Those that integrate a rate must agree on
            its windows.

    Raises:
        InvalidProblem: If there is no part, a width is not positive, or the windows differ.

    Example:
        >>> both = Joint([(Gaussian(0.1), 2), (Bernoulli(), 1)])
        >>> both.mean(torch.zeros(3))
        tensor([0.0000, 0.0000, 0.5000])
    """

    def __init__(self, parts: Sequence[tuple[Likelihood, int]]) -> None:
        """Take the parts as submodules."""
        super().__init__()
        if not parts or not all(_is_part(part) for part in parts):
            raise InvalidProblem(
                f"`parts` must be pairs of a likelihood and its number of features, got {parts!r}. "
                "Give at least one pair."
            )
        self._likelihoods = [likelihood for likelihood, _ in parts]
        self.parts = nn.ModuleList(self._likelihoods)
        self.widths = [width for _, width in parts]
        found = [w for w in (part.windows for part in self._likelihoods) if w is not None]
        if any(not torch.equal(w, found[0]) for w in found):
            raise InvalidProblem(
                "`parts` that integrate a rate must watch the same windows, got "
                f"{[w.tolist() for w in found]}. Use the same for all of them."
            )

    @property
    def windows(self) -> Tensor | None:
        """Those of the parts."""
        found = (part.windows for part in self._likelihoods)
        return next((w for w in found if w is not None), None)

    def rate(self, decoded: Tensor) -> Tensor:
        """Those of the parts, side by side."""
        return torch.cat([part.rate(d) for part, d in self._each(decoded)], dim=-1)

    def log_prob(
        self, decoded: Tensor, x: Tensor, mask: Tensor, integral: Tensor | None = None
    ) -> Tensor:
        """The sum of those of the parts, [..., B]."""
        total = decoded.new_zeros(decoded.shape[:-2])
        at = 0
        pieces = zip(self._each(decoded), self._each(x), self._each(mask), strict=True)
        for (part, d), (_, values), (_, seen) in pieces:
            n = part.rate(d[..., :1, :]).shape[-1]
            own = None if integral is None else integral[..., at : at + n]
            total = total + part.log_prob(d, values, seen, own)
            at += n
        return total

    def mean(self, decoded: Tensor) -> Tensor:
        """Those of the parts, side by side."""
        return torch.cat([part.mean(d) for part, d in self._each(decoded)], dim=-1)

    def sample(self, decoded: Tensor) -> Tensor:
        """Those of the parts, side by side."""
        return torch.cat([part.sample(d) for part, d in self._each(decoded)], dim=-1)

    def _each(self, features: Tensor) -> list[tuple[Likelihood, Tensor]]:
        if features.shape[-1] != sum(self.widths):
            raise InvalidProblem(
                f"a joint likelihood of {self.widths} features needs {sum(self.widths)}, got "
                f"{features.shape[-1]}. Widen the data and the decoder's output."
            )
        return list(zip(self._likelihoods, features.split(self.widths, dim=-1), strict=True))


def _is_part(part: object) -> bool:
    """Whether it is a pair of a module and a positive integer."""
    if not isinstance(part, tuple) or len(part) != 2:
        return False
    likelihood, width = part
    return isinstance(likelihood, nn.Module) and type(width) is int and width > 0
