"""Complex numbers inside `f`: spectra, complex parameters, conjugates that are never forgotten."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ctflow import ODEProblem, Solver, solve
from ctflow.backends.compiled import rewrite
from ctflow.backends.compiled.backend import CompiledBackend
from ctflow.errors import Unsupported
from tests.backends.compiled.conftest import operator_by_operator

DTYPE = torch.float64
TIMES = torch.tensor([0.0, 0.3, 0.5], dtype=DTYPE)


class Operator(nn.Module):
    """A layer of a Fourier neural operator: complex weights, and a table that is no parameter."""

    wave: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.3 * torch.randn(3, 3, 4, dtype=torch.complex128))
        self.scale = nn.Parameter(torch.tensor(0.3 + 0.2j, dtype=torch.complex128))
        self.register_buffer("wave", 0.1 * torch.arange(7) * torch.tensor(1j))
        self.local = nn.Linear(3, 3, dtype=DTYPE)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """[B, 12, 3]."""
        modes = torch.fft.rfft(y, dim=1)
        low = torch.einsum("bki,iok->bko", modes[:, :4], self.weight.conj())
        mixed = torch.cat([low, modes[:, 4:]], 1) * (self.scale * 2).exp()
        back = torch.fft.irfft(0.2 * mixed + modes * self.wave.unsqueeze(1), n=12, dim=1)
        return back + torch.tanh(self.local(y)) - y


def _correlation(t: Tensor, y: Tensor) -> Tensor:
    spectra = torch.fft.rfft(y, dim=1), torch.fft.rfft(y.sin(), dim=1)
    return 0.1 * torch.fft.irfft(spectra[0] * spectra[1].conj(), n=12, dim=1) - t * y


def _square(t: Tensor, y: Tensor) -> Tensor:
    z = torch.view_as_complex(y.reshape(-1, 18, 2))
    return 0.1 * torch.view_as_real(z**2).reshape(y.shape) + 0.1 * z.conj().imag.mean() - y


def _numbers(t: Tensor, y: Tensor) -> Tensor:
    """A derivative by its spectrum, and a wave: as they are written with Python's numbers."""
    waves = 1j * torch.arange(7, dtype=y.dtype).unsqueeze(1)
    slope = torch.fft.irfft(waves * torch.fft.rfft(y, dim=1) * (1 + 0.1j), n=12, dim=1)
    z = torch.view_as_complex(y.reshape(-1, 18, 2))
    w = (2 - 1j * z) / (1 + 0.5j) + 0.1j - (z - 0.2j).conj() * t.exp() + torch.sub(1j, z, alpha=2)
    return 0.1 * slope + 0.1 * torch.view_as_real(w - (0.1 + 0.3j)).reshape(y.shape) - y


def _waves(t: Tensor, y: Tensor) -> Tensor:
    """Derivatives by their spectrum, and Schroedinger's equation."""
    waves = torch.arange(7, dtype=y.dtype).unsqueeze(1)
    modes = torch.fft.rfft(y, dim=1)
    slope = torch.fft.irfft(1j * waves * modes, n=12, dim=1)
    third = torch.fft.irfft((1j * waves) ** 3 * modes, n=12, dim=1)
    z = torch.view_as_complex(y.reshape(-1, 18, 2))
    return -0.1 * y * slope - 0.01 * third + torch.view_as_real(-1j * z).reshape(y.shape)


FIELDS: dict[str, Callable[[], Callable[..., Tensor]]] = {
    "neural operator": Operator,
    "correlation": lambda: _correlation,
    "square": lambda: _square,
    "numbers": lambda: _numbers,
    "waves": lambda: _waves,
}

EVERY_RUN = [(name, "direct") for name in FIELDS if name != "waves"]


def _check(f: Callable[..., Tensor], gradient: str) -> None:
    """Values and all gradients are native's to rounding."""
    found: list[list[Tensor]] = []
    for backend in ("native", CompiledBackend()):
        y0 = torch.linspace(-1, 1, 72, dtype=DTYPE).sin().reshape(2, 12, 3).requires_grad_()
        solver = Solver(backend=backend, rtol=1e-6, atol=1e-8, gradient=gradient)  # pyright: ignore
        y = solve(ODEProblem(f, y0, TIMES), solver).y
        leaves = [y0, *getattr(f, "parameters", list)()]
        found.append([y, *torch.autograd.grad(y.square().mean(), leaves)])  # pyright: ignore
    for x, wanted in zip(found[1], found[0], strict=True):
        assert x.dtype == wanted.dtype
        torch.testing.assert_close(x, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "gradient"),
    [
        pytest.param(
            name,
            gradient,
            marks=[] if (name, gradient) in EVERY_RUN else pytest.mark.slow,
        )
        for name in FIELDS
        for gradient in ("direct", "checkpointed", "adjoint")
    ],
)
def test_it_is_solved_as_by_native(name: str, gradient: str) -> None:
    """Operator by operator: conjugates are views, which are easily taken for what they lie on."""
    torch.manual_seed(0)
    with operator_by_operator():
        _check(FIELDS[name](), gradient)


def test_a_conjugate_that_is_forgotten_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong improvement of a graph gives no wrong values: the trial is of what was written."""
    monkeypatch.setattr(rewrite, "_CHANGING", frozenset())
    with operator_by_operator(), pytest.raises(Unsupported, match="gives other values"):
        _check(_correlation, "direct")


@pytest.mark.slow
@pytest.mark.compiler
@pytest.mark.parametrize("gradient", ["direct", "adjoint"])
@pytest.mark.parametrize("name", ["neural operator", "waves"])
def test_compiled_it_is_the_same(name: str, gradient: str) -> None:
    """No loop takes complex tensors: parameters, constants and what is kept cross as real ones."""
    torch.manual_seed(0)
    _check(FIELDS[name](), gradient)
