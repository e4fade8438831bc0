"""Scores and non-maximum suppression: closed forms, the slow reference, and what must not matter."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from personlab.codec.hough import HoughMap
from personlab.codec.score import (
    Poses,
    expected_oks,
    extent,
    hard_nms,
    hough_scores,
    score_by_person,
    soft_nms,
)
from tests.coco_person import KAPPAS, K
from tests.reference import codec as reference
from tests.reference.scenes import figure

expected_oks, hard_nms = partial(expected_oks, kappas=KAPPAS), partial(hard_nms, kappas=KAPPAS)

BIN, RADIUS, NMS_RADIUS = 2.0, 32.0, 10.0
POSE = figure(60.0, 30.0, 100.0)
ALL = torch.ones(1, K)


def masses(*points: tuple[int, int, float], rows: int = 70, columns: int = 70) -> HoughMap:
    """A map that holds, for every keypoint type, the same masses at (x, y) pixels of even numbers."""
    score = torch.zeros(K, rows, columns)
    for x, y, mass in points:
        score[:, y // 2, x // 2] = mass
    return HoughMap(score=score, bin=BIN)


def at(x: float, y: float) -> Tensor:
    """A pose (1 x K x 2) whose keypoints are all at (x, y)."""
    return torch.tensor([x, y]).expand(1, K, 2).clone()


def poses(keypoints: Tensor, keypoint_scores: Tensor, present: Tensor | None = None) -> Poses:
    present = torch.ones(keypoint_scores.shape) if present is None else present
    return Poses.of(keypoints, present, keypoint_scores)


def order_of(best: Poses, keypoint_scores: Tensor) -> list[int]:
    """Which of the poses with these keypoint scores (all different) the best ones are."""
    same = (best.keypoint_scores[:, None] == keypoint_scores).all(2)
    assert (same.sum(1) == 1).all()
    return same.float().argmax(1).tolist() if len(same) else []


# the extent of a person


def test_extent_is_the_root_of_the_area_of_the_box() -> None:
    keypoints = at(10.0, 10.0)
    keypoints[0, 3], keypoints[0, 9] = torch.tensor([50.0, 10.0]), torch.tensor([20.0, 100.0])
    assert float(extent(keypoints, ALL)) == pytest.approx(math.sqrt(40.0 * 90.0))


def test_absent_keypoints_do_not_count() -> None:
    keypoints = at(110.0, 110.0)
    keypoints[0, 3], keypoints[0, 9] = torch.tensor([150.0, 110.0]), torch.tensor([120.0, 200.0])
    keypoints[0, 0] = 0.0  # absent, and therefore anywhere
    present = ALL.clone()
    present[0, 0] = 0.49
    assert float(extent(keypoints, present)) == pytest.approx(math.sqrt(40.0 * 90.0))


def test_a_single_detected_keypoint_has_no_box_of_its_own() -> None:
    present = torch.zeros(1, K)
    present[0, 4] = 0.9
    assert float(extent(POSE[None], present)) == pytest.approx(float(extent(POSE[None], ALL)))


def test_extent_is_never_zero() -> None:
    assert float(extent(at(5.0, 5.0), ALL)) == 1.0


# Expected-OKS and Hough scores


def test_a_point_mass_has_an_expected_oks_of_p() -> None:
    """However little mass: h is normalised in the disk."""
    present = torch.linspace(0.1, 1.0, K)[None]
    for mass in (1.0, 1e-3):
        scores = expected_oks(masses((40, 60, mass)), at(40.0, 60.0), present, radius=RADIUS)
        assert torch.allclose(scores, present, atol=1e-6)


def test_two_masses_are_averaged() -> None:
    """A quarter of the mass 6 px away: 3/4 + 1/4 exp(-36 / (2 lambda^2 kappa^2))."""
    keypoints = POSE[None].clone()
    keypoints[0, 5] = torch.tensor([40.0, 60.0])
    scale = float(extent(keypoints, ALL))
    score = masses((40, 60, 0.3), (46, 60, 0.1))
    found = expected_oks(score, keypoints, ALL * 0.8, radius=RADIUS)[0, 5]
    expected = 0.8 * (0.75 + 0.25 * math.exp(-36 / (2 * scale**2 * KAPPAS[5] ** 2)))
    assert float(found) == pytest.approx(expected, abs=1e-5)


def test_tolerance_is_each_keypoints_own() -> None:
    """Votes 4 px off hurt an eye, whose kappa is 0.05, more than a hip, whose kappa is 0.214."""
    eye, hip = 1, 11
    keypoints = POSE[None].clone()
    keypoints[0, [eye, hip]] = torch.tensor([40.0, 60.0])
    scale = float(extent(keypoints, ALL))
    found = expected_oks(masses((44, 60, 1.0)), keypoints, ALL, radius=RADIUS)[0]
    for k in (eye, hip):
        assert float(found[k]) == pytest.approx(math.exp(-16 / (2 * (scale * KAPPAS[k]) ** 2)), abs=1e-5)
    assert found[eye] < 0.7 < 0.95 < found[hip]


def test_votes_outside_the_disk_do_not_count() -> None:
    score = masses((40, 60, 0.3), (40 + 34, 60, 5.0))
    found = expected_oks(score, at(40.0, 60.0), ALL, radius=RADIUS)
    assert torch.allclose(found, ALL, atol=1e-6)
    on_the_rim = masses((40 + 32, 60, 1.0))
    assert (expected_oks(on_the_rim, POSE[None] * 0 + at(40.0, 60.0), ALL, radius=RADIUS) == 0).all()


def test_no_votes_no_score() -> None:
    assert not expected_oks(masses(), POSE[None], ALL, radius=RADIUS).any()
    far_outside = at(-1000.0, 1e6)
    assert not expected_oks(masses((40, 60, 1.0)), far_outside, ALL, radius=RADIUS).any()


def test_a_mass_spread_by_the_accumulator_costs_little() -> None:
    """A vote halfway between bins is 1.4 px away in every one of them: Expected-OKS of an eye of a person
    100 px tall falls to exp(-2 / (2 lambda^2 kappa^2)), no lower."""
    keypoints = POSE[None].clone()
    keypoints[0, 1] = torch.tensor([41.0, 61.0])
    scale = float(extent(keypoints, ALL))
    quarters = masses(*((x, y, 0.25) for x in (40, 42) for y in (60, 62)))
    found = float(expected_oks(quarters, keypoints, ALL, radius=RADIUS)[0, 1])
    assert found == pytest.approx(math.exp(-1 / (scale * KAPPAS[1]) ** 2), abs=1e-5)
    assert found > 0.9


def test_hough_score_is_the_map_at_the_keypoint() -> None:
    score = masses((40, 60, 0.8), (42, 60, 0.4))
    for (x, y), expected in (
        ((40, 60), 0.8),
        ((41, 60), 0.6),
        ((40, 61), 0.4),
        ((41, 61), 0.3),
        ((38, 60), 0),
    ):
        found = hough_scores(score, at(float(x), float(y)))
        assert found.tolist() == [pytest.approx([expected] * K, abs=1e-5)]
    assert torch.allclose(hough_scores(masses((0, 0, 1.0)), at(-2.0, 0.0)), torch.zeros(1, K), atol=1e-6)


# soft and hard NMS


def test_soft_nms_leaves_nothing_to_a_duplicate() -> None:
    scores = torch.stack([torch.full((K,), 0.4), torch.full((K,), 0.9)])
    best = soft_nms(poses(POSE.expand(2, K, 2), scores), nms_radius=NMS_RADIUS)
    assert order_of(best, scores) == [1, 0]
    assert best.scores.tolist() == pytest.approx([0.9, 0.0])
    assert best.keypoint_scores[0].tolist() == pytest.approx([0.9] * K)  # only the pose's score is suppressed


def test_soft_nms_takes_what_is_claimed_keypoint_by_keypoint() -> None:
    """The second has 5 keypoints to itself, one of them just beyond the radius."""
    second = POSE.clone()
    second[:4] += torch.tensor([30.0, 0.0])
    second[4] += torch.tensor([0.0, 10.1])
    second[5] += torch.tensor([0.0, 10.0])
    scores = torch.stack([torch.full((K,), 0.9), torch.linspace(0.1, 0.5, K)])
    best = soft_nms(poses(torch.stack([POSE, second]), scores), nms_radius=NMS_RADIUS)
    assert order_of(best, scores) == [0, 1]
    assert best.scores.tolist() == pytest.approx([0.9, float(scores[1, :5].sum()) / K])


def test_soft_nms_claims_whether_or_not_the_claimant_was_claimed_itself() -> None:
    """ "For every j' < j": the third loses to the second even where the second lost to the first."""
    xs = torch.tensor([0.0, 8.0, 16.0]).view(3, 1, 1) * torch.tensor([1.0, 0.0])
    scores = torch.tensor([0.9, 0.8, 0.7])[:, None].expand(3, K)
    best = soft_nms(poses(POSE + xs, scores), nms_radius=NMS_RADIUS)
    assert best.scores.tolist() == pytest.approx([0.9, 0.0, 0.0])


def test_soft_nms_sorts_anew() -> None:
    """The second best is mostly claimed by the best and ends behind the third."""
    far = POSE + 500.0
    keypoints = torch.stack([POSE, POSE, far])
    scores = torch.tensor([0.9, 0.8, 0.3])[:, None].expand(3, K)
    best = soft_nms(poses(keypoints, scores), nms_radius=NMS_RADIUS)
    assert order_of(best, scores) == [0, 2, 1]
    assert best.scores.tolist() == pytest.approx([0.9, 0.3, 0.0])


def test_hard_nms_drops_duplicates_and_keeps_neighbours() -> None:
    keypoints = torch.stack([POSE, POSE + 1.0, POSE + 60.0])
    scores = torch.tensor([0.5, 0.9, 0.3])[:, None].expand(3, K)
    best = hard_nms(poses(keypoints, scores))
    assert order_of(best, scores) == [1, 2]
    assert best.scores.tolist() == pytest.approx([0.9, 0.3])


def test_what_hard_nms_dropped_drops_no_other() -> None:
    """In a row of three, the ends are too far apart to suppress each other and the middle one is gone."""
    scale = float(extent(POSE[None], ALL))
    step = next(d for d in np.arange(1.0, 100.0, 0.25) if _oks_of_shift(d, scale) < 0.55)
    assert _oks_of_shift(step, scale) > 0.5 > _oks_of_shift(2 * step, scale)
    shifts = torch.tensor([0.0, step, 2 * step]).view(3, 1, 1) * torch.tensor([1.0, 0.0])
    scores = torch.tensor([0.9, 0.8, 0.7])[:, None].expand(3, K)
    best = hard_nms(poses((POSE + shifts).float(), scores))
    assert order_of(best, scores) == [0, 2]


def test_hard_nms_measures_by_the_better_pose() -> None:
    """A small pose inside a large one is the same person by the large one's size, not by its own."""
    small = POSE.mean(0) + 0.75 * (POSE - POSE.mean(0))
    scale = float(extent(POSE[None], ALL))
    assert reference.oks(small.numpy(), POSE.numpy(), scale) > 0.5
    assert reference.oks(small.numpy(), POSE.numpy(), 0.75 * scale) < 0.5
    for first, second, kept in ((POSE, small, 1), (small, POSE, 2)):
        scores = torch.tensor([0.9, 0.8])[:, None].expand(2, K)
        assert len(hard_nms(poses(torch.stack([first, second]), scores)).scores) == kept


