"""The benchmark behind `ctflow bench`: workloads, contestants, measurements and reports."""
