from dataclasses import replace

import numpy as np
import pytest
import torch
from pycocotools import mask as rle

from personlab import viz
from personlab.codec.fields import Fields
from personlab.people import Annotation, Detection
from personlab.skeleton import KEYPOINTS, E, K
from personlab.viz.people import LEFT, PEOPLE, RIGHT

HEIGHT, WIDTH = 97, 129
GREY = np.full((HEIGHT, WIDTH, 3), 128, dtype=np.uint8)


def rectangle(x: int, y: int, w: int, h: int) -> bytes:
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8, order="F")
    mask[y : y + h, x : x + w] = 1
    return rle.encode(mask)["counts"]


def lattice(x: float, y: float, w: float, h: float) -> np.ndarray:
    return np.array([(x + w * (k % 4 + 0.5) / 4, y + h * (k // 4 + 0.5) / 5) for k in range(K)], np.float32)


def detection(x=20, y=10, w=40, h=60, scores=1.0) -> Detection:
    return Detection(lattice(x, y, w, h), np.full(K, scores, dtype=np.float32), 0.9, rectangle(x, y, w, h))


def annotation(x=20, y=10, w=40, h=60, *, visibility=2, crowd=False) -> Annotation:
    return Annotation(
        id=1,
        keypoints=lattice(x, y, w, h),
        visibility=np.full(K, visibility, dtype=np.int8),
        imputed=False,
        box=(x, y, w, h),
        area=w * h,
        crowd=crowd,
        rle=rectangle(x, y, w, h),
    )


def changed(picture: np.ndarray) -> np.ndarray:
    return (picture != GREY).any(axis=-1)


@pytest.fixture(autouse=True)
def input_stays_as_it_is():
    before = GREY.copy()
    yield
    np.testing.assert_array_equal(GREY, before)


def test_nobody_leaves_the_image_equal():
    assert viz.draw_people(GREY, []) is not GREY
    for picture in (viz.draw_people(GREY, []), viz.draw_annotations(GREY, [])):
        np.testing.assert_array_equal(picture, GREY)


def test_the_mask_changes_inside_and_stays_outside():
    touched = changed(viz.draw_people(GREY, [detection(scores=0.0)]))
    assert touched[10:70, 20:60].all()
    touched[8:72, 18:62] = False
    assert not touched.any()


def test_the_first_person_is_on_top():
    first, second = detection(), detection(x=40)
    both = viz.draw_people(GREY, [first, second])
    alone = viz.draw_people(GREY, [first])
    inside = (slice(14, 66), slice(24, 36))  # of the first alone
    np.testing.assert_array_equal(both[inside], alone[inside])
    assert tuple(both[65, 38]) != tuple(both[65, 70])


def test_people_without_masks_are_their_poses():
    posed = detection()
    bare = Detection(posed.keypoints, posed.keypoint_scores, 0.9, rle=b"")
    picture = viz.draw_people(GREY, [bare])
    np.testing.assert_array_equal(picture, viz.draw_pose(GREY, posed.keypoints, posed.keypoint_scores))
    np.testing.assert_array_equal(
        viz.draw_people(GREY, [bare, detection(x=70)])[:, :60], viz.draw_people(GREY, [bare])[:, :60]
    )


def test_an_empty_mask_changes_nothing():
    empty = Detection(lattice(0, 0, 9, 9), np.zeros(K, np.float32), 0.9, rectangle(0, 0, 0, 0))
    np.testing.assert_array_equal(viz.draw_people(GREY, [empty]), GREY)


def test_scores_stand_above_their_people_in_their_colours():
    left, right = detection(x=10, y=50, w=30, h=40), detection(x=80, y=50, w=30, h=40)
    picture = viz.draw_scores(GREY, [left, right])
    touched = changed(picture)
    assert touched[:60, :60].any()
    assert touched[:60, 65:].any()
    assert not touched[60:].any()
    for colour, x in zip(PEOPLE, (25, 95), strict=False):
        filled = np.abs(picture[:, x - 20 : x + 20].astype(int) - colour).sum(axis=-1).min()
        assert filled < 150


@pytest.mark.parametrize(("x", "y"), [(-20, -20), (120, 80), (50, -30)])
def test_scores_stay_within_the_image(x, y):
    whole = changed(viz.draw_scores(GREY, [detection(50, 40, 20, 30)])).sum()
    assert changed(viz.draw_scores(GREY, [replace(detection(), keypoints=lattice(x, y, 20, 30))])).sum() == (
        pytest.approx(whole, rel=0.05)
    )


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 2), (5, 5)])
def test_tiny_images_are_drawn_on(size):
    image = np.full((*size, 3), 128, np.uint8)
    someone = Detection(lattice(0, 0, size[1], size[0]), np.ones(K, np.float32), 0.9, b"")
    assert viz.draw_scores(viz.draw_people(image, [someone]), [someone]).shape == image.shape


def test_who_is_not_drawn_has_no_score():
    np.testing.assert_array_equal(viz.draw_scores(GREY, [detection(scores=0.1)]), GREY)


def test_lines_are_thicker_on_larger_images():
    def share(side: int) -> float:
        image = np.zeros((side, side, 3), np.uint8)
        picture = viz.draw_pose(image, lattice(0, 0, side, side), np.ones(K, np.float32))
        return np.count_nonzero(picture.any(axis=-1)) / side**2

    assert share(4000) == pytest.approx(share(1000), rel=0.2)


def test_keypoints_below_the_threshold_are_left_out():
    unsure = detection(scores=0.3)
    assert changed(viz.draw_pose(GREY, unsure.keypoints, unsure.keypoint_scores, min_score=0.4)).sum() == 0
    shown = changed(viz.draw_pose(GREY, unsure.keypoints, unsure.keypoint_scores, min_score=0.3))
    for x, y in unsure.keypoints.round().astype(int):
        assert shown[y, x]


def test_left_is_orange_and_right_is_blue():
    points = np.zeros((K, 2), dtype=np.float32)
    scores = np.zeros(K, dtype=np.float32)
    for row, side in ((20, "left"), (70, "right")):
        for column, joint in ((20, "elbow"), (100, "wrist")):
            index = KEYPOINTS.index(f"{side}_{joint}")
            points[index], scores[index] = (column, row), 1
    picture = viz.draw_pose(GREY, points, scores)
    assert tuple(picture[20, 60]) == LEFT
    assert tuple(picture[70, 60]) == RIGHT


def test_bigger_people_have_thicker_limbs():
    image = np.zeros((800, 800, 3), dtype=np.uint8)

    def share_drawn(size: int) -> float:
        picture = viz.draw_pose(image, lattice(20, 20, size, size), np.ones(K, dtype=np.float32))
        return np.count_nonzero(picture.any(axis=-1)) / size

    assert share_drawn(300) > 2 * share_drawn(50)


def test_drawing_beyond_the_border_is_clipped():
    far = Detection(lattice(-500, -500, 3000, 3000), np.ones(K, np.float32), 0.9, rectangle(0, 0, 5, 5))
    assert viz.draw_people(GREY, [far]).shape == GREY.shape


def test_annotations_show_hidden_keypoints_differently_and_leave_out_unlabelled_ones():
    box = (10, 2, 110, 92)
    seen, hidden, unlabelled = (
        viz.draw_annotations(GREY, [annotation(*box, visibility=v)]) for v in (2, 1, 0)
    )
    np.testing.assert_array_equal(unlabelled, viz.draw_people(GREY, [detection(*box, scores=0.0)]))
    assert (seen != hidden).any()
    np.testing.assert_array_equal(changed(seen), changed(hidden))


def test_crowds_are_hatched_without_a_pose():
    picture = viz.draw_annotations(GREY, [annotation(crowd=True)])
    inside = picture[10:70, 20:60].reshape(-1, 3)
    assert len(np.unique(inside, axis=0)) == 2
    assert not changed(picture)[:, 60:].any()


def test_contact_sheet_places_every_image():
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
    images = [np.full((30, 40, 3), colour, dtype=np.uint8) for colour in colours]
    images[2] = images[2][:20]  # centred in its cell
    sheet = viz.contact_sheet(images, 2, ["one", "two", "three\nlines"])
    for image, colour in zip(images, colours, strict=True):
        assert (sheet == colour).all(axis=-1).sum() == image[..., 0].size
    (top, _), (_, right), (bottom, _) = (np.argwhere((sheet == c).all(axis=-1)).min(axis=0) for c in colours)
    assert bottom > top + 30
    assert right > 40


def test_contact_sheet_shrinks_but_never_enlarges():
    large, small = np.zeros((200, 100, 3), dtype=np.uint8), np.full((10, 10, 3), 9, dtype=np.uint8)
    sheet = viz.contact_sheet([large, small], 2, cell=(60, 60))
    assert (sheet == 0).all(axis=-1).sum() == 60 * 30
    assert (sheet == 9).all(axis=-1).sum() == 100


def test_fields_are_drawn_where_they_are_likely():
    stride = 8
    h, w = HEIGHT // stride + 1, WIDTH // stride + 1
    empty = Fields(
        heatmap=torch.zeros(1, K, h, w),
        short=torch.ones(1, K, 2, h, w),
        mid=torch.ones(1, E, 2, h, w),
        seg=torch.zeros(1, h, w),
        long=torch.ones(1, K, 2, h, w),
        stride=stride,
    )
    heatmap, seg = empty.heatmap.clone(), empty.seg.clone()
    heatmap[0, KEYPOINTS.index("left_wrist"), 3, 4] = 1
    seg[0, 8, 9] = 1
    likely = Fields(heatmap, empty.short, empty.mid, seg, empty.long, stride)
    before, after = viz.draw_fields(GREY, empty), viz.draw_fields(GREY, likely)
    assert before.shape == after.shape
    different = (before != after).any(axis=-1)
    panel_height, panel_width = HEIGHT, WIDTH
    step_x = panel_width + 12
    step_y = (before.shape[0] - 12) // 2
    for index, (x, y) in enumerate([(32, 24), (72, 64), (32, 24), (32, 24), (72, 64)], start=1):
        left, top = 12 + index % 3 * step_x, 12 + index // 3 * step_y
        panel = different[top : top + panel_height, left : left + panel_width]
        np.testing.assert_array_equal(
            np.argwhere(panel).mean(axis=0).round(), (y, x), err_msg=f"panel {index}"
        )
