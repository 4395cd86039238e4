"""An environment in a folder whose name has spaces links what it compiles."""

from __future__ import annotations

from pathlib import Path

from torch._inductor import cpp_builder

from ctflow.backends.compiled.linker import folders_without_spaces


def test_a_folder_with_spaces_reaches_the_linker_by_a_name_without(tmp_path: Path) -> None:
    """And every other folder as it is; afterwards all is as before."""
    folder = tmp_path / "my project"
    folder.mkdir()
    (folder / "libtorch.so").touch()
    options = cpp_builder.BuildOptionsBase(libraries_dirs=[str(folder), "/usr/lib"])
    with folders_without_spaces():
        first, second = options.get_libraries_dirs()
        again, _ = options.get_libraries_dirs()
        assert " " not in first
        assert (Path(first) / "libtorch.so").exists()
        assert (again, second) == (first, "/usr/lib")
    assert options.get_libraries_dirs() == [str(folder), "/usr/lib"]
    assert not Path(first).is_symlink()
