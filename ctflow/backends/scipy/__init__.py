"""`backend="scipy"`: the solvers of SciPy, the paper's own among them, under ctflow's settings."""

from ctflow.backends.scipy.backend import ScipyBackend

__all__ = ["ScipyBackend"]
