"""`python -m ctflow.cli` is `ctflow`."""

from ctflow.cli import main

main()
