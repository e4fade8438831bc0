"""Mean shift: closed forms, the slow reference, and what must not matter."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from personlab.codec.hough import HoughMap
from personlab.codec.score import extent
from personlab.codec.shift import mean_shift
from tests.coco_person import FLIP, KAPPAS, K
from tests.reference import codec as reference
from tests.reference.scenes import figure

mean_shift = partial(mean_shift, kappas=KAPPAS)
BIN, RADIUS = 2.0, 32.0
SMALL = torch.ones(1)  # an extent for which sigma is radius / 8


def masses(*points: tuple[int, int, float]) -> HoughMap:
    """The same masses at (x, y) pixels of even numbers, for every keypoint type."""
    score = torch.zeros(K, 70, 70)
    for x, y, mass in points:
        score[:, y // 2, x // 2] = mass
    return HoughMap(score, BIN)


def at(x: float, y: float) -> Tensor:
    """A pose (1 x K x 2) whose keypoints are all at (x, y)."""
    return torch.tensor([x, y]).expand(1, K, 2).clone()


def test_a_single_vote_is_where_the_keypoint_goes() -> None:
    found = mean_shift(masses((40, 60, 1e-3)), at(43.0, 57.0), SMALL, radius=RADIUS)
    torch.testing.assert_close(found, at(40.0, 60.0))


def test_votes_count_by_their_distance() -> None:
    """4 px to the left and 8 px to the right, which are one and two sigma away."""
    found = mean_shift(masses((36, 60, 1.0), (48, 60, 1.0)), at(40.0, 60.0), SMALL, radius=RADIUS)
    near, far = math.exp(-1 / 2), math.exp(-4 / 2)
    torch.testing.assert_close(found, at(40.0 + (8 * far - 4 * near) / (near + far), 60.0))


def test_sigma_grows_with_the_person_and_the_keypoint() -> None:
    votes, extents = masses((36, 60, 1.0), (48, 60, 1.0)), torch.tensor([200.0])
    found = mean_shift(votes, at(40.0, 60.0), extents, radius=RADIUS)
    for k, kappa in enumerate(KAPPAS):
        sigma = max(4.0, 200 * kappa / 2)
        near, far = math.exp(-(4**2) / (2 * sigma**2)), math.exp(-(8**2) / (2 * sigma**2))
        assert float(found[0, k, 0]) == pytest.approx(40 + (8 * far - 4 * near) / (near + far), abs=1e-4)


def test_without_votes_in_the_disk_keypoints_stay() -> None:
    for place in (at(40.0, 60.0), at(-1000.0, 1e6)):
        found = mean_shift(masses((40 + 34, 60, 1.0)), place, SMALL, radius=RADIUS)
        assert torch.equal(found, place)


def test_nobody() -> None:
    assert mean_shift(masses(), torch.zeros(0, K, 2), torch.zeros(0), radius=RADIUS).shape == (0, K, 2)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([10.0, 32.0]), st.sampled_from([2.0, 3.7]))
def test_the_reference(seed: int, radius: float, bin: float) -> None:
    rng = np.random.default_rng(seed)
    h = rng.random((K, 20, 25)) * (rng.random((K, 20, 25)) < 0.1)
    keypoints, present = rng.uniform(-10, 100, (2, K, 2)), rng.random((2, K))
    poses = torch.from_numpy(keypoints)
    extents = extent(poses, torch.from_numpy(present))
    found = mean_shift(HoughMap(torch.from_numpy(h), bin), poses, extents, radius=radius)
    for j in range(2):
        expected = reference.mean_shift(h, keypoints[j], present[j], bin=bin, radius=radius)
        np.testing.assert_allclose(found[j].numpy(), expected, rtol=0, atol=1e-6)


def test_mirrored_votes_move_mirrored_keypoints() -> None:
    score = torch.rand(K, 41, 51, generator=torch.Generator().manual_seed(0)).double()
    pose = figure(40.0, 10.0, 60.0).double()[None]
    mirror, shift = torch.tensor([-1.0, 1.0]).double(), torch.tensor([100.0, 0.0]).double()
    one = mean_shift(HoughMap(score, BIN), pose, torch.tensor([40.0]), radius=RADIUS)
    turned = HoughMap(score[list(FLIP)].flip(-1), BIN)
    other = mean_shift(turned, pose[:, list(FLIP)] * mirror + shift, torch.tensor([40.0]), radius=RADIUS)
    torch.testing.assert_close(other[:, list(FLIP)] * mirror + shift, one)


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_everything_scales(factor: float) -> None:
    score = torch.rand(K, 41, 51, generator=torch.Generator().manual_seed(0)).double()
    pose = figure(40.0, 10.0, 60.0).double()[None]
    one, other = (
        mean_shift(HoughMap(score, BIN * f), pose * f, torch.tensor([40.0 * f]), radius=RADIUS * f)
        for f in (1.0, factor)
    )
    torch.testing.assert_close(other, one * factor)
