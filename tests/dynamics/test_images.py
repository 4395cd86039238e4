"""The networks of Table 1 have the sizes, layers and settings that the paper and its code have."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ctflow import InvalidProblem, Solver
from ctflow.dynamics import (
    ImageClassifier,
    ResidualBlock,
    image_classifier,
    ode_net,
    one_hidden_layer,
    res_net,
    rk_net,
)
from tests.checks import check_close

COUNTS = [
    (lambda: ode_net(downsampling="conv"), 208_266),
    (lambda: rk_net(downsampling="conv"), 208_266),
    (lambda: res_net(blocks=6, downsampling="conv"), 576_778),
    (lambda: res_net(blocks=1, downsampling="conv"), 206_858),
    (lambda: res_net(blocks=0, downsampling="conv"), 132_874),
    (lambda: ode_net(downsampling="res"), 232_970),
    (lambda: rk_net(downsampling="res"), 232_970),
    (lambda: res_net(blocks=6, downsampling="res"), 601_482),
    (lambda: res_net(blocks=1, downsampling="res"), 231_562),
    (lambda: res_net(blocks=0, downsampling="res"), 157_578),
    (one_hidden_layer, 238_510),
]


@pytest.mark.parametrize(("build", "count"), COUNTS)
def test_a_network_has_the_parameters_of_the_released_example(
    build: Callable[[], nn.Module], count: int
) -> None:
    """With 64 channels, both ways of downsampling; the perceptron has 0.24 M."""
    model = build()
    assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize(("downsampling", "size"), [("conv", 6), ("res", 7)])
def test_the_body_keeps_the_small_image(downsampling: str, size: int) -> None:
    """28 pixels become 6 or 7, and ten logits."""
    model = res_net(4, 1, downsampling=downsampling)
    x = torch.randn(3, 1, 28, 28)
    assert model.stem(x).shape == (3, 4, size, size)
    assert model.body(model.stem(x)).shape == (3, 4, size, size)
    assert model(x).shape == (3, 10)


def test_a_residual_block_is_the_released_stack_of_layers() -> None:
    """out = a(GN(x)); shortcut(out or x) + conv(a(GN(conv(out)))), written out by hand."""
    torch.manual_seed(0)
    block, x = ResidualBlock(4, stride=2).double(), torch.randn(2, 4, 7, 7, dtype=torch.float64)
    conv = nn.functional.conv2d

    def active(x: Tensor) -> Tensor:
        return torch.relu(nn.functional.group_norm(x, 2))

    out = active(x)
    inner = active(conv(out, block.conv1.weight, stride=2, padding=1))
    expected = conv(out, block.past.weight, stride=2) + conv(inner, block.conv2.weight, padding=1)
    check_close(block(x), expected, rtol=1e-10, atol=1e-12)


def test_a_residual_block_of_stride_one_adds_to_its_input() -> None:
    """With the last convolution at zero it is the identity."""
    block, x = ResidualBlock(4), torch.randn(2, 4, 5, 5)
    nn.init.zeros_(block.conv2.weight)
    check_close(block(x), x, rtol=0.0)


@pytest.fixture
def trained() -> ImageClassifier:
    """An ODE-Net whose field is wound up, so that tolerances matter."""
    torch.manual_seed(0)
    model = ode_net(4, activation=nn.SiLU, solver=Solver(rtol=1e-5, atol=1e-5)).double()
    nn.init.normal_(model.body.field.norm3.weight, std=0.5)
    return model.eval()


@torch.no_grad()
def test_the_tolerance_may_change_after_training(trained: ImageClassifier) -> None:
    """The weights stay bit for bit, evaluations fall and the result hardly moves."""
    x = torch.randn(2, 1, 28, 28, dtype=torch.float64)
    before = {name: value.clone() for name, value in trained.state_dict().items()}
    fine = trained(x)
    most = int(trained.body.stats.forward.n_f_evals.max())
    trained.body.solver = Solver(rtol=1e-2, atol=1e-2)
    coarse = trained(x)
    assert int(trained.body.stats.forward.n_f_evals.max()) < most
    assert 0 < float((coarse - fine).norm() / fine.norm()) < 1e-1
    assert all(torch.equal(value, before[name]) for name, value in trained.state_dict().items())


def test_the_bodies_solve_as_the_paper_says() -> None:
    """ODE-Net: the adjoint at 1e-3. RK-Net: backward through fixed steps, whose number is known."""
    x = torch.randn(2, 1, 28, 28)
    ode, rk = ode_net(4, activation=nn.SiLU), rk_net(4, step=0.5)
    nn.init.zeros_(ode.body.field.norm3.weight)  # begin at the identity, which is no stiff field
    ode(x)
    rk(x).sum().backward()
    assert (ode.body.stats.solver.gradient, ode.body.stats.solver.rtol) == ("adjoint", 1e-3)
    assert (rk.body.stats.solver.gradient, rk.body.stats.solver.method) == ("direct", "rk4")
    assert rk.body.stats.forward.n_accepted.tolist() == [2, 2]
    assert all(p.grad is not None for p in rk.parameters())


def test_a_wrong_setting_is_refused() -> None:
    """Before any weight is drawn."""
    with pytest.raises(InvalidProblem, match="must be 'conv' or 'res'"):
        image_classifier(nn.Identity(), 4, downsampling="pool")
    with pytest.raises(InvalidProblem, match="must not be negative"):
        res_net(4, -1)
