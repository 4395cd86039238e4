"""The density of digits runs from images to files, and bits are counted right."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from _harness.pixels import LEVELS, N_PIXELS, Space, load_pixels
from torch import Tensor
from torch.distributions import Independent, Normal

from ctflow.cli.checkout import load_script

pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def space() -> Space:
    """Of 300 images."""
    return Space.of(load_pixels(0, 300).train, seed=0)


def test_the_record_has_every_model(tmp_path: Path) -> None:
    """The continuous flows begin at the Gaussian."""
    pytest.importorskip("matplotlib")
    pytest.importorskip("zuko")
    script = load_script(Path(__file__).parents[2], "digits_density")
    script.main(replace(script.PRESETS["smoke"], results=tmp_path))
    record = json.loads((tmp_path / "smoke.json").read_text())
    bits = {row["model"]: row["bits"] for row in record["rows"]}
    assert list(bits) == ["Gaussian", "FFJORD", "potential", "matching", "spline"]
    assert abs(bits["FFJORD"] - bits["Gaussian"]) < 0.1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["smoke.json", "smoke.png"]


def test_no_image_is_in_two_parts() -> None:
    """All 1,797 are used, once."""
    parts = load_pixels(3)
    assert [len(part) for part in parts] == [1259, 179, 359]
    assert len(torch.cat(parts).unique(dim=0)) == 1797


def test_points_are_images_again(space: Space) -> None:
    """The map's inverse, to rounding; the noise stays within a level."""
    images = load_pixels(0, 300).test
    points, _ = space.points(images)
    off = space.back(points) - images
    assert float(off.min()) > -1e-2
    assert float(off.max()) < 1 + 1e-2


def test_the_log_determinant_is_that_of_the_map(space: Space) -> None:
    """By brute force, with the noise held."""
    image = load_pixels(0, 300).test[:1]

    def points(x: Tensor) -> Tensor:
        torch.manual_seed(0)
        return space.points(x)[0]

    jacobian = torch.autograd.functional.jacobian(points, image).reshape(N_PIXELS, N_PIXELS)
    torch.manual_seed(0)
    _, log_det = space.points(image)
    assert abs(float(torch.linalg.slogdet(jacobian.double()).logabsdet - log_det)) < 1e-2


def test_equal_levels_need_the_logarithm_of_their_number(space: Space) -> None:
    """A density that is uniform over [0, 17)^64 costs log2(17) bits a pixel, whatever the map."""
    images = load_pixels(0, 300).test[:5]

    def uniform(points: Tensor) -> Tensor:
        """1 / 17^64 per unit of grey levels, brought to the whitened space."""
        share = torch.sigmoid(points @ space.factor.t() + space.mean)
        slope = share.log() + torch.log1p(-share) - math.log(0.9 / LEVELS)
        log_det = slope.sum(dim=1) + space.factor.diagonal().log().sum()
        return log_det - N_PIXELS * math.log(LEVELS)

    bits = space.bits(uniform, images, 2)
    assert torch.allclose(bits, torch.full_like(bits, math.log2(LEVELS)), rtol=1e-4)


def test_whitened_images_have_the_covariance_of_the_base(space: Space) -> None:
    """Mean zero and variance one over the training images, so that N(0, I) is their Gaussian."""
    torch.manual_seed(0)
    images = load_pixels(0, 300).train
    points = torch.cat([space.points(images)[0] for _ in range(10)])
    assert float(points.mean(dim=0).abs().max()) < 0.1
    assert float((points.var(dim=0) - 1).abs().max()) < 0.3
    gaussian = Independent(Normal(torch.zeros(N_PIXELS), torch.ones(N_PIXELS)), 1)
    assert float(gaussian.log_prob(points).mean()) < -0.5 * N_PIXELS
