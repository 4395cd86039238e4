"""ctflow's own reference solver: eager, readable, and the one copy of the mathematics."""
