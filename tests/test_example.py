"""Training examples: an image and its people through one transform."""

import io
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as rle_tools

from personlab.codec.encode import Instances, encode
from personlab.data.example import decode_masks, example, project_people
from personlab.data.images import pixels
from personlab.data.transform import PADDING, ImageArray, Transform
from personlab.errors import UserError
from personlab.people import Annotation, BoolArray
from personlab.skeleton import COCO_PERSON
from tests.coco_person import FLIP, KEYPOINTS, K
from tests.reference.scenes import figure, mirrored

HEIGHT, WIDTH = 97, 129
PLAIN = Transform(1.0, (0.0, 0.0), HEIGHT, WIDTH)
MIRRORED = Transform(1.0, (0.0, 0.0), HEIGHT, WIDTH, mirror_width=WIDTH)
LEFT, RIGHT = KEYPOINTS.index("left_wrist"), KEYPOINTS.index("right_wrist")


def rle(mask: BoolArray) -> bytes:
    counts: bytes = rle_tools.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
    return counts


def box_mask(left: int, top: int, right: int, bottom: int) -> BoolArray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[top:bottom, left:right] = True
    return mask


def person(person_id: int = 1, **changes: Any) -> Annotation:
    values: dict[str, Any] = {
        "id": person_id,
        "keypoints": figure(40.25, 15.5, 70.0).numpy(),
        "visibility": np.array([2, 1, 0] * 5 + [2, 2], np.int8),
        "imputed": False,
        "box": (25.0, 10.0, 31.0, 75.0),
        "area": 900.0,
        "crowd": False,
        "rle": rle(box_mask(25, 10, 56, 85)),
    }
    return Annotation(**(values | changes))


def jpeg(image: ImageArray) -> bytes:
    written, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 100])
    assert written
    return bytes(data)


def row(image: ImageArray, *people: Annotation) -> Mapping[str, Any]:
    """A row of tables.IMAGES with the people of tables.TARGETS, as Python values."""
    return {
        "image_id": 42,
        "file_name": "val2017/a.jpg",
        "height": image.shape[0],
        "width": image.shape[1],
        "image": jpeg(image),
        "people": [
            {
                "person_id": p.id,
                "keypoints": p.keypoints.ravel().tolist(),
                "visibility": p.visibility.tolist(),
                "confidence": [1.0] * K,
                "imputed": p.imputed,
                "box": list(p.box),
                "area": p.area,
                "crowd": p.crowd,
                "mask": p.rle,
            }
            for p in people
        ],
    }


def seen(transform: Transform, *people: Annotation, stride: int = 8) -> Instances:
    return project_people(people, transform, height=HEIGHT, width=WIDTH, stride=stride, skeleton=COCO_PERSON)


# people


def test_people_as_they_are() -> None:
    people = seen(PLAIN, person(), person(2, crowd=True))
    assert torch.equal(people.keypoints[0], figure(40.25, 15.5, 70.0))
    assert people.labelled[0].tolist() == [True, True, False] * 5 + [True, True]  # hidden ones are labelled
    assert people.crowd.tolist() == [False, True]
    expected = PLAIN.coverage(box_mask(25, 10, 56, 85)[None], 8)[0]
    assert (people.masks[0].numpy() == expected).all()
    assert (people.keypoints.dtype, people.masks.dtype) == (torch.float32, torch.float32)


def test_mirroring_swaps_left_and_right_keypoints() -> None:
    one = person()
    people = seen(MIRRORED, one)
    x, y = one.keypoints[LEFT]
    assert people.keypoints[0, RIGHT].tolist() == [WIDTH - 1 - x, y]
    visible = np.zeros(K, np.int8)
    visible[LEFT] = 2
    assert seen(MIRRORED, person(visibility=visible)).labelled[0].nonzero().tolist() == [[RIGHT]]


def test_a_mirrored_transform_gives_mirrored_targets() -> None:
    """Encoding mirrored annotations gives the mirrored fields."""
    people = (person(), person(2, keypoints=figure(90.0, 20.0, 60.0).numpy()))
    plain, other = (
        encode(seen(transform, *people), stride=8, radius=32.0, skeleton=COCO_PERSON).fields
        for transform in (PLAIN, MIRRORED)
    )
    for name, tensor in mirrored(plain).tensors().items():
        assert torch.allclose(other.tensors()[name], tensor, atol=1e-4), name


