"""`ConvField` is the field of the paper's MNIST network."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ctflow import InvalidProblem
from ctflow.dynamics import ConvField
from tests.checks import check_close


def n_parameters(module: nn.Module) -> int:
    """Number of trainable values."""
    return sum(p.numel() for p in module.parameters())


def test_the_field_has_the_parameters_of_the_released_mnist_example() -> None:
    """208,266 (the conv ODE-Net) less 132,874 (the same network without the block)."""
    assert n_parameters(ConvField(64)) == 208_266 - 132_874


def test_the_field_is_the_released_stack_of_layers() -> None:
    """GN, ReLU, conv of [t, y], GN, ReLU, conv of [t, y], GN, written out by hand."""
    torch.manual_seed(0)
    field, y = ConvField(4).double(), torch.randn(2, 4, 5, 5, dtype=torch.float64)

    def conv(layer: nn.Conv2d, t: float, y: Tensor) -> Tensor:
        time = torch.full_like(y[:, :1], t)
        image = torch.cat([time, y], dim=1)
        return nn.functional.conv2d(image, layer.weight, layer.bias, padding=1)

    h = conv(field.conv1.conv, 0.25, torch.relu(nn.functional.group_norm(y, 4)))
    h = conv(field.conv2.conv, 0.25, torch.relu(nn.functional.group_norm(h, 4)))
    expected = nn.functional.group_norm(h, 4)
    check_close(field(torch.tensor(0.25, dtype=torch.float64), y), expected, rtol=1e-10, atol=1e-12)


def test_the_time_of_each_sample_is_its_own() -> None:
    """A batch at its own times is its samples at theirs."""
    torch.manual_seed(0)
    field, y = ConvField(4).double(), torch.randn(3, 4, 5, 5, dtype=torch.float64)
    t = torch.tensor([0.0, 0.5, -2.0], dtype=torch.float64)
    one_by_one = [field(t[i], y[i : i + 1]) for i in range(3)]
    check_close(field(t.reshape(3, 1, 1, 1), y), torch.cat(one_by_one), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("channels", "groups"), [(1, 1), (16, 16), (32, 32), (64, 32)])
def test_there_are_at_most_32_groups(channels: int, groups: int) -> None:
    """GroupNorm(min(32, C), C)."""
    assert ConvField(channels).norm1.num_groups == groups


def test_the_activation_is_a_choice() -> None:
    """A smooth one replaces ReLU."""
    assert isinstance(ConvField(4, activation=nn.Softplus).activation2, nn.Softplus)


@pytest.mark.parametrize("channels", [0, -4, 33, 48])
def test_channels_that_do_not_divide_into_groups_are_refused(channels: int) -> None:
    """The message says which numbers are possible."""
    with pytest.raises(InvalidProblem, match="multiple of 32"):
        ConvField(channels)


@pytest.mark.parametrize("shape", [(4, 8), (2, 3, 5, 5), (4, 5, 5)], ids=str)
def test_a_state_that_is_no_image_batch_is_refused(shape: tuple[int, ...]) -> None:
    """The message names the shape wanted and the shape given."""
    with pytest.raises(InvalidProblem, match=r"must be \[B, 4, H, W\]"):
        ConvField(4)(torch.tensor(0.0), torch.zeros(shape))
