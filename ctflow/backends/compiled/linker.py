"""Folders for the linker: torch hands them over unquoted, so none may have a space in its name."""

from __future__ import annotations

import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

from torch._inductor import cpp_builder

__all__ = ["folders_without_spaces"]


@contextmanager
def folders_without_spaces() -> Generator[None]:
    """Stand links in for folders of libraries whose names have spaces.

    An environment in "my project/.venv" is common, and torch 2.13 writes `-L` and the folder into
    the command of the linker as they are, which then looks in "my".
    """
    options = cpp_builder.BuildOptionsBase
    given = options.get_libraries_dirs
    with tempfile.TemporaryDirectory() as folder:

        def linked(self: cpp_builder.BuildOptionsBase) -> list[str]:
            return [_stand_in(name, Path(folder)) for name in given(self)]

        with patch.object(options, "get_libraries_dirs", linked):
            yield


def _stand_in(name: str, folder: Path) -> str:
    if not any(letter.isspace() for letter in name):
        return name
    link = folder / str(abs(hash(name)))
    if not link.exists():
        link.symlink_to(name, target_is_directory=True)
    return str(link)
