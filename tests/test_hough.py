"""Hough voting: votes by hand, a perfect keypoint, the slow reference, and what must not matter."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from personlab.codec.encode import Instances, encode
from personlab.codec.fields import Fields, cells
from personlab.codec.hough import FAINTEST_VOTE, HoughMap, accumulator, cast_votes
from personlab.codec.hough import vote as vote_levels
from personlab.codec.loops import compiled
from personlab.codec.pyramid import Frame, Level
from personlab.skeleton import COCO_PERSON
from tests.coco_person import K
from tests.reference import codec as reference
from tests.reference.scenes import random_fields

RADIUS = 32.0


@dataclass(frozen=True)
class Votes:
    xy: Tensor  # N x 2, pixels
    kind: Tensor  # N, keypoint index
    weight: Tensor  # N


def vote(*votes: tuple[float, float, int, float]) -> Votes:
    """Votes given as (x, y, kind, weight)."""
    table = torch.tensor(votes).view(-1, 4)
    return Votes(xy=table[:, :2], kind=table[:, 2].long(), weight=table[:, 3])


def accumulate(votes: Votes, *, height: float, width: float, bin: float) -> HoughMap:
    """Cast each vote from a cell of its own, in a row of cells one pixel apart."""
    cell = np.arange(len(votes.weight))
    kind, (x, y) = votes.kind.numpy(), votes.xy.T.numpy()
    heatmap, short = np.zeros((K, 1, len(cell)), np.float32), np.zeros((K, 2, 1, len(cell)), np.float32)
    heatmap[kind, 0, cell] = votes.weight
    short[kind, 0, 0, cell], short[kind, 1, 0, cell] = x - cell, y
    score = accumulator(K, height, width, bin, heatmap.dtype)
    cast_votes(score, heatmap, short, 1, 1 / bin, 1.0, 0.0, math.inf)
    return HoughMap(torch.from_numpy(score), bin)


def score_map(fields: Fields, *, bin: float = 2.0, radius: float = RADIUS) -> HoughMap:
    height, width = ((n - 1) * fields.stride + 1 for n in fields.seg.shape[1:])
    levels = [Level(fields, 1.0)]
    frame = Frame.common(levels, height, width)
    return vote_levels(levels, frame, radius=radius, bin=bin, threshold=math.inf)[0]


def perfect(x: float, y: float, *, side: int, stride: int) -> Fields:
    """The targets of one nose at (x, y)."""
    keypoints = torch.zeros(1, K, 2)
    keypoints[0, 0] = torch.tensor([x, y])
    labelled = torch.zeros(1, K, dtype=torch.bool)
    labelled[0, 0] = True
    n = cells(side, stride)
    no = torch.tensor([False])
    people = Instances(keypoints, labelled, torch.zeros(1, n, n), crowd=no, imputed=no, unmasked=no)
    return encode(people, stride=stride, radius=RADIUS, skeleton=COCO_PERSON).fields


# votes by hand


def test_loops_are_compiled_where_nothing_can_be_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the program's folder nor the user's can be written to."""
    monkeypatch.setattr("numba.core.caching.CacheImpl._locator_classes", [])

    @compiled
    def twice(value: float) -> float:
        return 2 * value

    assert twice(2.0) == 4.0


def test_one_vote_is_shared_by_four_bins() -> None:
    """(x, y) = (5, 4.5) px is bin (2.5, 2.25): halves across, quarters down."""
    score = accumulate(vote((5.0, 4.5, 3, 0.8)), height=9, width=11, bin=2.0).score
    expected = torch.zeros(K, 5, 6)
    expected[3, 2:4, 2:4] = 0.8 * torch.tensor([[0.375, 0.375], [0.125, 0.125]])
    assert torch.allclose(score, expected, atol=1e-6)


def test_votes_add_up() -> None:
    score = accumulate(
        vote((4.0, 4.0, 0, 0.25), (4.0, 4.0, 0, 0.5), (5.0, 4.0, 0, 0.2)), height=9, width=9, bin=2.0
    ).score
    assert score[0, 2, 2:4].tolist() == pytest.approx([0.25 + 0.5 + 0.1, 0.1])
    assert float(score.sum()) == pytest.approx(0.95)


