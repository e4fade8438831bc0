"""Drawing: people, annotations, scores, fields and contact sheets."""

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import pytest
import torch
from pycocotools import mask as rle

from personlab import params, viz
from personlab.cli import app
from personlab.codec.fields import Fields
from personlab.errors import UserError
from personlab.model import checkpoint
from personlab.model.network import PersonLab
from personlab.people import Annotation, Detection
from personlab.skeleton import COCO_PERSON
from personlab.viz.fields import draw_fields
from personlab.viz.people import LEFT, PEOPLE, RIGHT
from tests.coco_person import KEYPOINTS, E, K

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
    points, labels = lattice(x, y, w, h), np.full(K, visibility, dtype=np.int8)
    return Annotation(1, points, labels, False, (x, y, w, h), w * h, crowd, rectangle(x, y, w, h))


def changed(picture: np.ndarray) -> np.ndarray:
    return (picture != GREY).any(axis=-1)


@pytest.fixture(autouse=True)
def input_is_not_modified():
    before = GREY.copy()
    yield
    np.testing.assert_array_equal(GREY, before)


def test_no_people_and_empty_masks_leave_the_image_equal():
    assert viz.draw_people(GREY, [], skeleton=COCO_PERSON) is not GREY
    empty = Detection(lattice(0, 0, 9, 9), np.zeros(K, np.float32), 0.9, rectangle(0, 0, 0, 0))
    for picture in (
        viz.draw_people(GREY, [], skeleton=COCO_PERSON),
        viz.draw_annotations(GREY, [], skeleton=COCO_PERSON),
        viz.draw_people(GREY, [empty], skeleton=COCO_PERSON),
    ):
        np.testing.assert_array_equal(picture, GREY)


def test_pixels_change_inside_the_mask_only():
    touched = changed(viz.draw_people(GREY, [detection(scores=0.0)], skeleton=COCO_PERSON))
    assert touched[10:70, 20:60].all()
    touched[8:72, 18:62] = False
    assert not touched.any()


def test_the_first_person_is_on_top():
    first, second = detection(), detection(x=40)
    both = viz.draw_people(GREY, [first, second], skeleton=COCO_PERSON)
    alone = viz.draw_people(GREY, [first], skeleton=COCO_PERSON)
    inside = (slice(14, 66), slice(24, 36))  # of the first alone
    np.testing.assert_array_equal(both[inside], alone[inside])
    assert tuple(both[65, 38]) != tuple(both[65, 70])


def test_people_without_masks_are_their_poses():
    posed = detection()
    bare = Detection(posed.keypoints, posed.keypoint_scores, 0.9, rle=b"")
    picture = viz.draw_people(GREY, [bare], skeleton=COCO_PERSON)
    np.testing.assert_array_equal(
        picture, viz.draw_pose(GREY, posed.keypoints, posed.keypoint_scores, skeleton=COCO_PERSON)
    )
    np.testing.assert_array_equal(
        viz.draw_people(GREY, [bare, detection(x=70)], skeleton=COCO_PERSON)[:, :60],
        viz.draw_people(GREY, [bare], skeleton=COCO_PERSON)[:, :60],
    )


def test_scores_are_above_the_people_in_their_colours():
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
    person = Detection(lattice(0, 0, size[1], size[0]), np.ones(K, np.float32), 0.9, b"")
    assert (
        viz.draw_scores(viz.draw_people(image, [person], skeleton=COCO_PERSON), [person]).shape == image.shape
    )


def test_people_who_are_not_drawn_have_no_score():
    np.testing.assert_array_equal(viz.draw_scores(GREY, [detection(scores=0.1)]), GREY)


def share_drawn(side: int, person: int) -> float:
    """The number of drawn pixels on a square image, relative to the person's area."""
    image = np.zeros((side, side, 3), np.uint8)
    picture = viz.draw_pose(
        image, lattice(20, 20, person, person), np.ones(K, np.float32), skeleton=COCO_PERSON
    )
    return np.count_nonzero(picture.any(axis=-1)) / person**2


def test_lines_are_thicker_on_larger_images():
    assert share_drawn(2000, 1900) == pytest.approx(share_drawn(1000, 950), rel=0.2)


