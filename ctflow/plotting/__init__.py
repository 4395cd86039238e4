"""Pictures of solutions, fields, flows and latent spaces, in one style.

Needs matplotlib (`pip install 'ctflow[plots]'`), which is asked for when something is drawn. Every
function that fills one pair of axes returns them and takes `ax=`; those that need several return
the figure. Nothing is shown or saved: that is the caller's `plt.show()` or `figure.savefig(...)`.
"""

from ctflow.plotting.flows import density, flow_over_time
from ctflow.plotting.latents import latent_space
from ctflow.plotting.planes import phase_portrait, vector_field
from ctflow.plotting.solutions import errors, plot, step_sizes, trajectories

__all__ = [
    "density",
    "errors",
    "flow_over_time",
    "latent_space",
    "phase_portrait",
    "plot",
    "step_sizes",
    "trajectories",
    "vector_field",
]
