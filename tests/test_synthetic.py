"""The rendered sample data set: deterministic, valid COCO, and annotations that match the images."""

from dataclasses import astuple
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from personlab.errors import UserError
from personlab.people import BoolArray, FloatArray
from personlab.skeleton import COCO_PERSON
from personlab.synthetic.appearance import Appearance, solid
from personlab.synthetic.body import Body, Build, rotation
from personlab.synthetic.canvas import SUPERSAMPLING, Canvas
from personlab.synthetic.dataset import mask_to_polygons, write_sample
from personlab.synthetic.pose import ARM_LIMITS, BACK_LIMITS, HEAD_LIMITS, LEG_LIMITS, Limb, Pose, random_pose
from personlab.synthetic.raycast import Camera, cone, render, sphere
from personlab.synthetic.scene import (
    PersonTruth,
    Viewpoint,
    draw_person,
    ground_truth,
    make_scene,
    place_person,
)
from tests.coco_person import KEYPOINTS

IMAGES = 20
LIGHT = np.array((0, 0, -1), np.float32)
IDENTITY = np.eye(3, dtype=np.float32)
ORIGIN = np.zeros(3, np.float32)
LEVEL = Viewpoint(2 * 320, 2 * 240, horizon=100, eye_height=0.85, pitch=0, roll=0, light=LIGHT)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample")
    write_sample(folder, train_images=IMAGES, val_images=3, width=320, height=240, seed=5)
    return folder


@pytest.fixture(scope="module")
def coco(folder: Path) -> COCO:
    return COCO(folder / "annotations" / "person_keypoints_train2017.json")


@pytest.fixture(scope="module")
def people(coco: COCO) -> list[dict[str, Any]]:
    return [annotation for annotation in coco.anns.values() if not annotation["iscrowd"]]


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _keypoints(annotation: dict[str, Any]) -> FloatArray:
    return np.reshape(annotation["keypoints"], (-1, 3))


def test_same_seed_gives_same_bytes_and_more_images_the_same_first_ones(folder: Path, tmp_path: Path) -> None:
    write_sample(tmp_path, train_images=4, val_images=3, width=320, height=240, seed=5)
    first, again = _files(folder), _files(tmp_path)
    assert len(again) == 4 + 3 + 2
    short = {name: content for name, content in again.items() if "train2017.json" not in name}
    assert short == {name: first[name] for name in short}
    assert "annotations/person_keypoints_val2017.json" in short


def test_other_seeds_and_splits_give_other_images(folder: Path, tmp_path: Path) -> None:
    write_sample(tmp_path, train_images=1, val_images=1, width=320, height=240, seed=6)
    contents = [
        (root / split).glob("*1.jpg") for root in (folder, tmp_path) for split in ("train2017", "val2017")
    ]
    assert len({next(iter(sorted(paths))).read_bytes() for paths in contents}) == 4


def test_layout_is_cocos(folder: Path, coco: COCO) -> None:
    assert sorted(path.name for path in (folder / "train2017").iterdir())[0] == "000000000001.jpg"
    assert coco.cats[1]["keypoints"] == list(KEYPOINTS)
    assert len(coco.cats[1]["skeleton"]) == 19
    assert set(coco.dataset) == {"info", "licenses", "images", "annotations", "categories"}
    assert len(coco.anns) == len(coco.dataset["annotations"])  # ids are unique
    for image in coco.imgs.values():
        pixels = cv2.imread(str(folder / "train2017" / image["file_name"]))
        assert pixels.shape == (image["height"], image["width"], 3)
    val = COCO(folder / "annotations" / "person_keypoints_val2017.json")
    assert not set(val.imgs) & set(coco.imgs)


def test_area_and_box_are_those_of_the_decoded_mask(coco: COCO) -> None:
    for annotation in coco.anns.values():
        mask = coco.annToMask(annotation)
        rows, columns = np.nonzero(mask)
        left, top = columns.min(), rows.min()
        assert annotation["area"] == mask.sum()
        assert annotation["bbox"] == [left, top, columns.max() - left + 1, rows.max() - top + 1]


def test_masks_of_different_annotations_hardly_overlap(coco: COCO) -> None:
    for image in coco.imgs:
        masks = [coco.annToMask(annotation) for annotation in coco.imgToAnns[image]]
        if masks:
            total = np.sum(masks, 0)
            assert (total > 1).sum() <= 0.03 * (total > 0).sum()  # polygons of neighbours share their seam


def test_visible_keypoints_lie_on_their_own_mask(coco: COCO, people: list[dict[str, Any]]) -> None:
    checked = 0
    for annotation in people:
        near = cv2.dilate(coco.annToMask(annotation), np.ones((3, 3), np.uint8))
        for x, y, v in _keypoints(annotation):
            if v == 2:
                assert near[round(y), round(x)]
                checked += 1
    assert checked > 100


