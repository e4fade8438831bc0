"""Targets: closed forms, the slow reference, and what must not matter."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from personlab.codec.encode import Instances, encode
from personlab.codec.fields import Targets, stack
from personlab.skeleton import COCO_PERSON
from tests.coco_person import EDGES, KEYPOINTS, K
from tests.reference import codec as reference
from tests.reference.scenes import Scene, adversarial, figure, mirrored, random_scene, scene

RADIUS = 32.0
NOSE, EYE, EAR = KEYPOINTS.index("nose"), KEYPOINTS.index("left_eye"), KEYPOINTS.index("left_ear")
STRIDES = st.sampled_from([8, 16, 32])
VALID = ("heatmap_valid", "short_valid", "mid_valid", "seg_valid", "long_valid")


def encoded(case: Scene, radius: float = RADIUS) -> Targets:
    return encode(case.people, stride=case.stride, radius=radius, skeleton=COCO_PERSON)


def parts(targets: Targets) -> dict[str, Tensor]:
    """Every target and every mask of validity, by name."""
    return targets.fields.tensors() | {name: getattr(targets, name) for name in VALID}


def assert_same(one: Targets, other: Targets) -> None:
    for name, tensor in parts(one).items():
        assert torch.equal(tensor, parts(other)[name]), name


def two(first: tuple[float, float], second: tuple[float, float], **changes: Tensor) -> Scene:
    """Two people of whom only the nose and left eye are labelled, each eye 10 px right of its nose."""
    keypoints = torch.zeros(2, K, 2)
    for person, nose in enumerate((first, second)):
        keypoints[person, NOSE] = torch.tensor(nose)
        keypoints[person, EYE] = torch.tensor(nose) + torch.tensor([10.0, 0.0])
    labelled = torch.zeros(2, K, dtype=torch.bool)
    labelled[:, [NOSE, EYE]] = True
    no = torch.zeros(2, dtype=torch.bool)
    people = Instances(keypoints, labelled, torch.zeros(2, 9, 9), crowd=no, imputed=no, unmasked=no)
    return Scene(replace(people, **changes), 65, 65, 8)


# closed forms


def test_disk_includes_its_rim() -> None:
    targets = encoded(two((32.0, 32.0), (32.0, 32.0)), radius=16.0)
    row = targets.fields.heatmap[0, NOSE, 4]
    assert row.tolist() == [0, 0, 1, 1, 1, 1, 1, 0, 0]  # cells at 16, 24, 32, 40, 48 px


def test_short_points_to_the_closest_person_although_both_disks_hold_the_cell() -> None:
    targets = encoded(two((16.0, 32.0), (42.0, 32.0)))
    short = targets.fields.short[0, NOSE, :, 4]  # along y = 32
    assert short[:, 3].tolist() == [-8.0, 0.0]  # x = 24 is 8 px from the first, 18 px from the second
    assert short[:, 4].tolist() == [10.0, 0.0]  # x = 32 is 16 px from the first, 10 px from the second


def test_mid_leads_to_the_end_of_the_person_whose_disk_it_is() -> None:
    targets = encoded(two((16.0, 32.0), (42.0, 32.0)))
    edge = EDGES.index((NOSE, EYE))
    assert targets.fields.mid[0, edge, :, 4, 3].tolist() == [26.0 - 24.0, 0.0]
    assert targets.fields.mid[0, edge, :, 4, 4].tolist() == [52.0 - 32.0, 0.0]


def test_mid_is_undefined_not_zero_where_an_end_is_missing() -> None:
    case = two((16.0, 32.0), (42.0, 32.0))
    case.people.labelled[1, EYE] = False
    targets = encoded(case)
    valid = targets.mid_valid[0, EDGES.index((NOSE, EYE)), 4]
    assert valid[3]
    assert not valid[4]  # the closest person has no eye; the other one's does not stand in for it
    assert not targets.mid_valid[0, EDGES.index((EYE, EAR))].any()


def test_long_needs_exactly_one_person_and_an_annotated_keypoint() -> None:
    masks = torch.zeros(2, 9, 9)
    masks[0, 2, :5], masks[1, 2, 3:] = 1, 1
    targets = encoded(two((16.0, 32.0), (42.0, 32.0), masks=masks))
    assert targets.long_valid[0, NOSE, 2].tolist() == [True] * 3 + [False] * 2 + [True] * 4
    assert targets.fields.long[0, NOSE, :, 2, 1].tolist() == [16.0 - 8.0, 32.0 - 16.0]
    assert targets.fields.long[0, NOSE, :, 2, 6].tolist() == [42.0 - 48.0, 32.0 - 16.0]
    assert not targets.long_valid[0, EAR].any()
    assert targets.fields.seg[0, 2].all()  # overlapping masks are one mask, neither summed nor lost
    assert targets.fields.seg.max() == 1


def test_a_cell_is_on_the_mask_that_covers_most_of_it() -> None:
    """p_S is the share of the cell itself; whose offsets are defined takes at least half of it. Whatever a
    crowd or a person without keypoints touches is not defined."""
    shares = torch.tensor([0.0, 0.1, 0.4, 0.5, 0.6, 1.0, 1.0, 1.0, 1.0])
    masks = torch.zeros(2, 9, 9)
    masks[0, 2], masks[1, 2] = shares, torch.tensor([0.0] * 5 + [0.1, 0.4, 0.5, 1.0])
    case = two((16.0, 32.0), (42.0, 32.0), masks=masks)
    targets = encoded(case)
    assert targets.fields.seg[0, 2].tolist() == shares.tolist()
    assert targets.long_valid[0, NOSE, 2].tolist() == [False] * 3 + [True] * 4 + [False] * 2
    case.people.labelled[1] = False
    assert encoded(case).heatmap_valid[0, NOSE, 2].tolist() == [True] * 5 + [False] * 4
    crowd = replace(case, people=replace(case.people, crowd=torch.tensor([False, True])))
    assert encoded(crowd).seg_valid[0, 2].tolist() == [True] * 5 + [False] * 4
    assert encoded(crowd).long_valid[0, NOSE, 2].tolist() == [False] * 3 + [True] * 2 + [False] * 4


def test_a_person_without_a_mask_hides_what_is_in_the_region() -> None:
    masks = torch.zeros(2, 9, 9)
    masks[0, 2], masks[1, 2, 4:] = 1, 1
    case = two((16.0, 32.0), (48.0, 48.0), masks=masks, unmasked=torch.tensor([False, True]))
    targets = encoded(case)
    expected = [True] * 4 + [False] * 5
    assert targets.seg_valid[0, 2].tolist() == expected
    assert targets.long_valid[0, NOSE, 2].tolist() == expected
    assert targets.fields.seg[0, 2].tolist() == [1.0] * 9  # the first person's
    assert targets.heatmap_valid.all()
    assert targets.fields.heatmap[0, NOSE, 6, 6] == 1  # the keypoints train the poses
    case.people.labelled[1] = False
    hidden = encoded(case).heatmap_valid[0, NOSE, 2]
    assert hidden.tolist() == expected  # nor are they known without keypoints


def test_without_any_masks_seg_and_long_are_undefined() -> None:
    masks = torch.zeros(2, 9, 9)
    masks[:, 2] = 1
    targets = encoded(two((16.0, 32.0), (48.0, 48.0), masks=masks, unmasked=torch.tensor([True, True])))
    assert not targets.seg_valid.any()
    assert not targets.long_valid.any()
    assert targets.heatmap_valid.all()


def test_the_mask_of_a_crowd_does_not_say_that_people_have_masks() -> None:
    masks = torch.zeros(2, 9, 9)
    masks[:, 2] = 1
    crowd, unmasked = torch.tensor([False, True]), torch.tensor([True, False])
    case = two((16.0, 32.0), (48.0, 48.0), masks=masks, crowd=crowd, unmasked=unmasked)
    assert not encoded(case).seg_valid.any()
    both = torch.tensor([True, True])
    alone = replace(case, people=replace(case.people, crowd=both, unmasked=~both))
    assert encoded(alone).seg_valid[0, 3:].all()  # an image without people, but for a crowd


def test_crowd_defines_nothing() -> None:
    masks = torch.zeros(2, 9, 9)
    masks[0, 2], masks[1, 2, 4:] = 1, 1
    crowd = torch.tensor([False, True])
    targets = encoded(two((16.0, 32.0), (48.0, 48.0), masks=masks, crowd=crowd))
    expected = [True] * 4 + [False] * 5
    assert targets.heatmap_valid[0, :, 2].tolist() == [expected] * K
    assert targets.seg_valid[0, 2].tolist() == expected
    assert targets.long_valid[0, NOSE, 2].tolist() == expected
    assert targets.fields.heatmap[0, NOSE, 6, 6] == 0  # a crowd's keypoints draw no disk
    assert targets.heatmap_valid[0, :, 3].all()


def test_people_without_keypoints_hide_the_heatmap_only() -> None:
    masks = torch.zeros(2, 9, 9)
    masks[1, 2, 4:] = 1
    case = two((16.0, 32.0), (0.0, 0.0), masks=masks)
    case.people.labelled[1] = False
    targets = encoded(case)
    assert targets.heatmap_valid[0, :, 2].tolist() == [[True] * 4 + [False] * 5] * K
    assert targets.seg_valid.all()
    assert targets.fields.seg[0, 2].tolist() == [0.0] * 4 + [1.0] * 5
    assert not targets.long_valid.any()
    # their keypoints at (0, 0) mean nothing: only the other person's disk is there
    alone = encoded(case.select([0]))
    assert torch.equal(targets.fields.heatmap, alone.fields.heatmap)


def test_imputed_people_hide_the_heatmaps_of_their_other_keypoints() -> None:
    masks = torch.zeros(2, 9, 9)
    masks[1, 2, 4:] = 1
    case = two((16.0, 32.0), (48.0, 16.0), masks=masks, imputed=torch.tensor([False, True]))
    valid = encoded(case).heatmap_valid[0]
    assert valid[[NOSE, EYE]].all()  # estimated
    others = [k for k in range(K) if k not in (NOSE, EYE)]
    assert valid[others, 2].tolist() == [[True] * 4 + [False] * 5] * len(others)
    assert valid[:, 3].all()
    annotated = replace(case, people=replace(case.people, imputed=torch.zeros(2, dtype=torch.bool)))
    assert encoded(annotated).heatmap_valid.all()  # annotators label all keypoints that they see


def test_no_people() -> None:
    targets = encoded(adversarial()["empty"])
    for name, tensor in targets.fields.tensors().items():
        assert not tensor.any(), name
    assert targets.heatmap_valid.all()
    assert targets.seg_valid.all()
    assert not targets.mid_valid.any()
    assert not targets.long_valid.any()


def test_shapes_and_types() -> None:
    case = random_scene(0, rows=5, columns=7)
    targets = encoded(case)
    assert {n: tuple(t.shape) for n, t in parts(targets).items()} == {
        "heatmap": (1, 17, 5, 7),
        "short": (1, 17, 2, 5, 7),
        "mid": (1, 32, 2, 5, 7),
        "seg": (1, 5, 7),
        "long": (1, 17, 2, 5, 7),
        "heatmap_valid": (1, 17, 5, 7),
        "short_valid": (1, 17, 5, 7),
        "mid_valid": (1, 32, 5, 7),
        "seg_valid": (1, 5, 7),
        "long_valid": (1, 17, 5, 7),
    }
    for name, tensor in parts(targets).items():
        assert tensor.dtype == (torch.bool if name.endswith("valid") else torch.float32), name


@pytest.mark.parametrize("garbage", [0.0, 1e30, float("inf"), float("nan")])
def test_unlabelled_rows_mean_nothing(garbage: float) -> None:
    case = scene([figure(30.0, 20.0, 60.0), figure(50.0, 20.0, 60.0)], height=97, width=97, stride=8)
    case.people.labelled[0, 3] = False
    case.people.labelled[:, 7] = False
    expected = encoded(case)
    case.people.keypoints[~case.people.labelled] = garbage
    assert_same(encoded(case), expected)


# the slow reference


def assert_matches_reference(case: Scene, radius: float) -> None:
    """Masks and disks exactly; offsets to 1e-4 px, a few times what float32 holds of 1000 px."""
    p = case.people
    expected = reference.targets(
        p.keypoints.double().tolist(),
        p.labelled.tolist(),
        p.masks.numpy(),
        p.crowd.tolist(),
        p.imputed.tolist(),
        p.unmasked.tolist(),
        stride=case.stride,
        radius=radius,
    )
    found = {name: tensor[0].double().numpy() for name, tensor in parts(encoded(case, radius)).items()}
    for field in fields(expected):
        tolerance = 1e-4 if field.name in ("short", "mid", "long") else 0.0
        np.testing.assert_allclose(
            found[field.name], getattr(expected, field.name), rtol=0, atol=tolerance, err_msg=field.name
        )


@pytest.mark.parametrize("name", adversarial())
def test_reference_on_adversarial_scenes(name: str) -> None:
    assert_matches_reference(adversarial()[name], RADIUS)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 4), STRIDES, st.sampled_from([6.0, 32.0]))
def test_reference_on_random_scenes(seed: int, people: int, stride: int, radius: float) -> None:
    assert_matches_reference(random_scene(seed, people=people, rows=6, columns=5, stride=stride), radius)


# what must not matter


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.permutations(range(4)), STRIDES)
def test_order_of_people_does_not_matter(seed: int, order: list[int], stride: int) -> None:
    case = random_scene(seed, people=4, stride=stride)
    assume(not ties(case))  # the first of the people is as good as another there
    assert_same(encoded(case.select(order)), encoded(case))


def ties(case: Scene) -> bool:
    """Whether two people's keypoints of a type are equally far from a cell."""
    rows, columns = case.people.masks.shape[-2:]
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    cells = torch.stack([x, y], -1).double() * case.stride  # H x W x 2
    offsets = case.people.keypoints.double()[:, :, None, None] - cells  # P x K x H x W x 2
    squared = offsets.square().sum(-1)
    squared[~case.people.labelled] = torch.inf
    first, second = squared.sort(0).values[:2]
    return bool(((first == second) & first.isfinite()).any())


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), STRIDES)
def test_mirrored_scene_has_mirrored_fields(seed: int, stride: int) -> None:
    case = random_scene(seed, stride=stride)
    expected, found = mirrored(encoded(case).fields).tensors(), encoded(case.mirrored()).fields.tensors()
    for name in expected:
        assert torch.equal(found[name], expected[name]), name


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 5), st.integers(0, 5), STRIDES)
def test_shift_by_whole_cells_shifts_the_fields(seed: int, down: int, right: int, stride: int) -> None:
    case = random_scene(seed, rows=8, columns=8, stride=stride)
    rolled = case.people.masks.roll((down, right), (1, 2))
    keypoints = case.people.keypoints + torch.tensor([right, down]) * float(stride)
    shifted = parts(encoded(replace(case, people=replace(case.people, keypoints=keypoints, masks=rolled))))
    for name, tensor in parts(encoded(case)).items():
        kept = tensor[..., : 8 - down, : 8 - right]
        assert torch.equal(shifted[name][..., down:, right:], kept), name


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31))
def test_finer_stride_agrees_on_shared_cells(seed: int) -> None:
    """Cell (i, j) at stride 16 is cell (2i, 2j) at stride 8, to the bit."""
    fine = random_scene(seed, rows=9, columns=9, stride=8)
    coarse = replace(fine, stride=16, people=replace(fine.people, masks=fine.people.masks[:, ::2, ::2]))
    found = parts(encoded(coarse))
    for name, tensor in parts(encoded(fine)).items():
        assert torch.equal(found[name], tensor[..., ::2, ::2]), name


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(0, 2**31), min_size=1, max_size=3))
def test_batch_is_its_images(seeds: list[int]) -> None:
    singles = [encoded(random_scene(seed)) for seed in seeds]
    batch = parts(stack(singles))
    for index, single in enumerate(singles):
        for name, tensor in parts(single).items():
            assert torch.equal(batch[name][index : index + 1], tensor), name


def test_others_far_away_do_not_matter() -> None:
    """Within 100 px of a person, the targets are the same whatever people stand 200 px or more away."""
    near, far = figure(50.0, 40.0, 60.0), figure(330.0, 40.0, 60.0)
    alone = encoded(scene([near], height=129, width=401, stride=8))
    together = encoded(scene([near, far], height=129, width=401, stride=8))
    for name, tensor in parts(alone).items():
        assert torch.equal(parts(together)[name][..., :19], tensor[..., :19]), name
