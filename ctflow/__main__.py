"""`python -m ctflow` is the command `ctflow`."""

from ctflow.cli import main

if __name__ == "__main__":
    main()
