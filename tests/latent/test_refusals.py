"""What a latent ODE refuses by name: parts, paths, data and settings that make no sense."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal

from ctflow import InvalidProblem
from ctflow.latent import Gaussian, LatentODE, Observations, elbo
from tests.latent.parts import DTYPE, ENCODERS, irregular, small_model


class Blind(nn.Module):
    """An encoder that looks at nothing."""

    def forward(self, data: Observations, t0: float) -> Normal:
        zeros = torch.zeros(len(data.x), 1, dtype=DTYPE)
        return Normal(zeros, zeros + 1)


@pytest.mark.parametrize(
    ("z0", "t", "words"),
    [
        (torch.zeros(4, 2), torch.zeros(1), "`z0` must be \\[..., B, 3\\]"),
        (torch.zeros(3), torch.zeros(1), "`z0` must be"),
        (torch.zeros(4, 3), torch.zeros(2, 5), "one row for each series"),
        (torch.zeros(4, 3), torch.tensor([torch.nan]), "finite times, got NaN"),
        (torch.zeros(4, 3), torch.zeros(0), "finite times, got none"),
        (torch.zeros(4, 3), torch.tensor([-1.0, 1.0]), "one side"),
    ],
)
def test_a_path_that_makes_no_sense_is_refused(z0: Tensor, t: Tensor, words: str) -> None:
    """Before any solve."""
    with pytest.raises(InvalidProblem, match=words):
        small_model().trajectory(z0.to(DTYPE), t)


PARTS = {
    "encoder": None, "field": 3.0, "decoder": "linear", "likelihood": lambda decoded, x: 0.0,
    "latent": 0, "t0": math.nan,
}  # fmt: skip


def test_a_time_is_a_number() -> None:
    """Of the latent state."""
    made = small_model()
    with pytest.raises(InvalidProblem, match="`t0` finite, got 3 and 'now'"):
        LatentODE(
            made.encoder, made.field, made.decoder, made.likelihood, latent=3,
            t0="now",  # pyright: ignore[reportArgumentType]
        )  # fmt: skip


@pytest.mark.parametrize("name", PARTS)
def test_parts_that_make_no_sense_are_refused(name: str) -> None:
    """When the model is put together."""
    made = small_model()
    given: dict[str, Any] = {
        "encoder": made.encoder, "field": made.field, "decoder": made.decoder,
        "likelihood": made.likelihood, "latent": 3, "t0": 0.0,
    }  # fmt: skip
    with pytest.raises(InvalidProblem, match=f"`{name}"):
        LatentODE(**(given | {name: PARTS[name]}))


@pytest.mark.parametrize("shape", [(3,), (1, 3), (4, 2), None])
def test_an_encoder_that_gives_something_else_is_refused(shape: tuple[int, ...] | None) -> None:
    """Of one row for all series, of another width, or no distribution."""
    model, (x, t, mask) = small_model(), irregular()
    del model.encoder  # a submodule, which a function cannot replace
    zeros = torch.zeros(shape or (4, 3), dtype=DTYPE)
    answer = Normal(zeros, zeros + 1) if shape else (zeros, zeros)
    model.encoder = lambda data, t0: answer  # pyright: ignore[reportAttributeAccessIssue]
    for call in (lambda: elbo(model, x, t, mask), lambda: model.posterior(x, t, mask)):
        with pytest.raises(InvalidProblem, match=r"must give a Normal of \[4, 3\]"):
            call()


@pytest.mark.parametrize("early", [0, slice(None)])
def test_what_was_seen_before_the_latent_state_is_refused_whatever_the_encoder(
    early: int | slice,
) -> None:
    """One that does not look at times too; by a bound whose encoder is shown the rest alone."""
    x, t, mask = irregular()
    t[early] -= 3.0
    model = LatentODE(Blind(), lambda t, z: -z, nn.Identity(), Gaussian(0.5).to(DTYPE), latent=1)
    with pytest.raises(InvalidProblem, match=r"latent state's time 0, got t=-.* in sample 0"):
        elbo(model, x[..., :1], t, mask[..., :1])
    with pytest.raises(InvalidProblem, match="latent state's time 0"):
        model.predict(x[..., :1], t, mask[..., :1], at=torch.ones(1))


def test_lists_are_refused_by_name() -> None:
    """Of times, wherever they are asked for."""
    model, (x, t, mask) = small_model(), irregular()
    with pytest.raises(InvalidProblem, match="`t` must be a tensor, got list"):
        model.trajectory(torch.zeros(4, 3, dtype=DTYPE), [0.0, 1.0])  # pyright: ignore[reportArgumentType]
    with pytest.raises(InvalidProblem, match="`t` must be a tensor, got list"):
        model.predict(x, t, mask, at=[0.0, 1.0])  # pyright: ignore[reportArgumentType]


def test_settings_of_a_bound_are_checked() -> None:
    """Number of samples and kind of KL."""
    model, (x, t, mask) = small_model(), irregular()
    for wrong in (0, 2.5):
        with pytest.raises(InvalidProblem, match="`n_samples` must be positive"):
            elbo(model, x, t, mask, n_samples=wrong)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InvalidProblem, match="`kl` must be"):
        elbo(model, x, t, mask, kl="exact")  # pyright: ignore[reportArgumentType]


def test_data_of_another_width_are_refused() -> None:
    """The encoder says which."""
    _, t, _ = irregular()
    with pytest.raises(InvalidProblem, match="2 features, got shape \\[4, 6, 1\\]"):
        small_model().posterior(torch.zeros(4, 6, 1, dtype=DTYPE), t)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_data_of_another_dtype_are_refused(encoder: str) -> None:
    """By every encoder, before torch trips over it."""
    x, t, mask = irregular()
    with pytest.raises(InvalidProblem, match=r"dtype torch\.float64, got torch\.float32"):
        small_model(encoder).posterior(x.float(), t, mask)
