"""The convolutional vector field of the paper's MNIST network."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ctflow.errors import InvalidProblem
from ctflow.state import expand_time

__all__ = ["ConcatConv2d", "ConvField"]

_GROUPS = 32  # GroupNorm groups of the released MNIST example, at most one a channel


def in_place(activation: nn.Module) -> nn.Module:
    """The same, but a ReLU that writes to its input, which nobody else reads behind a norm."""
    return nn.ReLU(inplace=True) if type(activation) is nn.ReLU else activation


class ConcatConv2d(nn.Module):
    """A 3x3 convolution that takes the time as one more channel, before the others.

    Height and width are kept: the image is padded by one zero on each side. What the channel of
    time adds is the same map for all samples, times t, and is computed as such: a convolution of
    the other channels alone is faster, whose number is most often a power of 2.

    Args:
        channels_in: Channels of the input, without the time.
        channels_out: Channels of the output.

    Source:
        `ConcatConv2d` in torchdiffeq's `examples/odenet_mnist.py`.

    Example:
        >>> ConcatConv2d(3, 5)(torch.tensor(0.5), torch.zeros(7, 3, 8, 8)).shape
        torch.Size([7, 5, 8, 8])
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        """Draw the weights as `torch.nn.Conv2d` does."""
        super().__init__()
        self.conv = nn.Conv2d(channels_in + 1, channels_out, kernel_size=3, padding=1)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """Map images [B, C_in, H, W] at time t (0-dim or [B, 1, 1, 1]) to [B, C_out, H, W]."""
        of_time, of_image = self.conv.weight.split((1, self.conv.in_channels - 1), dim=1)
        slope = torch.conv2d(y.new_ones(1, 1, *y.shape[2:]), of_time, padding=1)
        image = torch.conv2d(y, of_image, self.conv.bias, padding=1)
        return image + expand_time(t, y).to(y.dtype) * slope


class ConvField(nn.Module):
    """The field of the paper's MNIST network: GN, a, conv(C+1 -> C), GN, a, conv(C+1 -> C), GN.

    GN is a group normalisation with min(32, C) groups, `a` the activation, and each convolution
    is a `ConcatConv2d`. No sample sees another, so that per-sample steps are right; a batch
    normalisation here would couple them.

    Args:
        channels: C, at most 32 or a multiple of 32.
        activation: Makes each activation. The paper's is ReLU; a smooth one (`torch.nn.Softplus`,
            `torch.nn.Tanh`) makes the field differentiable, which checks of gradients need.

    Raises:
        InvalidProblem: If `channels` does not divide into its groups; when called, if `y` is not
            [B, C, H, W].

    Cost:
        18 C (C + 1) multiplications a pixel and call.

    Source:
        Chen et al. 2018 (arXiv 1806.07366v5), section 3; layers as in torchdiffeq's
        `examples/odenet_mnist.py` (75,392 parameters for 64 channels).

    Example:
        >>> field = ConvField(64)
        >>> field(torch.tensor(0.5), torch.zeros(2, 64, 6, 6)).shape
        torch.Size([2, 64, 6, 6])
        >>> sum(p.numel() for p in field.parameters())
        75392
    """

    def __init__(self, channels: int, *, activation: Callable[[], nn.Module] = nn.ReLU) -> None:
        """Make the layers; weights are drawn as `torch.nn.Conv2d` does."""
        super().__init__()
        if channels < 1 or channels % min(_GROUPS, channels):
            raise InvalidProblem(
                f"`channels` must be 1 to {_GROUPS} or a multiple of {_GROUPS}, got {channels!r}. "
                "Group normalisation needs groups of one size."
            )
        self.channels = channels
        groups = min(_GROUPS, channels)
        self.norm1 = nn.GroupNorm(groups, channels)
        self.activation1 = in_place(activation())
        self.conv1 = ConcatConv2d(channels, channels)
        self.norm2 = nn.GroupNorm(groups, channels)
        self.activation2 = in_place(activation())
        self.conv2 = ConcatConv2d(channels, channels)
        self.norm3 = nn.GroupNorm(groups, channels)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """Derivative of the state.

        Args:
            t: Time, 0-dim or [B, 1, 1, 1].
            y: State, [B, C, H, W].

        Returns:
            dy/dt, [B, C, H, W].
        """
        if y.dim() != 4 or y.shape[1] != self.channels:
            raise InvalidProblem(
                f"`y` must be [B, {self.channels}, H, W], got shape {list(y.shape)}. "
                "Build ConvField with the channels of the state."
            )
        y = self.conv1(t, self.activation1(self.norm1(y)))
        y = self.conv2(t, self.activation2(self.norm2(y)))
        return self.norm3(y)
