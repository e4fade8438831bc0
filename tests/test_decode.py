"""From fields to people: round trips, the slow reference, bad input, and what must not matter."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from personlab.codec.decode import Decoder, Level, Poses, detections
from personlab.codec.encode import encode
from personlab.codec.extensions import Extension
from personlab.codec.fields import Fields, stack
from personlab.codec.hough import vote
from personlab.codec.pyramid import Frame
from personlab.codec.score import extent
from personlab.skeleton import COCO_PERSON
from tests.coco_person import FLIP, K
from tests.reference import codec as reference
from tests.reference.scenes import (
    Scene,
    adversarial,
    figure,
    image,
    mirrored,
    predicted,
    random_fields,
    scene,
)

DECODER = Decoder(extensions=())  # the paper's
OURS = Decoder()
POSE_STEPS: tuple[Extension, ...] = ("mean-shift",)  # beyond the paper, without masks
SMALL_MASKS = ("gaps in the annotation", "duplicates", "fifty people")
TWO = [figure(60.3, 25.2, 160.0), figure(170.7, 41.4, 130.0)]


def paper(**changes: Any) -> Decoder:
    """The paper's decoder with some settings changed."""
    return replace(DECODER, **changes)


def perfect(case: Scene) -> Fields:
    return encode(case.people, stride=case.stride, radius=DECODER.radius, skeleton=COCO_PERSON).fields


def poses(
    fields: Fields, decoder: Decoder = DECODER, *, scale: float = 1.0, size: tuple[int, int] | None = None
) -> Poses:
    """The people in fields of one level, in an image as large as the fields unless said otherwise."""
    height, width = size or tuple((n - 1) * fields.stride + 1 for n in fields.seg.shape[1:])
    return decoder.poses([Level(fields, scale)], height=height, width=width)


def masks(fields: Fields, decoder: Decoder = DECODER) -> Tensor:
    """The masks of everybody found: N x height x width."""
    height, width = ((n - 1) * fields.stride + 1 for n in fields.seg.shape[1:])
    levels = [Level(fields, 1.0)]
    found = decoder.poses(levels, height=height, width=width)
    return torch.stack(list(decoder.masks(levels, found, height=height, width=width)))


def nearest(found: Poses, expected: Tensor) -> Tensor:
    """The found poses in the order of the expected ones (P x K x 2)."""
    apart = (found.keypoints[None] - expected[:, None]).norm(dim=-1).mean(-1)
    return found.keypoints[apart.argmin(1)]


def double(fields: Fields) -> Fields:
    return fields.map(Tensor.double)


# round trips: what was encoded is found again


@pytest.mark.parametrize(("stride", "radius"), [(8, 32.0), (16, 32.0), (32, 48.0)])
def test_people_are_found_where_they_were(stride: int, radius: float) -> None:
    """To 1e-2 px, with certainty, and no other person.

    All four cells around a keypoint must lie on its disk for its targets to be interpolated, which needs a
    radius of at least sqrt(2) strides.
    """
    people = [TWO[0], TWO[1] + torch.tensor([112.0, 0.0])]
    case = scene(people, height=257, width=353, stride=stride)
    fields = encode(case.people, stride=stride, radius=radius, skeleton=COCO_PERSON).fields
    found = poses(fields, paper(radius=radius))
    assert len(found.scores) == 2
    assert torch.allclose(nearest(found, torch.stack(people)), torch.stack(people), atol=1e-2)
    assert (found.scores > 0.97).all()
    assert torch.allclose(found.presence, torch.ones(2, K))


def test_at_stride_32_the_papers_disks_are_smaller_than_cells() -> None:
    """Targets are zero beyond the disks, and some of the cells around a keypoint are: poses are a few pixels
    off. What a network says beyond its disks is smoother than that."""
    case = scene(TWO, height=257, width=257, stride=32)
    found = poses(perfect(case))
    off = (nearest(found, torch.stack(TWO)) - torch.stack(TWO)).norm(dim=-1).mean(-1)
    assert (off < 8).all()


@pytest.mark.parametrize("nms", ["soft", "hard"])
@pytest.mark.parametrize("scoring", ["expected-oks", "hough"])
def test_all_four_pairs_of_scoring_and_suppression_find_the_people(scoring: str, nms: str) -> None:
    found = poses(perfect(scene(TWO, height=257, width=257, stride=8)), paper(scoring=scoring, nms=nms))
    assert torch.allclose(nearest(found, torch.stack(TWO)), torch.stack(TWO), atol=1e-2)
    assert len(found.scores) == 2