def test_keypoints_are_counted_inside_the_image_and_absent_from_small_people(
    coco: COCO, people: list[dict[str, Any]]
) -> None:
    for annotation in people:
        image, keypoints = coco.imgs[annotation["image_id"]], _keypoints(annotation)
        labelled = keypoints[:, 2] > 0
        assert annotation["num_keypoints"] == labelled.sum()
        assert not keypoints[~labelled].any()
        assert (keypoints[:, :2] >= 0).all()
        assert (keypoints[:, :2] <= (image["width"] - 1, image["height"] - 1)).all()
        assert annotation["area"] >= 32**2 or not labelled.any()


def test_variety(coco: COCO, people: list[dict[str, Any]]) -> None:
    """Everything COCO has: empty images, small and large people, all visibilities, crowds."""
    areas = np.array([annotation["area"] for annotation in people])
    heights = np.array([annotation["bbox"][3] for annotation in people])
    visibility = np.concatenate([_keypoints(a)[:, 2] for a in people if a["area"] >= 32**2])
    crowds = [annotation for annotation in coco.anns.values() if annotation["iscrowd"]]
    assert 0 < sum(not coco.imgToAnns[image] for image in coco.imgs) < IMAGES / 2
    assert (areas < 32**2).any()
    assert (areas > 96**2).any()
    assert heights.min() < 20
    assert heights.max() > 200
    assert set(visibility) == {0, 1, 2}
    assert crowds
    for crowd in crowds:
        assert isinstance(crowd["segmentation"]["counts"], list)
        assert crowd["segmentation"]["size"] == [240, 320]
        assert crowd["num_keypoints"] == 0
        assert not any(crowd["keypoints"])
    assert all(isinstance(annotation["segmentation"], list) for annotation in people)


@pytest.mark.parametrize(
    ("width", "seed", "reason"), [(32, 0, "at least 64"), (320, -1, "seed -1 is negative")]
)
def test_what_cannot_be_rendered_is_refused(width: int, seed: int, reason: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=reason):
        write_sample(tmp_path, train_images=1, val_images=1, width=width, height=240, seed=seed)


def _single_person(yaw: float, pose: Pose | None = None) -> PersonTruth:
    """One person, 200 pixels tall, seen by a level camera."""
    rng = np.random.default_rng(3)
    canvas = Canvas(320, 240)
    person = place_person(rng, LEVEL, pose or Pose("standing"), yaw, (320, 450), 400, 1)
    draw_person(canvas, rng, LEVEL, person)
    return ground_truth(canvas, person, KEYPOINTS)


def _named(person: PersonTruth) -> dict[str, tuple[float, float, bool]]:
    rows = zip(KEYPOINTS, person.keypoints.tolist(), person.visible.tolist(), strict=True)
    return {name: (x, y, visible) for name, (x, y), visible in rows}


def test_left_is_the_persons_left() -> None:
    front, back = _named(_single_person(0)), _named(_single_person(180))
    for part in ("eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle"):
        assert front[f"left_{part}"][0] > front[f"right_{part}"][0]
        assert back[f"left_{part}"][0] < back[f"right_{part}"][0]


def test_the_face_shows_from_the_front_only() -> None:
    front, back = _named(_single_person(0)), _named(_single_person(180))
    body = ("left_shoulder", "right_hip", "left_knee", "right_ankle")
    assert all(front[name][2] for name in ("nose", "left_eye", "right_eye", *body))
    assert not any(back[name][2] for name in ("nose", "left_eye", "right_eye"))
    assert all(back[name][2] for name in body)


def test_seen_from_the_side_the_far_half_is_hidden() -> None:
    """Turned to their left, a person shows the camera their right side."""
    side = _named(_single_person(90))
    assert side["nose"][0] > side["right_ear"][0]
    assert all(side[name][2] for name in ("right_ear", "right_shoulder"))
    assert not any(side[name][2] for name in ("left_ear", "left_eye", "left_shoulder"))


def test_an_arm_stretched_to_the_camera_hides_its_own_elbow() -> None:
    person = _named(_single_person(0, Pose("standing", arms=(Limb(flex=90), Limb()))))
    assert person["left_elbow"][:2] == pytest.approx(person["left_shoulder"][:2], abs=1)
    assert not person["left_elbow"][2]
    assert person["right_elbow"][2]


def test_people_in_front_occlude_people_behind() -> None:
    rng = np.random.default_rng(3)
    canvas = Canvas(320, 240)
    behind, front = (place_person(rng, LEVEL, Pose("standing"), 0, (320 + x, 450), 400, x) for x in (1, 40))
    for person in (behind, front):
        draw_person(canvas, rng, LEVEL, person)
    hidden, shown = (ground_truth(canvas, each, KEYPOINTS) for each in (behind, front))
    assert not (hidden.mask & shown.mask).any()
    assert shown.visible.all()
    assert hidden.inside.all()
    assert 0 < hidden.visible.sum() < len(KEYPOINTS)
    x, y = hidden.keypoints[~hidden.visible].round().astype(int).T
    assert shown.mask[y, x].all()