def test_keypoint_types_do_not_mix() -> None:
    score = accumulate(vote((4.0, 4.0, 0, 1.0), (4.0, 4.0, 16, 0.5)), height=9, width=9, bin=2.0).score
    assert score[:, 2, 2].tolist() == [1.0] + [0.0] * 15 + [0.5]


def test_votes_outside_are_lost_and_those_astride_the_border_in_part() -> None:
    outside = vote((-2.0, 4.0, 0, 1.0), (10.0, 4.0, 0, 1.0), (4.0, -1e9, 0, 1.0), (1e9, 1e9, 0, 1.0))
    assert not accumulate(outside, height=9, width=9, bin=2.0).score.any()
    score = accumulate(vote((-0.5, 0.0, 0, 1.0), (8.0, 9.5, 0, 1.0)), height=9, width=9, bin=2.0).score
    assert float(score[0, 0, 0]) == pytest.approx(0.75)
    assert float(score[0, 4, 4]) == pytest.approx(0.25)
    assert float(score.sum()) == pytest.approx(1.0)


def test_no_votes() -> None:
    assert not accumulate(vote(), height=9, width=9, bin=2.0).score.any()


def test_size_of_the_map() -> None:
    """Bin (i, j) is centred on pixel (bin * j, bin * i); the last one is on or beyond the last pixel."""
    for pixels, bins in ((1, 1), (2, 2), (9, 5), (10, 6), (10.5, 6)):
        score = accumulate(vote(), height=pixels, width=9, bin=2.0).score
        assert score.shape == (K, bins, 5)


def test_a_vote_weighs_its_cell() -> None:
    fields = random_fields(0, rows=2, columns=3, stride=16, spread=0.0)
    fields.heatmap.zero_()
    fields.heatmap[0, 4, 1, 2] = 0.7
    fields.short[0, 4, :, 1, 2] = torch.tensor([-3.0, -5.0])
    score = score_map(fields, bin=1.0).score
    assert score.nonzero().tolist() == [[4, 16 - 5, 32 - 3]]
    assert float(score.sum()) == pytest.approx(0.7 * 16**2 / (math.pi * RADIUS**2))


# a perfect keypoint