@pytest.mark.parametrize("scale", [0.6, 1.0, 1.7])
def test_people_who_touch_all_borders_are_wholly_there(scale: float) -> None:
    """Rounding must not put a keypoint of the image's outermost pixels outside of it."""
    height, width = 173, 149
    pose = figure(0.0, 0.0, 1.0) - figure(0.0, 0.0, 1.0).amin(0)
    pose = pose / pose.amax(0) * torch.tensor([width - 1.0, height - 1.0])
    case = scene([pose * scale], height=305, width=257, stride=8)
    found = poses(perfect(case), scale=scale, size=(height, width))
    assert len(found.scores) == 1
    assert torch.allclose(found.keypoints[0], pose, atol=1e-2)
    assert (found.presence == 1).all()


def test_duplicates_are_one_person() -> None:
    found = poses(perfect(adversarial()["duplicates"]))
    assert len(found.scores) == 1


def test_a_person_of_1000_px() -> None:
    case = adversarial()["1000 px tall"]
    found = poses(perfect(case))
    assert len(found.scores) == 1
    assert torch.allclose(found.keypoints, case.people.keypoints, atol=1e-2)


def test_no_people() -> None:
    fields = perfect(adversarial()["empty"])
    found = poses(fields)
    assert found.keypoints.shape == (0, K, 2)
    assert not list(DECODER.masks([Level(fields, 1.0)], found, height=129, width=129))


def test_an_unlabelled_elbow_costs_the_wrist_only() -> None:
    """Without the elbow nothing leads to the wrist; everything else is found."""
    case = scene([TWO[0]], height=257, width=257, stride=8)
    case.people.labelled[0, 7] = False  # left elbow; the wrist (9) hangs on it
    found = poses(perfect(case))
    best = found.keypoints[0]
    rest = [k for k in range(K) if k not in (7, 9)]
    assert torch.allclose(best[rest], TWO[0][rest], atol=1e-2)
    # the wrist stands alone, a person of its own
    assert any((pose[9] - TWO[0][9]).norm() < 0.1 for pose in found.keypoints[1:])


def test_at_most_so_many_people() -> None:
    fields = predicted(adversarial()["fifty people"], radius=DECODER.radius)
    everybody = poses(fields, paper(max_people=1000))
    assert len(everybody.scores) > 40
    best = poses(fields, paper(max_people=7))
    assert torch.equal(best.scores, everybody.scores[:7])
    assert torch.equal(best.keypoints, everybody.keypoints[:7])


def test_best_first() -> None:
    found = poses(predicted(adversarial()["fifty people"], radius=DECODER.radius))
    assert (found.scores.diff() <= 0).all()


# steps beyond the paper


def test_all_steps_find_the_people() -> None:
    """To 0.1 px: the mean of votes is that of the bins around them."""
    case = scene(TWO, height=257, width=257, stride=8)
    found = poses(perfect(case), OURS)
    assert len(found.scores) == 2
    assert torch.allclose(nearest(found, torch.stack(TWO)), torch.stack(TWO), atol=0.1)
    assert (found.scores > 0.9).all()


def test_poses_and_masks_together_are_people() -> None:
    fields = predicted(scene(TWO, height=257, width=257, stride=8), radius=32.0)
    levels = [Level(fields, 1.0)]
    photo = np.random.default_rng(0).integers(0, 256, (257, 257, 3)).astype(np.uint8)
    for decoder in (DECODER, OURS):
        found = decoder.poses(levels, height=257, width=257)
        shown = list(decoder.masks(levels, found, height=257, width=257, image=photo))
        people = list(decoder.people(levels, height=257, width=257, image=photo))
        expected = list(detections(found, shown))
        assert [(p.score, p.rle) for p in people] == [(p.score, p.rle) for p in expected]


@pytest.mark.parametrize("real", [0, 1])
def test_a_pose_on_the_background_is_not_a_person(real: int) -> None:
    """Of two equal poses the one whose cells show a person is first, and the other's mask is empty."""
    fields = perfect(scene(TWO, height=257, width=257, stride=8))
    fields.seg[:, :, slice(14, None) if real == 0 else slice(14)] = 0.0  # the other
    found, drawn = OURS.decode([Level(fields, 1.0)], height=257, width=257)
    masks = list(drawn)
    assert torch.allclose(found.keypoints[0], TWO[real], atol=0.1)
    assert found.scores[1] <= 1e-4 < 0.8 < found.scores[0]
    assert not masks[1].any()
    y, x = masks[0].nonzero().T
    assert abs(float(x.float().mean()) - float(TWO[real][:, 0].mean())) < 10
    assert len(y) > 2000


