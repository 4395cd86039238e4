"""The paper's recurrence, run in place, is torch's own: values and derivatives of every order."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import Tensor, nn

from ctflow.latent import RNNEncoder
from ctflow.latent.recurrence import states_of
from tests.latent.parts import DTYPE, irregular, small_model


def _drawn(n: int, batch: int = 3) -> tuple[nn.RNN, Tensor]:
    torch.manual_seed(n)
    network = nn.RNN(2, 4, batch_first=True).to(DTYPE)
    return network, torch.randn(batch, n, 2, dtype=DTYPE, requires_grad=True)


@pytest.mark.parametrize("n", [1, 2, 7])
def test_it_is_the_recurrence_of_torch(n: int) -> None:
    """Values, and the gradient of each input and weight, to rounding."""
    network, x = _drawn(n)
    wanted = (x, *network.parameters())
    found: list[list[Tensor]] = []
    for states in (states_of(network, x), network(x)[0]):
        loss = (states * torch.arange(1.0, 1 + states.numel()).reshape(states.shape)).sum()
        found.append([states, *torch.autograd.grad(loss, wanted)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_its_derivative_has_a_derivative() -> None:
    """For penalties on gradients."""
    network, x = _drawn(4)
    weights = list(network.parameters())

    def states(x: Tensor, *weights: Tensor) -> Tensor:
        names = [name for name, _ in network.named_parameters()]
        given = dict(zip(names, weights, strict=True))

        class Both(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.network = network

            def forward(self, x: Tensor) -> Tensor:
                return states_of(self.network, x)

        named = {f"network.{name}": weight for name, weight in given.items()}
        return torch.func.functional_call(Both(), named, (x,))

    assert torch.autograd.gradcheck(states, (x, *weights))
    assert torch.autograd.gradgradcheck(states, (x, *weights))


def test_transforms_and_hooks_find_the_module() -> None:
    """torch.func follows it, and a hook on the module is called."""
    network, x = _drawn(5)
    jacobian = torch.func.jacrev(lambda x: states_of(network, x).sum(dim=(1, 2)))(x.detach())
    (wanted,) = torch.autograd.grad(states_of(network, x).sum(), x)
    torch.testing.assert_close(jacobian.sum(0), wanted)
    seen: list[int] = []
    network.register_forward_hook(lambda module, inputs, output: seen.append(1))
    states_of(network, x)
    assert seen == [1]


def test_an_encoder_of_the_paper_gives_what_torch_would() -> None:
    """With series of different lengths; trained weights of either go with the other."""
    x, t, mask = irregular()
    model = small_model("rnn")
    encoder = model.encoder
    assert isinstance(encoder, RNNEncoder)
    ours = model.posterior(x, t, mask)
    encoder.recurrence.register_forward_hook(lambda *_: None)  # from now on torch's own
    theirs = model.posterior(x, t, mask)
    torch.testing.assert_close(ours.mean, theirs.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours.stddev, theirs.stddev, rtol=1e-12, atol=1e-12)


def test_its_states_go_with_the_graph() -> None:
    """Nothing that the backward pass needs holds what leads to it."""
    network, x = _drawn(5)
    states = states_of(network, x)
    kept = weakref.ref(states.grad_fn)
    del states
    assert kept() is None
