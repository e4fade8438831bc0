"""Masks: equation 6 on embeddings made by hand, full resolution, the slow reference."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from personlab.codec.fields import Fields, cell_positions
from personlab.codec.masks import (
    agreement,
    embedding_distance,
    full_resolution,
    person_pixels,
    refine_long,
    rivals,
)
from personlab.codec.refine import refine
from personlab.codec.score import extent
from personlab.skeleton import COCO_PERSON
from tests.coco_person import K
from tests.reference import codec as reference
from tests.reference.scenes import figure, random_fields

POSE = figure(30.0, 12.0, 40.0)
LAMBDA = torch.tensor([10.0])
ALL = torch.ones(1, K)


def embedding(pose: Tensor, *, rows: int = 7, columns: int = 9, stride: int = 8) -> Fields:
    """Everything is person, and every cell believes that it belongs to this pose."""
    fields = random_fields(0, rows=rows, columns=columns, stride=stride, spread=0.0)
    long = pose[:, :, None, None] - cell_positions(rows, columns, stride)
    return fields.replace(seg=torch.ones_like(fields.seg), long=long[None])


def whole(
    seg: Tensor, distance: Tensor, *, step: float, height: int, width: int, threshold: float = 0.25
) -> Tensor:
    """All masks, N x height x width, without rivals."""
    person = person_pixels(seg, step=step, height=height, width=width)
    no_rival = torch.full_like(seg, torch.inf)
    return torch.stack(
        [full_resolution(person, d, no_rival, step=step, threshold=threshold) for d in distance]
    )


# equation 6 by hand


def test_its_own_pixels_are_at_distance_zero() -> None:
    distance = embedding_distance(embedding(POSE), POSE[None], ALL, LAMBDA)
    assert distance.shape == (1, 7, 9)
    assert torch.allclose(distance, torch.zeros(1, 7, 9), atol=1e-5)


def test_distance_is_in_units_of_the_persons_size() -> None:
    """Everything 3 px right and 4 px down: 5 px, over lambda."""
    fields = embedding(POSE + torch.tensor([3.0, 4.0]))
    two = POSE.expand(2, K, 2)
    distance = embedding_distance(fields, two, ALL.expand(2, K), torch.tensor([10.0, 40.0]))
    assert torch.allclose(distance[0], torch.full((7, 9), 5 / 10), atol=1e-5)
    assert torch.allclose(distance[1], torch.full((7, 9), 5 / 40), atol=1e-5)


def test_distances_are_averaged_by_presence() -> None:
    """One keypoint 10 px off and one 1000 px off that is not there: 10 p_0 / (sum of p) / lambda."""
    predicted = POSE.clone()
    predicted[0] += torch.tensor([10.0, 0.0])
    predicted[1] += torch.tensor([1000.0, 0.0])
    present = torch.linspace(0.2, 1.0, K)[None].clone()
    present[0, 1] = 0.0
    distance = embedding_distance(embedding(predicted), POSE[None], present, LAMBDA)
    expected = 10.0 * float(present[0, 0]) / float(present.sum()) / 10.0
    assert torch.allclose(distance, torch.full((1, 7, 9), expected), atol=1e-5)


def test_presence_need_not_be_certain_to_count() -> None:
    """The distance depends on the keypoints' relative presence alone."""
    fields = embedding(POSE + torch.tensor([3.0, 4.0]))
    for p in (1.0, 0.3, 1e-3):
        distance = embedding_distance(fields, POSE[None], ALL * p, LAMBDA)
        assert torch.allclose(distance, torch.full((1, 7, 9), 0.5), atol=1e-4)


def test_beyond_the_segmentation_is_infinitely_far() -> None:
    fields = embedding(POSE)
    fields.seg[0, 2], fields.seg[0, 3] = 0.49, 0.5
    distance = embedding_distance(fields, POSE[None], ALL, LAMBDA)[0]
    assert torch.isinf(distance[2]).all()
    assert torch.isfinite(distance[3]).all()


def test_nobody_present_owns_nothing() -> None:
    """Without a keypoint that is there, equation 6 is 0 / 0: no reason to give anybody a pixel."""
    distance = embedding_distance(embedding(POSE), POSE[None], ALL * 0, LAMBDA)
    assert not (distance <= 0.25).any()


def test_agreement_is_the_mean_over_each_persons_own_cells() -> None:
    seg = torch.tensor([[0.75, 0.5], [0.625, 0.125]])
    distance = torch.tensor([[[0.1, 0.19], [0.26, torch.inf]], [[torch.inf, 0.5], [0.5, torch.inf]]])

    def means(threshold: float) -> list[list[float]]:
        return [each.tolist() for each in agreement(seg, distance, threshold)]

    np.testing.assert_allclose(means(0.2), [[0.625, 0.0], [0.145, torch.inf]], rtol=1e-6)
    np.testing.assert_allclose(means(0.5), [[0.625, 0.5625], [0.55 / 3, 0.5]], rtol=1e-6)
    np.testing.assert_allclose(means(0.05), [[0.0, 0.0], [torch.inf, torch.inf]])
    assert agreement(seg, distance[:0], 0.25)[1].shape == (0,)