def test_a_persons_score_is_that_of_the_pose_the_segmentation_and_the_embeddings() -> None:
    """Half of the keypoints at 0.8, the others at 0.4 and claimed; p_S of 0.46 is half as certain as 0.92."""
    scores = torch.full((4, K), 0.8)
    scores[:, 8:] = 0.4
    unclaimed = (torch.arange(K) < 8).expand(4, K)
    four = replace(poses(POSE.expand(4, K, 2), scores), unclaimed=unclaimed, scores=torch.full((4,), 0.5))
    found = score_by_person(
        four, torch.tensor([0.95, 0.46, 0.92, 0.0]), torch.tensor([0.25, 0.0, torch.inf, 0.0])
    )
    pose = 8 * 0.8**2 / (8 * 0.8 + 9 * 0.4) * 0.5**0.1
    assert found.scores.tolist() == pytest.approx([pose * 0.75, pose / 16, pose * 0.01, pose * 0.01])


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31))
def test_scores_by_cells_match_the_reference(seed: int) -> None:
    keypoints, present, scores = random_poses(seed, 5)
    person, distance = torch.rand(2, 5, generator=torch.Generator().manual_seed(seed))
    best = soft_nms(poses(keypoints, scores, present), nms_radius=NMS_RADIUS)
    found = score_by_person(best, person, distance).scores
    for j in range(5):
        p, d = float(person[j]), float(distance[j])
        expected = reference.person_score(
            best.keypoint_scores[j].tolist(), best.unclaimed[j].tolist(), float(best.scores[j]), p, d
        )
        assert float(found[j]) == pytest.approx(expected, abs=1e-6)
        assert 0 <= float(found[j]) <= 1


