"""The image classifiers of the paper's Table 1: ODE-Net, RK-Net, ResNet, and a plain MLP.

All but the last share one plan: downsampling to a small image of C channels, a body that keeps its
shape, and a head. Only the body differs, so that a comparison is one of bodies.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

from torch import Tensor, nn

from ctflow.backends.protocol import Solver
from ctflow.dynamics.block import ODEBlock
from ctflow.dynamics.conv import ConvField, in_place
from ctflow.errors import InvalidProblem

__all__ = [
    "ImageClassifier",
    "ResidualBlock",
    "image_classifier",
    "ode_net",
    "one_hidden_layer",
    "res_net",
    "rk_net",
]

Downsampling: TypeAlias = Literal["conv", "res"]
Activation: TypeAlias = Callable[[], nn.Module]

_GROUPS = 32  # of the released MNIST example, which has 64 channels


class ImageClassifier(nn.Module):
    """Images to logits:  head(body(stem(x))).

    Args:
        stem: [B, C_in, H, W] to [B, C, h, w].
        body: Keeps that shape.
        head: To [B, K].

    Example:
        >>> import torch
        >>> model = ode_net(channels=4)
        >>> model(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
        >>> model.body.solver = Solver(rtol=1e-1, atol=1e-1)  # the weights stay as they are
        >>> int(model.body.stats.forward.n_f_evals[0]) > 0
        True
    """

    def __init__(self, stem: nn.Module, body: nn.Module, head: nn.Module) -> None:
        """Put the three parts together."""
        super().__init__()
        self.stem = stem
        self.body = body
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, C_in, H, W] to logits [B, K]."""
        return self.head(self.body(self.stem(x)))


class ResidualBlock(nn.Module):
    """A pre-activation residual block:  x + conv(a(GN(conv(a(GN(x)))))).

    Args:
        channels: C, even and at most 64, or a multiple of 64; or 1.
        stride: Of the first convolution; where it is not 1, the way past is a 1x1 convolution of
            the same stride on a(GN(x)).
        activation: Makes each activation.

    Source:
        He et al. 2016, "Identity mappings in deep residual networks" (arXiv 1603.05027); layers as
        in torchdiffeq's `examples/odenet_mnist.py`.

    Example:
        >>> import torch
        >>> ResidualBlock(4, stride=2)(torch.zeros(2, 4, 13, 13)).shape
        torch.Size([2, 4, 7, 7])
    """

    def __init__(self, channels: int, *, stride: int = 1, activation: Activation = nn.ReLU) -> None:
        """Draw the weights as `torch.nn.Conv2d` does."""
        super().__init__()
        self.norm1 = _norm(channels)
        self.activation1 = in_place(activation())
        self.past = (
            nn.Identity() if stride == 1 else nn.Conv2d(channels, channels, 1, stride, bias=False)
        )
        self.stride = stride
        self.conv1 = nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False)
        self.norm2 = _norm(channels)
        self.activation2 = in_place(activation())
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, C, H, W] to [B, C, H / stride, W / stride], rounded up."""
        h = self.activation1(self.norm1(x))
        past = x if self.stride == 1 else self.past(h)
        return past + self.conv2(self.activation2(self.norm2(self.conv1(h))))


def image_classifier(
    body: nn.Module,
    channels: int = 64,
    *,
    downsampling: Downsampling = "conv",
    channels_in: int = 1,
    classes: int = 10,
    activation: Activation = nn.ReLU,
) -> ImageClassifier:
    """The plan that the paper's image networks share, around a body.

    Args:
        body: Keeps [B, C, h, w].
        channels: C.
        downsampling: "conv": a 3x3 and two 4x4 convolutions of stride 2, 28 pixels to 6; "res":
            a 3x3 convolution and two residual blocks of stride 2, 28 pixels to 7.
        channels_in: Channels of the images.
        classes: K.
        activation: Makes each activation of stem and head.

    Raises:
        InvalidProblem: If `downsampling` is neither.
    """
    stems = {"conv": _convolutions, "res": _residual_blocks}
    if downsampling not in stems:
        raise InvalidProblem(
            f"`downsampling` must be 'conv' or 'res', got {downsampling!r}. "
            "Table 1's 0.60 M parameters of ResNet are those of 'res'."
        )
    head = nn.Sequential(
        _norm(channels),
        in_place(activation()),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels, classes),
    )
    return ImageClassifier(stems[downsampling](channels_in, channels, activation), body, head)


def ode_net(
    channels: int = 64,
    *,
    solver: Solver | str | None = None,
    downsampling: Downsampling = "conv",
    activation: Activation = nn.ReLU,
) -> ImageClassifier:
    """The paper's ODE-Net: one `ODEBlock` over a `ConvField` where ResNet has six blocks.

    Args:
        channels: C; 64 in the released example.
        solver: How the body solves; None means the paper's tolerance of 1e-3 and its adjoint. May
            be set anew after training: `model.body.solver = ...`.
        downsampling: See `image_classifier`.
        activation: Makes every activation. A smooth one (`torch.nn.SiLU`) needs fewer evaluations.

    Source:
        Chen et al. 2018 (arXiv 1806.07366v5), section 3. With 64 channels 208,266 parameters
        ("conv") or 232,970 ("res"); the paper says 0.22 M.
    """
    how = Solver(rtol=1e-3, atol=1e-3, gradient="adjoint") if solver is None else solver
    body = ODEBlock(ConvField(channels, activation=activation), solver=how)
    return image_classifier(body, channels, downsampling=downsampling, activation=activation)


def rk_net(
    channels: int = 64,
    *,
    step: float = 0.25,
    downsampling: Downsampling = "conv",
    activation: Activation = nn.ReLU,
) -> ImageClassifier:
    """The paper's RK-Net: the ODE-Net, back-propagated through a Runge-Kutta integrator.

    Args:
        channels: C.
        step: Fixed step of the classical Runge-Kutta method of order 4 over [0, 1]; the paper
            does not say which method and steps it took.
        downsampling: See `image_classifier`.
        activation: Makes every activation.
    """
    how = Solver(method="rk4", step=step, gradient="direct")
    return ode_net(channels, solver=how, downsampling=downsampling, activation=activation)


def res_net(
    channels: int = 64,
    blocks: int = 6,
    *,
    downsampling: Downsampling = "conv",
    activation: Activation = nn.ReLU,
) -> ImageClassifier:
    """The paper's residual network, and its ablations with fewer blocks, down to none.

    Args:
        channels: C.
        blocks: Residual blocks of the body; 6 in the paper. With 1 or even 0 it does about as well
            on MNIST, which is why they belong into every comparison.
        downsampling: See `image_classifier`.
        activation: Makes every activation.

    Raises:
        InvalidProblem: If `blocks` is negative.

    Source:
        Chen et al. 2018 (arXiv 1806.07366v5), section 3. With 64 channels 576,778 parameters
        ("conv") or 601,482 ("res", the paper's 0.60 M).
    """
    if blocks < 0:
        raise InvalidProblem(f"`blocks` must not be negative, got {blocks}. 0 leaves the body out.")
    body = nn.Sequential(*(ResidualBlock(channels, activation=activation) for _ in range(blocks)))
    return image_classifier(body, channels, downsampling=downsampling, activation=activation)


def one_hidden_layer(
    pixels: int = 784, hidden: int = 300, *, classes: int = 10, activation: Activation = nn.ReLU
) -> nn.Sequential:
    """The multilayer perceptron of Table 1: 784-300-10, 238,510 parameters.

    Args:
        pixels: Values of an image.
        hidden: Width of the hidden layer.
        classes: K.
        activation: Makes the activation.

    Source:
        Chen et al. 2018 (arXiv 1806.07366): the 300 units are in the text of version 4.

    Example:
        >>> sum(p.numel() for p in one_hidden_layer().parameters())
        238510
    """
    return nn.Sequential(
        nn.Flatten(), nn.Linear(pixels, hidden), activation(), nn.Linear(hidden, classes)
    )


def _norm(channels: int) -> nn.GroupNorm:
    # Two channels a group at least: with one, the mean over an image that the head takes is that
    # of normalised values, and a small network hardly learns.
    return nn.GroupNorm(min(_GROUPS, max(channels // 2, 1)), channels)


def _convolutions(channels_in: int, channels: int, activation: Activation) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels, 3),
        _norm(channels),
        in_place(activation()),
        nn.Conv2d(channels, channels, 4, stride=2, padding=1),
        _norm(channels),
        in_place(activation()),
        nn.Conv2d(channels, channels, 4, stride=2, padding=1),
    )


def _residual_blocks(channels_in: int, channels: int, activation: Activation) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels, 3),
        ResidualBlock(channels, stride=2, activation=activation),
        ResidualBlock(channels, stride=2, activation=activation),
    )
