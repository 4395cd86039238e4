"""torchdiffeq's interface on ctflow's solvers.

    from ctflow.compat.torchdiffeq import odeint, odeint_adjoint, odeint_event, odeint_dense

with torchdiffeq's signatures, option dicts, callbacks, method names and return values. What cannot
be honoured raises by name; docs/compat.md lists it. `ctflow run --replace torchdiffeq script.py`
runs a script with its import of torchdiffeq answered from here.
"""

from ctflow.compat.torchdiffeq.api import odeint, odeint_adjoint, odeint_dense, odeint_event

__all__ = ["odeint", "odeint_adjoint", "odeint_dense", "odeint_event"]

__version__ = "0.2.5"  # of torchdiffeq, whose interface this is