def test_a_pose_without_votes_scores_zero() -> None:
    no_one_present = poses(POSE[None], torch.zeros(1, K))
    assert score_by_person(no_one_present, torch.ones(1), torch.zeros(1)).scores.tolist() == [0.0]


@pytest.mark.parametrize("nms", [hard_nms, lambda p: soft_nms(p, nms_radius=NMS_RADIUS)])
def test_no_one_present(nms) -> None:
    assert len(nms(poses(torch.zeros(0, K, 2), torch.zeros(0, K))).scores) == 0


def _oks_of_shift(distance: float, scale: float) -> float:
    return float(np.mean([math.exp(-(distance**2) / (2 * (scale * kappa) ** 2)) for kappa in KAPPAS]))


# the slow reference


def random_poses(seed: int, number: int, side: float = 120.0) -> tuple[Tensor, Tensor, Tensor]:
    """Keypoints (some outside, many close to each other), presence and keypoint scores."""
    rng = np.random.default_rng(seed)
    centres = rng.uniform(0, side, (max(number // 3, 1), K, 2))
    keypoints = centres[rng.integers(len(centres), size=number)] + rng.normal(0, 6, (number, K, 2))
    table = (keypoints, rng.random((number, K)), rng.random((number, K)))
    keypoints, present, scores = (torch.from_numpy(t).float() for t in table)
    return keypoints, present, scores


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([10.0, 31.0, 32.0]), st.sampled_from([1.0, 2.0, 3.7]))
def test_scores_match_the_reference(seed: int, radius: float, bin: float) -> None:
    """To 1e-4: sums of a thousand bins in float32."""
    keypoints, present, _ = random_poses(seed, 3)
    rng = np.random.default_rng(seed)
    h = rng.random((K, 40, 50)) * (rng.random((K, 40, 50)) < 0.1)
    score = HoughMap(score=torch.from_numpy(h).float(), bin=bin)
    oks = expected_oks(score, keypoints, present, radius=radius)
    values = hough_scores(score, keypoints)
    for j in range(3):
        pose, p = keypoints[j].double().numpy(), present[j].tolist()
        assert float(extent(keypoints, present)[j]) == pytest.approx(reference.extent(pose, p), rel=1e-5)
        expected = reference.expected_oks(h, pose, p, bin=bin, radius=radius)
        np.testing.assert_allclose(oks[j].numpy(), expected, rtol=0, atol=1e-4)
        np.testing.assert_allclose(
            values[j].numpy(), reference.hough_score(h, pose, bin=bin), rtol=0, atol=1e-4
        )


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 12))
def test_suppression_matches_the_reference(seed: int, number: int) -> None:
    keypoints, present, scores = random_poses(seed, number)
    as_numpy = list(keypoints.double().numpy())
    soft = soft_nms(poses(keypoints, scores, present), nms_radius=NMS_RADIUS)
    expected = reference.soft_nms(as_numpy, scores.double().numpy(), nms_radius=NMS_RADIUS)
    np.testing.assert_allclose(soft.scores.numpy(), [score for _, score in expected], rtol=0, atol=1e-5)
    worth = [j for j, score in expected if score > 0]  # those of score 0 are equals, in any order
    assert order_of(soft, scores)[: len(worth)] == worth
    hard = hard_nms(poses(keypoints, scores, present))
    expected = reference.hard_nms(as_numpy, present.tolist(), scores.double().numpy(), most=0.5)
    assert order_of(hard, scores) == [j for j, _ in expected]
    np.testing.assert_allclose(hard.scores.numpy(), [score for _, score in expected], rtol=0, atol=1e-5)