@pytest.mark.parametrize("mirror_width", [0, WIDTH])
def test_people_follow_the_transform(mirror_width: int) -> None:
    transform = Transform(1.5, (-20.0, 8.0), 129, 161, mirror_width)
    people = seen(transform, person())
    order = list(FLIP) if mirror_width else list(range(K))
    np.testing.assert_allclose(
        people.keypoints[0].numpy(), transform.points(person().keypoints)[order], atol=1e-4
    )
    # the mask covers the cell at its middle, and no cell far from it
    column, line = (transform.points(np.array([40.0, 47.0], np.float32)) / 8).round().astype(int)
    assert people.masks[0, line, column]
    assert people.masks.shape == (1, 17, 21)
    assert not people.masks[0, :, 0 if mirror_width == 0 else 20].any()


def test_no_people() -> None:
    people = seen(PLAIN, stride=16)
    assert people.keypoints.shape == (0, K, 2)
    assert people.labelled.shape == (0, K)
    assert people.masks.shape == (0, 7, 9)
    assert people.crowd.shape == (0,)
    encode(people, stride=16, radius=32.0, skeleton=COCO_PERSON)


def test_masks_are_the_run_lengths() -> None:
    rng = np.random.default_rng(0)
    expected = rng.random((2, HEIGHT, WIDTH)) < 0.3
    people = [person(j, rle=rle(mask)) for j, mask in enumerate(expected)]
    assert (decode_masks(people, height=HEIGHT, width=WIDTH) == expected).all()


# images


def test_keypoints_stay_on_their_pixels() -> None:
    """A white square at the left wrist is at the wrist's keypoint after every transform."""
    one = person(keypoints=np.round(figure(40.0, 15.0, 70.0).numpy()))
    x, y = one.keypoints[LEFT].astype(int)
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    image[y - 2 : y + 3, x - 2 : x + 3] = 255
    for transform, wrist in (
        (PLAIN, LEFT),
        (MIRRORED, RIGHT),
        (Transform(0.5, (3.0, 5.0), 57, 73), LEFT),
        (Transform(2.0, (0.0, 0.0), 193, 257, mirror_width=WIDTH), RIGHT),
    ):
        found = example(row(image, one), transform, stride=8, skeleton=COCO_PERSON)
        column, line = found.people.keypoints[0, wrist].round().int().tolist()
        assert found.image[:, line, column].min() > 200
        others = [k for k in range(K) if k != wrist]
        for column, line in found.people.keypoints[0, others].round().int().tolist():
            if max(abs(column - found.people.keypoints[0, wrist, 0]), 0) > 8 * transform.scale:
                assert found.image[:, line, column].max() < 60


def test_shapes_and_channel_order() -> None:
    image = np.full((HEIGHT, WIDTH, 3), (200, 100, 30), np.uint8)
    found = example(
        row(image, person()), Transform(1.0, (0.0, 0.0), 105, 137), stride=8, skeleton=COCO_PERSON
    )
    assert found.image_id == 42
    assert found.image.shape == (3, 105, 137)
    assert found.image.dtype == torch.uint8
    assert found.people.masks.shape == (1, 14, 18)
    np.testing.assert_allclose(found.image[:, 40, 60].tolist(), (200, 100, 30), atol=3)  # red comes first
    assert found.image[:, -1, -1].tolist() == list(PADDING)


def test_orientation_is_ignored() -> None:
    """COCO's annotations refer to the pixels as stored."""
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees"
    data = io.BytesIO()
    Image.new("RGB", (WIDTH, HEIGHT)).save(data, "JPEG", exif=exif)
    assert pixels({"image": data.getvalue(), "file_name": "a.jpg"}).shape == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize("data", [b"\xff\xd8\xff not an image", b"GIF89a", b""])
def test_errors_name_an_image_that_cannot_be_decoded(data: bytes) -> None:
    with pytest.raises(UserError, match=r"val2017/a\.jpg: .*dvc repro --force ingest"):
        pixels({"image": data, "file_name": "val2017/a.jpg"})