def test_a_seated_hip_and_knee_are_level() -> None:
    leg = Limb(flex=90, bend=90)
    seated = _named(_single_person(90, Pose("sitting", legs=(leg, leg))))
    assert seated["right_knee"][1] == pytest.approx(seated["right_hip"][1], abs=0.5)
    assert seated["right_knee"][0] > seated["right_hip"][0]  # facing right, the knees are in front
    assert seated["right_ankle"][0] == pytest.approx(seated["right_knee"][0], abs=0.5)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32))
def test_poses_keep_to_joint_limits_and_bones_to_their_lengths(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pose = random_pose(rng)
    joints = (*pose.arms, *pose.legs, pose.back, pose.head)
    limits = (ARM_LIMITS, ARM_LIMITS, LEG_LIMITS, LEG_LIMITS, BACK_LIMITS, HEAD_LIMITS)
    for joint, (low, high) in zip(joints, limits, strict=True):
        np.testing.assert_array_equal(np.clip(astuple(joint), astuple(low), astuple(high)), astuple(joint))
    build, appearance = Build(rng), Appearance(rng)
    bent, straight = (Body(each, build, appearance).keypoints for each in (pose, Pose("standing")))
    for bone in (("shoulder", "elbow"), ("elbow", "wrist"), ("hip", "knee"), ("knee", "ankle")):
        for side in ("left", "right"):
            a, b = (KEYPOINTS.index(f"{side}_{joint}") for joint in bone)
            length = np.linalg.norm(straight[a] - straight[b])
            assert np.linalg.norm(bent[a] - bent[b]) == pytest.approx(length, abs=1e-5)


WHITE = solid(np.ones(3, np.float32))


def test_a_sphere_is_a_disk_whose_depth_is_a_hemisphere() -> None:
    ball = sphere(ORIGIN, IDENTITY, 0.5, WHITE)
    window, _, depth = render([ball], Camera(rotation(1, 30), 40.0, (30.0, 25.0)), LIGHT, (50, 60))
    y, x = np.mgrid[window]
    squared = ((x - 30) ** 2 + (y - 25) ** 2) / 40**2
    inside = squared < 0.25 - 1e-4
    assert (np.isfinite(depth) == (squared < 0.25)).all()
    np.testing.assert_allclose(depth[inside], -np.sqrt(0.25 - squared[inside]), atol=1e-3)


def test_a_cone_across_the_view_is_a_trapezoid() -> None:
    limb = cone(ORIGIN, IDENTITY, 1.0, (0.2, 0.2), 0.5, WHITE)
    (rows, _), _, depth = render([limb], Camera(IDENTITY, 50.0, (30.25, 5.25)), LIGHT, (60, 60))
    widths = dict(zip(range(rows.start, rows.stop), np.isfinite(depth).sum(axis=1), strict=True))
    assert [row for row in widths if widths[row]] == [*range(6, 56)]
    assert widths[6] == pytest.approx(2 * 50 * 0.2, abs=1)
    assert widths[55] == pytest.approx(2 * 50 * 0.1, abs=1)


def test_nothing_outside_the_image_is_drawn() -> None:
    ball = sphere(ORIGIN, IDENTITY, 0.5, WHITE)
    for at in (-100.0, 200.0):
        _, _, depth = render([ball], Camera(IDENTITY, 40.0, (at, 25.0)), LIGHT, (50, 60))
        assert depth.size == 0


def test_polygons_keep_pieces_and_holes_apart() -> None:
    mask: BoolArray = np.zeros((40, 50), bool)
    mask[5:30, 5:25] = True
    mask[12:22, 10:18] = False  # a hole, as under an arm on the hip
    mask[10:20, 35:45] = True
    decoded = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(mask_to_polygons(mask), *mask.shape)))
    assert (decoded.astype(bool) == mask).mean() > 0.99
    assert not decoded[14:20, 12:16].any()


def test_polygons_follow_rendered_masks() -> None:
    for seed in range(6):
        for person in make_scene(np.random.default_rng(seed), 240, 180, names=COCO_PERSON.keypoints).people:
            polygons = mask_to_polygons(person.mask)
            if person.mask.sum() > 200:
                rle = coco_mask.merge(coco_mask.frPyObjects(polygons, *person.mask.shape))
                decoded = coco_mask.decode(rle).astype(bool)
                assert (decoded & person.mask).sum() / (decoded | person.mask).sum() > 0.93


def test_the_canvas_is_finer_than_the_image() -> None:
    scene = make_scene(np.random.default_rng(1), 96, 64, names=COCO_PERSON.keypoints)
    assert scene.image.shape == (64, 96, 3)
    assert Canvas(96, 64).size == (64 * SUPERSAMPLING, 96 * SUPERSAMPLING)
