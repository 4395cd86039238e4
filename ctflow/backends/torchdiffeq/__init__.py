"""`backend="torchdiffeq"`: the solvers of torchdiffeq under ctflow's meaning of every setting."""

from ctflow.backends.torchdiffeq.backend import TorchdiffeqBackend

__all__ = ["TorchdiffeqBackend"]