def test_bigger_people_have_thicker_limbs():
    assert 300 * share_drawn(800, 300) > 2 * 50 * share_drawn(800, 50)


def test_keypoints_below_the_threshold_are_left_out():
    unsure = detection(scores=0.3)
    assert (
        changed(
            viz.draw_pose(GREY, unsure.keypoints, unsure.keypoint_scores, min_score=0.4, skeleton=COCO_PERSON)
        ).sum()
        == 0
    )
    shown = changed(
        viz.draw_pose(GREY, unsure.keypoints, unsure.keypoint_scores, min_score=0.3, skeleton=COCO_PERSON)
    )
    for x, y in unsure.keypoints.round().astype(int):
        assert shown[y, x]


def test_left_is_orange_and_right_is_blue():
    points, scores = np.zeros((K, 2), np.float32), np.zeros(K, np.float32)
    for row, side in ((20, "left"), (70, "right")):
        for column, joint in ((20, "elbow"), (100, "wrist")):
            index = KEYPOINTS.index(f"{side}_{joint}")
            points[index], scores[index] = (column, row), 1
    picture = viz.draw_pose(GREY, points, scores, skeleton=COCO_PERSON)
    assert tuple(picture[20, 60]) == LEFT
    assert tuple(picture[70, 60]) == RIGHT


# How colours are seen without the cones for green or red: matrices of linear RGB, Machado et al. 2009.
VISION = {
    "all cones": np.eye(3),
    "no green": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "no red": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
}


@pytest.mark.parametrize("matrix", VISION.values(), ids=VISION)
def test_colours_of_people_and_sides_can_be_told_apart(matrix):
    srgb = np.array([*PEOPLE, LEFT, RIGHT]) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    seen = (linear @ np.transpose(matrix)).clip(0, 1)
    srgb = np.where(seen <= 0.0031308, 12.92 * seen, 1.055 * seen ** (1 / 2.4) - 0.055)
    lab = cv2.cvtColor(srgb[None].astype(np.float32), cv2.COLOR_RGB2LAB)[0]
    assert min(np.linalg.norm(a - b) for a, b in combinations(lab, 2)) > 25


def test_scores_of_neighbours_do_not_cover_each_other():
    close = [detection(20, 30, 40, 60), detection(24, 30, 40, 60)]
    picture = viz.draw_scores(GREY, close)
    both = [np.abs(picture.astype(int) - colour).sum(axis=-1).min() for colour in PEOPLE[:2]]
    alone = [viz.draw_scores(GREY, [each], colours=[k]) for k, each in enumerate(close)]
    assert max(both) < 200
    changed = [(one != GREY).any(axis=-1).sum() for one in alone]
    assert (picture != GREY).any(axis=-1).sum() == pytest.approx(sum(changed), rel=0.05)


def test_an_image_without_people_says_so():
    noted = viz.draw_note(GREY, "no person")
    rows, _ = np.nonzero((noted != GREY).any(axis=-1))
    assert rows.min() > GREY.shape[0] / 2


def test_drawing_beyond_the_border_is_clipped():
    far = Detection(lattice(-500, -500, 3000, 3000), np.ones(K, np.float32), 0.9, rectangle(0, 0, 5, 5))
    assert viz.draw_people(GREY, [far], skeleton=COCO_PERSON).shape == GREY.shape


def test_hidden_keypoints_differ_and_unlabelled_ones_are_not_drawn():
    box = (10, 2, 110, 92)
    seen, hidden, unlabelled = (
        viz.draw_annotations(GREY, [annotation(*box, visibility=v)], skeleton=COCO_PERSON) for v in (2, 1, 0)
    )
    np.testing.assert_array_equal(
        unlabelled, viz.draw_people(GREY, [detection(*box, scores=0.0)], skeleton=COCO_PERSON)
    )
    assert (seen != hidden).any()
    np.testing.assert_array_equal(changed(seen), changed(hidden))


def test_people_without_masks_have_their_boxes_drawn_and_crowds_hatched():
    box = replace(annotation(visibility=0), rle=b"")
    touched = changed(viz.draw_annotations(GREY, [box], skeleton=COCO_PERSON))
    assert touched[[10, 69], 20:60].all()
    assert touched[10:70, [20, 59]].all()
    assert not touched[13:67, 23:57].any()
    crowd = annotation(crowd=True)
    hatched = [
        viz.draw_annotations(GREY, [c], skeleton=COCO_PERSON) for c in (crowd, replace(crowd, rle=b""))
    ]
    np.testing.assert_array_equal(*hatched)


