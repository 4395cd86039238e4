"""Other libraries' interfaces on ctflow's solvers, for programs that were written for them."""