def test_the_score_of_a_person_matches_the_reference() -> None:
    """Of noisy fields, where neither p_S nor the embeddings are certain: the mean over the cells within t."""
    fields = predicted(scene(TWO, height=257, width=257, stride=8), radius=DECODER.radius, noise=4.0)
    decoder = paper(max_people=4, long_refinements=0)
    before = poses(fields, decoder)
    found = poses(fields, replace(decoder, extensions=("person-score",)))
    long, seg = fields.long[0].double().numpy(), fields.seg[0].double().numpy()
    expected = []
    for j, keypoints in enumerate(before.keypoints.double().numpy()):
        present = before.presence[j].tolist()
        size = reference.extent(keypoints, present)
        distance = reference.embedding_distance(seg, long, keypoints, present, size, stride=8)
        own = distance <= decoder.mask_distance
        person, away = (seg[own].mean(), distance[own].mean()) if own.any() else (0.0, np.inf)
        scores, unclaimed = before.keypoint_scores[j].tolist(), before.unclaimed[j].tolist()
        score = float(before.scores[j])
        expected.append(
            reference.person_score(scores, unclaimed, score, person, away / decoder.mask_distance)
        )
    assert found.scores.tolist() == pytest.approx(sorted(expected, reverse=True), abs=1e-5)
    assert 0.1 < expected[0] < 0.9


def test_weak_seeds_are_left_out() -> None:
    fields = random_fields(0, rows=20, columns=20, stride=8, spread=20.0)
    counts = [len(poses(fields, paper(max_people=25, extensions=e)).scores) for e in ((), OURS.extensions)]
    assert counts == [25, 25]
    frame = Frame.common([Level(fields, 1.0)], 153, 153)
    some, few = (
        paper(max_people=25, extensions=e)._poses([Level(fields, 1.0)], frame).scores
        for e in ((), ("few-candidates",))
    )
    assert not torch.equal(some, few)


def test_a_pixel_of_two_people_is_the_better_ones() -> None:
    """Two poses 10 px apart: each pixel is nearer to one; the worse keeps only those."""
    fields = perfect(scene([TWO[0]], height=257, width=257, stride=8))
    found = poses(fields)
    worse = found.select(torch.tensor([0, 0]))
    worse.keypoints[1] += torch.tensor([10.0, 0.0])
    both = list(DECODER.masks([Level(fields, 1.0)], worse, height=257, width=257))
    apart = list(OURS.masks([Level(fields, 1.0)], worse, height=257, width=257))
    assert (both[0] & both[1]).any()
    assert torch.equal(apart[0], both[0])
    assert not apart[1].any()


# bad input


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["heatmap", "short", "mid", "seg", "long"])
def test_a_value_that_is_not_finite_is_an_error_that_names_the_field(name: str, value: float) -> None:
    fields = random_fields(0, rows=3, columns=4, stride=8, spread=5.0)
    fields.tensors()[name].view(-1)[5] = value
    with pytest.raises(ValueError, match=f"field '{name}' .* not finite"):
        poses(fields)


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_constant_heatmaps(value: float) -> None:
    """All zero: no people. Saturated: short-range offsets decide who is there, and all is finite."""
    fields = random_fields(0, rows=9, columns=9, stride=8, spread=20.0)
    fields = fields.replace(heatmap=torch.full_like(fields.heatmap, value))
    found = poses(fields)
    count = len(found.scores)
    assert 0 < count <= 20 if value else count == 0
    for tensor in (found.keypoints, found.keypoint_scores, found.scores):
        assert torch.isfinite(tensor).all()
    assert len(list(DECODER.masks([Level(fields, 1.0)], found, height=65, width=65))) == count


def test_a_map_of_a_single_cell() -> None:
    fields = random_fields(0, rows=1, columns=1, stride=32, spread=1.0)
    assert torch.isfinite(poses(fields).keypoints).all()


# the slow reference


