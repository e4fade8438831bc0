"""The guided filter: closed forms, the slow reference, and photos of any size."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from personlab.codec.guided import EPSILON, POINTS, RADIUS, guided_filter, guided_seg
from tests.reference import codec as reference

ALL = torch.ones(9, 11, dtype=torch.bool)


def two_colours(edge: int, *, height: int = 65, width: int = 81) -> np.ndarray:
    """A dark photo that is bright from column `edge` on."""
    image = np.full((height, width, 3), 40, np.uint8)
    image[:, edge:] = (200, 150, 90)
    return image


def ramp() -> torch.Tensor:
    """p_S falls from 1 to 0 between the cells at x = 32 and x = 56: a half at 44."""
    return ((7 - torch.arange(11.0)) / 3).clamp(0, 1).expand(9, 11).contiguous()


def test_the_outline_moves_to_the_edge_of_the_photo() -> None:
    """At x = 44 without a photo; two pixels from its edge, or closer, with one."""
    for edge in (41, 47):
        found = guided_seg(ramp(), two_colours(edge), ALL, step=1 / 8)
        outline = float((found[8] >= 0.5).sum() - 1) * 8 / POINTS
        assert abs(outline - edge) <= 4
    plain = guided_seg(ramp(), two_colours(999), ALL, step=1 / 8)
    assert float((plain[8] >= 0.5).sum() - 1) * 8 / POINTS == pytest.approx(44, abs=4)


def test_a_photo_of_one_colour_leaves_means_of_means() -> None:
    """The box of boxes: 1, 2, 3, 4, 5, 4, 3, 2, 1 of 25 along a row."""
    p = np.zeros((1, 21))
    p[0, 10] = 1
    found = guided_filter(np.full((1, 21, 3), 0.4), p, RADIUS, EPSILON)
    weights = np.array([1, 2, 3, 4, 5, 4, 3, 2, 1]) / 25
    np.testing.assert_allclose(found[0, 6:15], weights, atol=1e-12)


def test_where_all_is_person_all_stays_person() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (65, 81, 3)).astype(np.uint8)
    found = guided_seg(torch.ones(9, 11), image, ALL, step=1 / 8)
    torch.testing.assert_close(found, torch.ones(17, 21), rtol=0, atol=1e-5)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31))
def test_the_reference(seed: int) -> None:
    rng = np.random.default_rng(seed)
    guide, p = rng.random((3, 9, 12)), rng.random((9, 12))
    expected = reference.guided_filter(guide, p, radius=RADIUS, epsilon=EPSILON)
    np.testing.assert_allclose(
        guided_filter(guide.transpose(1, 2, 0), p, RADIUS, EPSILON), expected, rtol=0, atol=1e-9
    )


def test_near_people_the_whole_image_need_not_be_filtered() -> None:
    """What is filtered is the same to the last digits of single precision."""
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (257, 321, 3)).astype(np.uint8)
    seg = torch.from_numpy(rng.random((33, 41))).float()
    some = torch.zeros(33, 41, dtype=torch.bool)
    some[12:18, 20:25] = True
    near, everywhere = (guided_seg(seg, image, cells, step=1 / 8) for cells in (some, torch.ones_like(some)))
    inside = slice(11 * POINTS, 18 * POINTS + 1), slice(19 * POINTS, 25 * POINTS + 1)
    torch.testing.assert_close(near[inside], everywhere[inside], rtol=0, atol=1e-4)


@pytest.mark.parametrize("factor", [1, 2, 5])
def test_the_resolution_of_the_photo_does_not_matter(factor: int) -> None:
    """The same photo, larger: the same outline to a point of the grid."""
    image = two_colours(41).repeat(factor, 0).repeat(factor, 1)
    found = guided_seg(ramp(), image, ALL, step=1 / (8 * factor))
    assert abs(float((found[8] >= 0.5).sum() - 1) * 8 / POINTS - 41) <= 4


@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 7), (70, 90)])
def test_a_photo_smaller_or_larger_than_the_cells(height: int, width: int) -> None:
    """Cells beyond the photo, as of a padded input, see the colours of its border."""
    image = np.full((height, width, 3), 100, np.uint8)
    found = guided_seg(torch.full((9, 11), 0.7), image, ALL, step=1 / 8)
    torch.testing.assert_close(found, torch.full((17, 21), 0.7), rtol=0, atol=1e-5)


def test_mirrored_photos_have_mirrored_outlines() -> None:
    rng = np.random.default_rng(2)
    image = rng.integers(0, 256, (65, 81, 3)).astype(np.uint8)
    seg = torch.from_numpy(rng.random((9, 11))).float()
    one = guided_seg(seg, image, ALL, step=1 / 8)
    other = guided_seg(seg.flip(1), image[:, ::-1], ALL, step=1 / 8)
    torch.testing.assert_close(other.flip(1), one, rtol=0, atol=1e-4)


def test_no_people() -> None:
    found = guided_seg(ramp(), two_colours(41), ~ALL, step=1 / 8)
    assert torch.equal(found[::POINTS, ::POINTS], ramp())