def test_crowds_are_hatched_without_a_pose():
    picture = viz.draw_annotations(GREY, [annotation(crowd=True)], skeleton=COCO_PERSON)
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


def fields_at(
    wrist: tuple[int, int] | None, person: tuple[int, int] | None, *, stride: int = 8, length: float = 1.0
) -> Fields:
    """Fields of a GREY image, likely at one cell (row, column) each."""
    h, w = HEIGHT // stride + 1, WIDTH // stride + 1
    heatmap, seg = torch.zeros(1, K, h, w), torch.zeros(1, h, w)
    if wrist:
        heatmap[0, KEYPOINTS.index("left_wrist"), *wrist] = 1
    if person:
        seg[0, *person] = 1
    offsets = torch.full((1, E, 2, h, w), length)
    return Fields(heatmap, offsets[:, :K], offsets, seg, offsets[:, :K], stride)


def panels(sheet: np.ndarray, columns: int) -> list[np.ndarray]:
    """The panels of two rows."""
    step_x, step_y = WIDTH + 12, (sheet.shape[0] - 12) // 2
    corners = [(12 + row * step_y, 12 + column * step_x) for row in range(2) for column in range(columns)]
    return [sheet[top : top + HEIGHT, left : left + WIDTH] for top, left in corners]


def test_fields_are_drawn_where_they_are_likely():
    nothing = panels(draw_fields(GREY, fields_at(None, None), skeleton=COCO_PERSON), 3)
    image, *drawn = panels(draw_fields(GREY, fields_at((3, 4), (8, 9)), skeleton=COCO_PERSON), 3)
    np.testing.assert_array_equal(image, GREY)
    for index, at in enumerate([(24, 32), (64, 72), (24, 32), (24, 32), (64, 72)]):
        changed_pixels = np.argwhere((drawn[index] != nothing[index + 1]).any(axis=-1))
        np.testing.assert_array_equal(changed_pixels.mean(axis=0).round(), at, err_msg=f"panel {index + 1}")


def test_fields_of_a_resized_image_are_drawn_on_the_image():
    half = draw_fields(GREY, fields_at((3, 4), (4, 5), stride=8), scale=0.5, skeleton=COCO_PERSON)
    whole = draw_fields(GREY, fields_at((3, 4), (4, 5), stride=16, length=2.0), skeleton=COCO_PERSON)
    np.testing.assert_array_equal(half, whole)


def test_fields_without_masks_have_four_panels():
    poses = fields_at((3, 4), None).replace(seg=torch.zeros(1, 0, 0), long=torch.zeros(1, K, 2, 0, 0))
    sheet = draw_fields(GREY, poses, skeleton=COCO_PERSON)
    assert sheet.shape[1] == 12 + 2 * (WIDTH + 12)
    np.testing.assert_array_equal(panels(sheet, 2)[0], GREY)


def test_the_command_line_draws_fields(tmp_path: Path) -> None:
    network = PersonLab(params.Model(backbone="mobilenet16", width=2), stride=16, skeleton=COCO_PERSON)
    checkpoint.save(tmp_path / "net.safetensors", network.state_dict(), network.card({}))
    PIL.Image.fromarray(GREY).save(tmp_path / "grey.png")

    def fields(image: str, out: str) -> None:
        weights = ("--weights", str(tmp_path / "net.safetensors"))
        command = ["fields", str(tmp_path / image), *weights, "--out", str(tmp_path / out), "--side", "129"]
        app(command, result_action="return_value")

    fields("grey.png", "out/fields.jpg")
    with PIL.Image.open(tmp_path / "out/fields.jpg") as picture:
        assert picture.width == 12 + 3 * (WIDTH + 12)
    with pytest.raises(UserError, match=r"nothing\.png: no such file"):
        fields("nothing.png", "fields.jpg")
    with pytest.raises(UserError, match=r"written as \.jpg"):
        fields("grey.png", "fields.png")