def reference_levels(levels: Sequence[Level], scale: float) -> list[reference.Level]:
    """In a frame of that many pixels per image pixel; shares grow with the square of the scale."""
    squares = sum(level.scale**2 for level in levels)
    return [
        reference.Level(
            *(t[0].numpy() for t in (level.fields.heatmap, level.fields.short, level.fields.mid)),
            stride=level.fields.stride,
            ratio=level.scale / scale,
            share=level.scale**2 / squares,
        )
        for level in levels
    ]


def assert_matches_reference(fields: Fields, decoder: Decoder) -> None:
    height, width = ((n - 1) * fields.stride + 1 for n in fields.seg.shape[1:])
    assert_pyramid_matches_reference([Level(fields, 1.0)], decoder, height=height, width=width)


def assert_pyramid_matches_reference(
    levels: Sequence[Level], decoder: Decoder, *, height: int, width: int
) -> None:
    """The same people in the same order, to 1e-6 in double precision: where people overlap, offsets change by
    a person's height from cell to cell, and 16 edges multiply what single precision rounds away."""
    levels = [Level(double(level.fields), level.scale) for level in levels]
    scale = float(np.prod([level.scale for level in levels])) ** (1 / len(levels))
    expected = reference.decode(
        reference_levels(levels, scale),
        radius=decoder.radius,
        nms_radius=decoder.nms_radius,
        bin=decoder.bin,
        threshold=decoder.seed_threshold,
        steps=decoder.trace_refinements,
        height=(height - 1) * scale + 1,
        width=(width - 1) * scale + 1,
        scoring=decoder.scoring,
        nms=decoder.nms,
        extensions=decoder.extensions,
    )
    best = replace(decoder, max_people=1000).poses(levels, height=height, width=width)
    assert len(best.scores) == len(expected)
    for j, person in enumerate(expected):
        assert float(best.scores[j]) == pytest.approx(person.score, abs=1e-6)
        if person.score > 1e-9:  # those of score 0 are equals, in any order
            for found, wanted in (
                (best.keypoints[j] * scale, person.pose),
                (best.presence[j], person.presence),
                (best.keypoint_scores[j], person.keypoint_scores),
            ):
                np.testing.assert_allclose(found.numpy(), wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("extensions", [(), POSE_STEPS])
@pytest.mark.parametrize("name", adversarial())
def test_reference_on_adversarial_scenes(name: str, extensions: tuple[Extension, ...]) -> None:
    """Coarser bins and fewer of the fifty people keep the slow side under a second or two."""
    case = adversarial()[name]
    if name == "fifty people":
        case = case.select(list(range(12)))
    fields = predicted(case, radius=DECODER.radius)
    bin = 8.0 if fields.seg.shape[1] > 30 else 2.0
    assert_matches_reference(fields, paper(bin=bin, extensions=extensions))


@pytest.mark.slow
def test_reference_on_fifty_people() -> None:
    assert_matches_reference(predicted(adversarial()["fifty people"], radius=DECODER.radius), DECODER)


@pytest.mark.parametrize("extensions", [(), POSE_STEPS])
@pytest.mark.parametrize("nms", ["soft", "hard"])
@pytest.mark.parametrize("scoring", ["expected-oks", "hough"])
def test_reference_on_random_fields(scoring: str, nms: str, extensions: tuple[Extension, ...]) -> None:
    # with this seed no bin lies on the rim of a disk, where rounding decides
    fields = random_fields(12, rows=5, columns=6, stride=8, spread=12.0)
    decoder = paper(radius=20.0, scoring=scoring, nms=nms, trace_refinements=1, extensions=extensions)
    assert_matches_reference(fields, decoder)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_reference_on_constant_heatmaps(value: float) -> None:
    fields = random_fields(5, rows=4, columns=5, stride=8, spread=10.0)
    fields = fields.replace(heatmap=torch.full_like(fields.heatmap, value))
    assert_matches_reference(fields, paper(bin=4.0))


@pytest.mark.parametrize("name", [name for name in adversarial() if name not in SMALL_MASKS])
def test_masks_match_the_reference(name: str) -> None:
    """Of the two best: all pixels but the few (one in a thousand) where rounding decides. The largest inputs
    show smaller images, since the slow side looks at every pixel."""
    fields = predicted(adversarial()[name], radius=DECODER.radius)
    stride, scale = fields.stride, fields.stride * fields.seg.shape[1] / 136
    height, width = (round((n - 1) * stride / scale) + 1 for n in fields.seg.shape[1:])
    levels = [Level(fields, scale)]
    found = DECODER.poses(levels, height=height, width=width).select(slice(2))
    long, short, seg = (t[0].double().numpy() for t in (fields.long, fields.short, fields.seg))
    long = reference.refine_long(long, short, stride=stride, steps=2)
    seen = found.scaled(scale)
    for j, mask in enumerate(DECODER.masks(levels, found, height=height, width=width)):
        pose, present = seen.keypoints[j].double().numpy(), seen.presence[j].tolist()
        distance = reference.embedding_distance(
            seg, long, pose, present, reference.extent(pose, present), stride=stride
        )
        expected = reference.mask(
            seg, distance, step=scale / stride, height=height, width=width, threshold=0.25
        )
        assert (mask.numpy() != expected).mean() < 1e-3
        assert expected.sum() > 200
    assert len(found.scores) or name == "empty"


# masks


def test_the_mask_of_a_person_alone_is_the_person() -> None:
    """Its box, to half a cell: a mask known at cells says no more about where between two cells it ends."""
    pose = TWO[0]
    case = scene([pose], height=257, width=257, stride=8)
    mask = masks(perfect(case))[0]
    (left, top), (right, bottom) = pose.amin(0) - 6, pose.amax(0) + 6
    y, x = torch.arange(257)[:, None], torch.arange(257)
    inner = (x >= left + 8) & (x <= right - 8) & (y >= top + 8) & (y <= bottom - 8)
    outer = (x >= left - 8) & (x <= right + 8) & (y >= top - 8) & (y <= bottom + 8)
    assert (mask | ~inner).all()
    assert (~mask | outer).all()


def test_neighbours_share_no_pixels_and_lose_none() -> None:
    found = masks(perfect(scene(TWO, height=257, width=257, stride=8)))
    assert not (found[0] & found[1]).any()
    assert (found.sum((1, 2)) > 5000).all()


def test_the_same_person_found_twice_owns_its_pixels_twice() -> None:
    """The assignment is not exclusive: a second pose of a person has the same mask."""
    fields = perfect(scene([TWO[0]], height=257, width=257, stride=8))
    found = poses(fields)
    twice = found.select(torch.tensor([0, 0]))
    one, other = DECODER.masks([Level(fields, 1.0)], twice, height=257, width=257)
    assert torch.equal(one, other)
    assert one.any()


def test_masks_need_no_refinement_where_offsets_are_right() -> None:
    fields = perfect(scene(TWO, height=257, width=257, stride=8))
    refined, plain = masks(fields), masks(fields, paper(long_refinements=0))
    assert float((refined != plain).float().mean()) < 0.01


# what must not matter


def apart(found: Poses, other: Poses) -> float:
    """The largest distance between a keypoint of one and the same keypoint of the other, same order."""
    return float((found.keypoints - other.keypoints).abs().max())


@pytest.mark.parametrize("decoder", [DECODER, OURS])
@settings(max_examples=6, deadline=None)
@given(st.permutations(range(3)))
def test_order_of_people_does_not_matter(decoder: Decoder, order: list[int]) -> None:
    people = [figure(40.0, 20.0, 90.0), figure(120.0, 25.0, 80.0), figure(200.0, 22.0, 70.0)]
    case = scene(people, height=129, width=241, stride=8)
    one, other = (poses(predicted(c, radius=32.0), decoder) for c in (case, case.select(order)))
    assert torch.equal(one.keypoints, other.keypoints)
    assert torch.equal(one.scores, other.scores)


@pytest.mark.parametrize("decoder", [DECODER, OURS])
@settings(max_examples=8, deadline=None)
@given(st.floats(0.25, 4.0))
def test_scale_of_a_level_scales_the_poses(decoder: Decoder, scale: float) -> None:
    """The same fields, said to show an image `scale` times smaller: the same poses, that much smaller."""
    fields = predicted(scene(TWO, height=257, width=257, stride=8), radius=32.0)
    size = round(256 / scale) + 1
    padded = size if (size - 1) * scale >= 256 else size + 1
    one, other = poses(fields, decoder), poses(fields, decoder, scale=scale, size=(padded, padded))
    count = min(len(one.scores), 2)
    assert torch.allclose(other.keypoints[:count] * scale, one.keypoints[:count], atol=1e-2)
    assert torch.allclose(other.scores[:count], one.scores[:count], atol=1e-3)


@pytest.mark.parametrize("decoder", [DECODER, OURS])
@settings(max_examples=6, deadline=None)
@given(st.integers(-2, 2), st.integers(-2, 2), st.sampled_from([8, 16]))
def test_moving_people_by_whole_cells_moves_them(
    decoder: Decoder, down: int, right: int, stride: int
) -> None:
    step = torch.tensor([right, down]) * float(stride)
    middle = torch.tensor([48.0, 48.0])
    here, there = (
        poses(perfect(scene([p + middle + move for p in TWO], height=321, width=353, stride=stride)), decoder)
        for move in (torch.zeros(2), step)
    )
    people = torch.stack(TWO) + middle
    assert torch.allclose(nearest(there, people + step), nearest(here, people) + step, atol=1e-2)
    assert torch.allclose(there.scores, here.scores, atol=1e-3)


@pytest.mark.parametrize("decoder", [DECODER, OURS])
@settings(max_examples=6, deadline=None)
@given(st.integers(0, 1000))
def test_mirrored_fields_hold_mirrored_people(decoder: Decoder, seed: int) -> None:
    """Left is right; rounding and the order in which equal bins are read are all that may differ."""
    fields = predicted(scene(TWO, height=257, width=257, stride=8), radius=32.0, seed=seed)
    one, other = poses(fields, decoder), poses(mirrored(fields), decoder)
    back = other.keypoints[:, list(FLIP)] * torch.tensor([-1.0, 1.0]) + torch.tensor([256.0, 0.0])
    assert torch.allclose(back[:2], one.keypoints[:2], atol=5e-2)
    assert torch.allclose(other.scores[:2], one.scores[:2], atol=1e-3)


@pytest.mark.parametrize("decoder", [DECODER, OURS])
@pytest.mark.parametrize("stride", [8, 16])
def test_a_person_alone_is_the_same_person_beside_others_far_away(decoder: Decoder, stride: int) -> None:
    """To the bit for keypoints and scores, and for the mask, with people 200 px and more away."""
    near, far = figure(60.3, 25.2, 120.0), figure(350.0, 31.0, 100.0)
    alone, together = (
        perfect(scene(people, height=161, width=417, stride=stride)) for people in ([near], [near, far])
    )
    one, other = poses(alone, decoder), poses(together, decoder)
    assert (len(one.scores), len(other.scores)) == (1, 2)
    j = int((other.keypoints[:, 0, 0] < 200).nonzero())
    assert torch.allclose(other.keypoints[j], one.keypoints[0], atol=1e-4)
    assert float(other.scores[j]) == pytest.approx(float(one.scores[0]), abs=1e-5)
    assert torch.equal(masks(together, decoder)[j], masks(alone, decoder)[0])


@pytest.mark.parametrize("decoder", [DECODER, OURS])
def test_an_image_of_a_batch_is_that_image(decoder: Decoder) -> None:
    cases = [scene([pose], height=257, width=257, stride=8) for pose in TWO]
    singles = [encode(c.people, stride=8, radius=32.0, skeleton=COCO_PERSON) for c in cases]
    batch = stack(singles).fields
    for index, single in enumerate(singles):
        one, other = poses(single.fields, decoder), poses(image(batch, index), decoder)
        assert torch.equal(one.keypoints, other.keypoints)
        assert torch.equal(one.scores, other.scores)


# sizes and numbers


def test_the_extent_of_a_pose_scales_with_it() -> None:
    found = poses(perfect(scene(TWO, height=257, width=257, stride=8)))
    assert torch.allclose(found.scaled(3.0).extent(), 3 * found.extent())
    assert torch.allclose(found.extent(), extent(found.keypoints, found.presence))


def test_what_an_untrained_network_seeds_is_bounded() -> None:
    """Thousands of seeds: only so many poses are scored."""
    fields = random_fields(0, rows=40, columns=40, stride=8, spread=20.0)
    fields = fields.replace(heatmap=torch.ones_like(fields.heatmap))
    assert len(poses(fields, paper(max_people=10_000)).scores) == 1000
    frame = Frame.common([Level(fields, 1.0)], 313, 313)
    seeds = vote([Level(fields, 1.0)], frame, radius=32.0, bin=2.0, threshold=0.01)[1]
    assert len(seeds.xy) > 1000


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_fields_of_a_gpu_are_decoded_on_the_host() -> None:
    fields = predicted(adversarial()["one person"], radius=DECODER.radius)
    here, there = poses(fields), poses(fields.to("cuda"))
    assert torch.equal(here.keypoints, there.keypoints)
    assert torch.equal(masks(fields), masks(fields.to("cuda")))
