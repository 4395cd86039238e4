"""`python -m ctflow.cli.worker`: a process that runs one reproduction; see `outcome.main`."""

from __future__ import annotations

import sys

from ctflow.cli.outcome import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