# people who claim the same pixels


def test_rivals_are_better_and_half_unclaimed() -> None:
    distance = torch.tensor([0.3, 0.1, 0.2, 0.0])[:, None, None]
    unclaimed = torch.tensor([[True, True], [False, False], [True, False], [True, True]])
    assert rivals(distance, unclaimed).flatten().tolist() == pytest.approx([torch.inf, 0.3, 0.3, 0.2])
    assert rivals(distance[:0], unclaimed[:0]).shape == (0, 1, 1)


def test_a_pixel_goes_to_the_better_pose_that_is_closer() -> None:
    """Distances cross half-way between x = 16 and x = 24, where the worse pose begins."""
    person = torch.ones(25, 33, dtype=torch.bool)
    distance = torch.tensor([0.2, 0.2, 0.2, 0.0, 0.0]).expand(4, 5)
    better = torch.tensor([0.1, 0.1, 0.1, 0.1, 0.1]).expand(4, 5)
    row = full_resolution(person, distance, better, step=1 / 8, threshold=0.25)[9]
    assert row.tolist() == [x >= 20 for x in range(33)]
    row = full_resolution(person, distance, better * torch.inf, step=1 / 8, threshold=0.25)[9]
    assert row.all()


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
def test_where_people_are_loops_refine_as_the_paper_does(steps: int) -> None:
    fields = random_fields(steps, rows=9, columns=11, stride=8, spread=12.0)
    people = fields.seg[0] >= 0.5
    assert 0.1 < people.float().mean() < 0.9
    loops = refine_long(fields, steps).long[0][..., people]
    other = refine(fields, mid_steps=0, long_steps=steps, skeleton=COCO_PERSON).long[0][..., people]
    torch.testing.assert_close(loops, other, rtol=1e-4, atol=1e-2)  # rough fields amplify rounding


def test_what_is_undefined_is_not_read() -> None:
    """Offsets lead beyond the border and to whole cells, whose neighbours weigh 0; memory holds NaNs."""
    fields = random_fields(0, rows=40, columns=50, stride=8, spread=200.0)
    fields = fields.replace(long=torch.where(torch.rand_like(fields.long) < 0.5, fields.long, -1e-9))
    people = fields.seg[0] >= 0.5
    expected = refine_long(fields, 2).long[0][..., people]
    for _ in range(10):
        nans = [np.full((2, 40, 50), np.nan, np.float32) for _ in range(60)]
        del nans
        assert torch.equal(refine_long(fields, 2).long[0][..., people], expected)


def test_no_people() -> None:
    fields = embedding(POSE)
    distance = embedding_distance(fields, torch.zeros(0, K, 2), torch.zeros(0, K), torch.zeros(0))
    assert distance.shape == (0, 7, 9)


# full resolution by hand


def test_at_the_cells_masks_are_the_paper_to_the_letter() -> None:
    """p_S >= 0.5 and D <= t, on the pixels that are cells."""
    g = torch.Generator().manual_seed(1)
    seg, distance = torch.rand(6, 7, generator=g), torch.rand(3, 6, 7, generator=g) / 2
    seg[2, 2], distance[0, 2, 2] = 0.5, 0.25
    distance = distance.masked_fill(seg < 0.5, torch.inf)
    masks = whole(seg, distance, step=1 / 8, height=41, width=49)
    assert torch.equal(masks[:, ::8, ::8], (seg >= 0.5) & (distance <= 0.25))
    assert masks[0, 16, 16]


def test_a_pixel_may_be_several_peoples_or_nobodys() -> None:
    fields = embedding(POSE)
    three = torch.stack([POSE, POSE + 1.0, POSE + 500.0])
    distance = embedding_distance(fields, three, ALL.expand(3, K), extent(three, ALL.expand(3, K)))
    masks = whole(fields.seg[0], distance, step=1 / 8, height=49, width=65)
    assert masks[0].all()
    assert masks[1].all()
    assert not masks[2].any()


def test_the_edge_of_a_mask_lies_between_cells() -> None:
    """p_S falls from 1 at x = 16 to 0 at x = 24: half of it at 20."""
    seg = (torch.arange(5) <= 2).float().expand(4, 5)
    distance = torch.zeros(1, 4, 5).masked_fill(seg < 0.5, torch.inf)
    row = whole(seg, distance, step=1 / 8, height=25, width=33)[0, 9]
    assert row.tolist() == [x <= 20 for x in range(33)]


@pytest.mark.parametrize(("beyond", "border"), [(0.3, 22), (0.5, 20), (1.0, 20), (30.0, 20)])
def test_the_border_between_people_lies_between_cells(beyond: float, border: int) -> None:
    """D rises from 0 at x = 16 to `beyond` at x = 24: a quarter is reached at half the way, or later."""
    seg = torch.ones(4, 5)
    distance = (torch.arange(5) > 2).float().expand(1, 4, 5) * beyond
    row = whole(seg, distance, step=1 / 8, height=25, width=33)[0, 9]
    assert row.tolist() == [x <= border for x in range(33)]