@pytest.mark.parametrize(("stride", "spread"), [(8, 0.1), (16, 0.25), (32, 0.65)])
def test_a_perfect_keypoint_scores_one_at_any_stride(stride: int, spread: float) -> None:
    """On a bin's centre. How many cells fall into a disk depends on where it lies between them: the score
    varies by up to `spread` about its mean, which is 1 (4 x 4 phases come within 3%)."""
    scores = []
    for phase_y in range(0, stride, stride // 4):
        for phase_x in range(0, stride, stride // 4):
            x, y = 48 + phase_x, 48 + phase_y
            score = score_map(perfect(x, y, side=129, stride=stride)).score
            scores.append(float(score[0, y // 2, x // 2]))
    assert np.mean(scores) == pytest.approx(1.0, abs=0.03)
    assert max(abs(score - 1) for score in scores) <= spread


def test_a_perfect_keypoint_between_bins_is_shared_by_them() -> None:
    """Halfway between bins both ways each of the four gets a quarter; together they hold all of it."""
    on, between = (score_map(perfect(x, x, side=161, stride=8)).score[0, 31:35, 31:35] for x in (64.0, 65.0))
    assert torch.allclose(between[1:3, 1:3], torch.full((2, 2), 0.25), atol=0.02)
    assert float(on.max()) == pytest.approx(float(on.sum()), abs=1e-4)
    assert float(between.sum()) == pytest.approx(1.0, abs=0.08)


# the slow reference


def assert_matches_reference(fields: Fields, bin: float, atol: float) -> None:
    height, width = ((n - 1) * fields.stride + 1 for n in fields.seg.shape[1:])
    expected = reference.hough(
        fields.heatmap[0].double().numpy(),
        fields.short[0].double().numpy(),
        stride=fields.stride,
        radius=RADIUS,
        height=height,
        width=width,
        bin=bin,
    )
    np.testing.assert_allclose(score_map(fields, bin=bin).score.numpy(), expected, rtol=0, atol=atol)


# float32 places votes to 1e-5 of a bin among hundreds, and they weigh up to 1/3 (stride 32).
TOLERANCE = 2e-5


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([8, 16, 32]), st.sampled_from([1.0, 2.0, 3.7]))
def test_reference_on_random_fields(seed: int, stride: int, bin: float) -> None:
    fields = random_fields(seed, rows=4, columns=5, stride=stride, spread=1.5 * stride)
    assert_matches_reference(fields, bin, TOLERANCE)


def test_faint_votes_are_left_out_and_matter_less_than_they_could() -> None:
    """The paper lets every pixel vote. Those fainter than FAINTEST_VOTE are not cast: what is missing is at
    most FAINTEST_VOTE where all of a disk is as faint as that, half the seed threshold."""
    fields = perfect(64.0, 64.0, side=129, stride=8)
    faint = fields.replace(heatmap=fields.heatmap * FAINTEST_VOTE)
    assert not score_map(faint).score.any()
    assert float(score_map(fields).score.max()) * FAINTEST_VOTE < 0.006
    brighter = fields.replace(heatmap=fields.heatmap * FAINTEST_VOTE * 1.01)
    assert float(score_map(brighter).score.max()) == pytest.approx(FAINTEST_VOTE, rel=0.1)


# what must not matter


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 30))
def test_nothing_is_lost_inside(seed: int, number: int) -> None:
    rng = np.random.default_rng(seed)
    table = np.column_stack(
        [
            rng.uniform(0, 40, number),
            rng.uniform(0, 30, number),
            rng.integers(0, K, number),
            rng.random(number),
        ]
    )
    votes = vote(*map(tuple, table.tolist()))
    score = accumulate(votes, height=31, width=41, bin=2.0).score
    for kind in range(K):
        expected = float(votes.weight[votes.kind == kind].sum())
        assert float(score[kind].sum()) == pytest.approx(expected, abs=1e-4)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 4), st.integers(0, 4))
def test_shift_by_whole_bins_shifts_the_map(seed: int, down: int, right: int) -> None:
    rng = np.random.default_rng(seed)
    xy = torch.from_numpy(rng.integers(8, 8 * 24, (20, 2)) / 8).float()  # exact in float32
    kind, weight = torch.from_numpy(rng.integers(0, K, 20)), torch.ones(20)

    def scores(moved: Tensor) -> Tensor:
        return accumulate(Votes(moved, kind, weight), height=41, width=41, bin=2.0).score

    shifted = scores(xy + 2.0 * torch.tensor([right, down]))
    assert torch.allclose(shifted[:, down:, right:], scores(xy)[:, : 21 - down, : 21 - right], atol=1e-6)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31))
def test_mirroring_commutes_with_voting(seed: int) -> None:
    fields = random_fields(seed, rows=4, columns=5, stride=8, spread=10.0)
    mirrored = fields.replace(  # sides are not swapped here: every channel votes for itself
        heatmap=fields.heatmap.flip(-1), short=fields.short.flip(-1) * torch.tensor([-1.0, 1.0]).view(2, 1, 1)
    )
    assert torch.allclose(score_map(mirrored).score, score_map(fields).score.flip(-1), atol=TOLERANCE)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([0.5, 2.0, 3.0]))
def test_scaling_everything_keeps_the_map(seed: int, factor: float) -> None:
    rng = np.random.default_rng(seed)
    xy = torch.from_numpy(rng.uniform(0, 40, (20, 2))).float()
    kind, weight = torch.from_numpy(rng.integers(0, K, 20)), torch.ones(20)
    small = accumulate(Votes(xy, kind, weight), height=41, width=41, bin=2.0).score
    height = 40 * factor + 1
    large = accumulate(Votes(xy * factor, kind, weight), height=height, width=height, bin=2.0 * factor).score
    assert torch.allclose(large, small, atol=1e-4)
