"""The notebooks of docs/ run from top to bottom, and carry no outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "docs/notebooks").glob("*.ipynb"))
NEEDS = {"ode_net": ["matplotlib", "sklearn"]}
by_name = pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])


def cells_of(path: Path) -> list[dict[str, Any]]:
    """The cells of one notebook."""
    return json.loads(path.read_text())["cells"]


def test_there_is_one_for_each_family() -> None:
    """Networks, flows and latent models."""
    assert [path.stem for path in NOTEBOOKS] == ["flow", "latent_ode", "ode_net"]


@by_name
@pytest.mark.skipif(not __debug__, reason="python -O drops the assert statements of a notebook")
def test_it_runs_from_top_to_bottom(path: Path) -> None:
    """Each cell in its order, in one namespace, as after "Restart and run all"."""
    for module in NEEDS.get(path.stem, ["matplotlib"]):
        pytest.importorskip(module)
    from matplotlib import pyplot as plt

    namespace: dict[str, object] = {"__name__": "__main__"}
    for cell in cells_of(path):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"{path.name}, {cell['id']}", "exec"), namespace)
    assert plt.get_fignums()
    plt.close("all")


@by_name
def test_it_is_a_notebook_of_format_4_without_outputs(path: Path) -> None:
    """What Jupyter asks of one, and nothing that a run left behind."""
    notebook = json.loads(path.read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(ids) == len(set(ids))
    for cell in notebook["cells"]:
        wanted = {"cell_type", "id", "metadata", "source"}
        if cell["cell_type"] == "code":
            wanted |= {"execution_count", "outputs"}
            assert (cell["execution_count"], cell["outputs"]) == (None, [])
        assert set(cell) == wanted
    assert notebook["cells"][0]["source"][0].startswith("# ")
