"""`backend="torchsde"`: the schemes of torchsde under ctflow's meaning of every setting."""

from ctflow.backends.torchsde.backend import TorchsdeBackend
from ctflow.backends.torchsde.brownian import brownian_path

__all__ = ["TorchsdeBackend", "brownian_path"]
