"""Pyramids: all levels together find people where they are, and as the slow reference does."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from personlab.codec.decode import Decoder, Level
from personlab.codec.group import find_people
from personlab.codec.hough import Seeds
from personlab.codec.pyramid import Frame
from personlab.skeleton import COCO_PERSON
from tests.reference.scenes import predicted, random_fields, scene
from tests.test_decode import DECODER, TWO, apart, assert_pyramid_matches_reference, nearest, perfect, poses


def pyramid(people: Sequence[Tensor], scales: Sequence[float], *, side: int) -> list[Level]:
    """Perfect fields of one image of side x side pixels at several scales."""
    levels = []
    for scale in scales:
        cells = -(-int((side - 1) * scale + 0.5) // 8) * 8 + 1
        case = scene([pose * scale for pose in people], height=cells, width=cells, stride=8)
        levels.append(Level(perfect(case), scale))
    return levels


@pytest.mark.parametrize("scales", [(1.0, 1.0), (0.5, 1.0), (0.75, 1.5), (0.5, 1.0, 2.0)])
def test_all_levels_agree_on_where_people_are(scales: tuple[float, ...]) -> None:
    """Offsets are in pixels of their own level: combined without a thought they would be off by the scale."""
    levels = pyramid(TWO, scales, side=257)
    found = DECODER.poses(levels, height=257, width=257)
    assert len(found.scores) == 2
    assert torch.allclose(nearest(found, torch.stack(TWO)), torch.stack(TWO), atol=2e-2)
    assert (found.scores > 0.9).all()


@pytest.mark.parametrize("scales", [(0.5, 1.0), (0.75, 1.5, 1.0)])
def test_reference_on_pyramids(scales: tuple[float, ...]) -> None:
    """Levels that disagree: each has noise of its own, and sees the people elsewhere."""
    levels = [
        Level(random_fields(n, rows=7, columns=8, stride=8, spread=6.0), scale)
        for n, scale in enumerate(scales)
    ]
    assert_pyramid_matches_reference(levels, replace(DECODER, bin=4.0), height=33, width=37)


def test_a_finer_level_has_more_to_say() -> None:
    """Two levels that are equally sure: shares of 1 and 4, so that they meet at a fifth of the way."""
    pose = TWO[0]
    levels = pyramid([pose], (1.0, 2.0), side=257)
    off = levels[0].fields.replace(short=levels[0].fields.short + torch.tensor([5.0, 0.0]).view(2, 1, 1))
    off = off.replace(mid=off.mid + torch.tensor([5.0, 0.0]).view(2, 1, 1))
    frame = Frame.common(levels, 257, 257)
    seeds = Seeds((pose[:1] * frame.scale), torch.tensor([0]), torch.ones(1))
    options = {"trace_refinements": 0, "nms_radius": 10.0, "most": 1, "skeleton": COCO_PERSON}
    found = find_people([Level(off, 1.0), levels[1]], frame, seeds, **options)
    eye = found[0, 1] / frame.scale
    assert torch.allclose(eye, pose[1] + torch.tensor([1.0, 0.0]), atol=1e-2)


def test_twice_the_same_level_is_that_level() -> None:
    fields = predicted(scene(TWO, height=257, width=257, stride=8), radius=32.0)
    one = poses(fields)
    two = DECODER.poses([Level(fields, 1.0), Level(fields, 1.0)], height=257, width=257)
    assert apart(one, two) < 1e-2
    assert torch.allclose(one.scores, two.scores, atol=1e-4)


def test_a_level_that_sees_nobody_does_not_hide_them() -> None:
    levels = pyramid(TWO, (1.0, 1.0), side=257)
    blind = levels[0].fields
    blind = blind.replace(**{name: torch.zeros_like(t) for name, t in blind.tensors().items()})
    levels = [Level(blind, 1.0), levels[1]]
    found = DECODER.poses(levels, height=257, width=257)
    assert torch.allclose(nearest(found, torch.stack(TWO)), torch.stack(TWO), atol=1e-2)
    for mask in DECODER.masks(levels, found, height=257, width=257):
        assert mask.sum() > 5000


def test_a_mask_is_that_of_the_level_which_agrees_with_the_pose() -> None:
    """At the other level the long-range offsets lead astray, though it is the finer one."""
    good, bad = pyramid([TWO[0]], (1.0, 1.5), side=257)
    bad = Level(bad.fields.replace(long=bad.fields.long + 20.0), bad.scale)
    decoder = replace(DECODER, long_refinements=0)
    found = decoder.poses([good, bad], height=257, width=257)
    (mask,) = decoder.masks([good, bad], found, height=257, width=257)
    (expected,) = decoder.masks([good], found, height=257, width=257)
    assert torch.equal(mask, expected)
    assert mask.any()


def test_all_steps_on_a_pyramid() -> None:
    found = Decoder().poses(pyramid(TWO, (0.5, 1.0, 2.0), side=257), height=257, width=257)
    assert torch.allclose(nearest(found, torch.stack(TWO)), torch.stack(TWO), atol=0.2)
    assert (found.scores > 0.7).all()
