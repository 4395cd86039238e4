"""The scripts' shared modules are importable, as they are when a script runs."""

from __future__ import annotations

import sys
from pathlib import Path

FOLDER = str(Path(__file__).parents[2] / "reproductions")
if FOLDER not in sys.path:
    sys.path.insert(0, FOLDER)