# what must not matter


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.permutations(range(6)))
def test_order_of_poses_does_not_matter(seed: int, order: list[int]) -> None:
    keypoints, present, scores = random_poses(seed, 6)
    for nms in (hard_nms, lambda p: soft_nms(p, nms_radius=NMS_RADIUS)):
        one = nms(poses(keypoints, scores, present))
        other = nms(poses(keypoints[order], scores[order], present[order]))
        assert torch.allclose(one.scores, other.scores)
        worth = one.scores > 0
        assert torch.equal(one.keypoints[worth], other.keypoints[worth])


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([0.5, 2.0, 4.0]))
def test_scaling_everything_keeps_the_scores(seed: int, factor: float) -> None:
    keypoints, present, _ = random_poses(seed, 3)
    h = torch.rand(K, 40, 50, generator=torch.Generator().manual_seed(seed))
    small, large = (
        expected_oks(HoughMap(h, bin=BIN * f), keypoints * f, present, radius=RADIUS * f)
        for f in (1.0, factor)
    )
    assert torch.allclose(small, large, atol=1e-4)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31))
def test_scores_are_probabilities(seed: int) -> None:
    keypoints, present, _ = random_poses(seed, 4)
    h = torch.rand(K, 40, 50, generator=torch.Generator().manual_seed(seed))
    found = expected_oks(HoughMap(h, bin=BIN), keypoints, present, radius=RADIUS)
    assert (found >= 0).all()
    assert (found <= present + 1e-6).all()