def test_a_mask_as_large_as_the_image() -> None:
    masks = whole(torch.ones(4, 5), torch.zeros(1, 4, 5), step=0.1, height=30, width=40)
    assert masks.all()


@pytest.mark.parametrize("step", [1 / 8, 0.3, 1.0, 2.5])
def test_a_single_cell(step: float) -> None:
    """Alone among background cells, it owns the pixels less than one cell away where p_S is still a half."""
    seg, distance = torch.zeros(5, 5), torch.full((1, 5, 5), torch.inf)
    seg[2, 2], distance[0, 2, 2] = 0.9, 0.1
    side = int(4 / step) + 1
    mask = whole(seg, distance, step=step, height=side, width=side)[0]
    at = torch.arange(side) * step
    share = (1 - (at - 2).abs()).clamp(min=0)
    # Rounding may decide where p_S is a half to the last digit: no such pixel here.
    assert torch.equal(mask, 0.9 * share[:, None] * share >= 0.5)


# the slow reference


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([8, 16, 32]))
def test_distance_matches_the_reference(seed: int, stride: int) -> None:
    """To 1e-4 of a person's size: float32 keeps 1e-5 px of differences of hundreds of pixels."""
    fields = random_fields(seed, rows=4, columns=5, stride=stride, spread=20.0)
    g = torch.Generator().manual_seed(seed)
    keypoints = torch.rand(3, K, 2, generator=g) * 100
    present = torch.rand(3, K, generator=g)
    scales = extent(keypoints, present)
    found = embedding_distance(fields, keypoints, present, scales)
    for j in range(3):
        expected = reference.embedding_distance(
            fields.seg[0].double().numpy(),
            fields.long[0].double().numpy(),
            keypoints[j].double().numpy(),
            present[j].double().tolist(),
            float(scales[j]),
            stride=stride,
        )
        np.testing.assert_allclose(found[j].numpy(), expected, rtol=0, atol=1e-4)


@settings(max_examples=12, deadline=None)
@given(
    st.integers(0, 2**31), st.sampled_from([1 / 8, 0.17, 0.31, 0.9, 1.0]), st.sampled_from([0.2, 0.5, 0.9])
)
def test_mask_matches_the_reference(seed: int, step: float, share: float) -> None:
    """All pixels but those where rounding decides: within 1e-5 of p_S = 0.5 or D = t."""
    rng = np.random.default_rng(seed)
    seg = rng.random((5, 6))
    distance = np.where(rng.random((5, 6)) < share, rng.uniform(0, 0.4, (5, 6)), 3.0)
    distance[seg < 0.5] = np.inf
    height, width = (int((n - 1) / step) + 1 for n in seg.shape)
    found = whole(
        torch.from_numpy(seg).float(),
        torch.from_numpy(distance).float()[None],
        step=step,
        height=height,
        width=width,
    )[0].numpy()
    strict, loose = (
        reference.mask(seg + e, distance - e, step=step, height=height, width=width, threshold=0.25)
        for e in (-1e-5, 1e-5)
    )
    assert (found | ~strict).all()
    assert (~found | loose).all()


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([1 / 8, 0.31]))
def test_mask_beside_a_rival_matches_the_reference(seed: int, step: float) -> None:
    """All pixels but those where rounding decides: within 1e-5 of the rival's distance."""
    rng = np.random.default_rng(seed)
    seg = rng.random((5, 6)) + 0.2
    distance, rival = (np.where(seg >= 0.5, rng.uniform(0, 0.4, (5, 6)), np.inf) for _ in range(2))
    size = {"height": int(4 / step) + 1, "width": int(5 / step) + 1}
    person = person_pixels(torch.from_numpy(seg), step=step, **size)
    planes = (torch.from_numpy(plane) for plane in (distance, rival))
    found = full_resolution(person, *planes, step=step, threshold=0.25).numpy()
    strict, loose = (
        reference.mask(seg + e, distance - e, step=step, **size, threshold=0.25, rival=rival + e)
        for e in (-1e-5, 1e-5)
    )
    assert (found | ~strict).all()
    assert (~found | loose).all()


@pytest.mark.parametrize(("height", "width"), [(40, 52), (41, 53)])
def test_image_that_ends_between_cells(height: int, width: int) -> None:
    """The input was padded up to whole cells; or the image's last row lies a little beyond the last cell."""
    g = torch.Generator().manual_seed(3)
    seg = torch.rand(5, 7, generator=g) * 0.4 + 0.6
    distance = torch.rand(1, 5, 7, generator=g) * 0.5
    step = 0.102
    found = whole(seg, distance, step=step, height=height, width=width)[0].numpy()
    expected = reference.mask(
        seg.double().numpy(),
        distance[0].double().numpy(),
        step=step,
        height=height,
        width=width,
        threshold=0.25,
    )
    assert found.shape == (height, width)
    assert (found == expected).all()
