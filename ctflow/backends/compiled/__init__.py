"""`backend="compiled"`: the whole adaptive solve, and its gradient, as compiled programs."""
