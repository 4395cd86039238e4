"""Latent-variable models of time series: latent ODEs and SDEs, their parts, and baselines.

A model is put together from parts; `elbo` is what its training maximises. Data are values
x [B, T, D] at times t [T] or [B, T], with a mask of what was seen.
"""

from ctflow.latent.baselines import RecurrentModel
from ctflow.latent.context import Context, ContextEncoder
from ctflow.latent.elbo import ELBO, annealed, elbo
from ctflow.latent.encoders import Encoder, NormalHead, RNNEncoder
from ctflow.latent.likelihoods import Bernoulli, Gaussian, Joint, Likelihood
from ctflow.latent.model import LatentODE, Path
from ctflow.latent.observations import Observations, pad
from ctflow.latent.ode_rnn import ODERNNEncoder
from ctflow.latent.poisson import PoissonProcess, homogeneous_log_prob
from ctflow.latent.sde import LatentSDE, StochasticPath

__all__ = [
    "ELBO",
    "Bernoulli",
    "Context",
    "ContextEncoder",
    "Encoder",
    "Gaussian",
    "Joint",
    "LatentODE",
    "LatentSDE",
    "Likelihood",
    "NormalHead",
    "ODERNNEncoder",
    "Observations",
    "Path",
    "PoissonProcess",
    "RNNEncoder",
    "RecurrentModel",
    "StochasticPath",
    "annealed",
    "elbo",
    "homogeneous_log_prob",
    "pad",
]
