"""Latent-variable models of time series: latent ODEs, their encoders, likelihoods and baselines.

A model is put together from parts; `elbo` is what its training maximises. Data are values
x [B, T, D] at times t [T] or [B, T], with a mask of what was seen.
"""

from ctflow.latent.baselines import RecurrentModel
from ctflow.latent.elbo import ELBO, annealed, elbo
from ctflow.latent.encoders import Encoder, NormalHead, RNNEncoder
from ctflow.latent.likelihoods import Bernoulli, Gaussian, Joint, Likelihood
from ctflow.latent.model import LatentODE, Path
from ctflow.latent.observations import Observations, pad
from ctflow.latent.ode_rnn import ODERNNEncoder
from ctflow.latent.poisson import PoissonProcess, homogeneous_log_prob

__all__ = [
    "ELBO",
    "Bernoulli",
    "Encoder",
    "Gaussian",
    "Joint",
    "LatentODE",
    "Likelihood",
    "NormalHead",
    "ODERNNEncoder",
    "Observations",
    "Path",
    "PoissonProcess",
    "RNNEncoder",
    "RecurrentModel",
    "annealed",
    "elbo",
    "homogeneous_log_prob",
    "pad",
]
