"""The sample data set: rendered people in the standard COCO layout, annotated as COCO annotates.

An image depends only on the seed, its split and its number: the same seed gives the same bytes, and splits
share no image.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import cv2
import numpy as np
import pycocotools.mask as coco_mask

from personlab.errors import UserError
from personlab.people import BoolArray
from personlab.skeleton import COCO_PERSON
from personlab.synthetic.pose import Rng
from personlab.synthetic.scene import PersonTruth, Scene, make_scene
from personlab.utils.files import write_atomic
from personlab.utils.parallel import in_processes
from personlab.utils.progress import Tracker

JPEG_QUALITY: Final = 92
MIN_SIDE: Final = 64  # pixels, of an image
SMALL_AREA: Final = 32**2  # pixels; COCO annotates no keypoints of smaller people
MIN_AREA: Final = 20  # pixels; smaller people are not annotated
MIN_PIECE: Final = 4  # pixels; smaller fragments and holes of a mask are not annotated
UPSCALE: Final = 4  # contours run through pixel centres; of an upscaled mask they are close to pixel edges

MIN_IMAGES_PER_PROCESS: Final = 32

_Rendered = tuple[dict[str, Any], list[dict[str, Any]]]  # record of an image, and its annotations

# (name, offset of image ids) of each split; ids are unique over both, as in COCO.
SPLITS: Final = (("train2017", 0), ("val2017", 500_000))
ANNOTATIONS_PER_IMAGE: Final = 100  # annotation id = image id * this + number

# The category's `skeleton` in COCO's files: pairs of keypoints, numbered from 1.
COCO_SKELETON: Final = (
    *((16, 14), (14, 12), (17, 15), (15, 13), (12, 13), (6, 12), (7, 13), (6, 7), (6, 8), (7, 9)),
    *((8, 10), (9, 11), (2, 3), (1, 2), (1, 3), (2, 4), (3, 5), (4, 6), (5, 7)),
)

# The limbs and two points of the head, as CrowdPose annotates, in its order and with its links.
LIMBS: Final = (*COCO_PERSON.keypoints[5:], "head_top", "neck")
LIMBS_SKELETON: Final = (
    *((11, 9), (9, 7), (12, 10), (10, 8), (7, 8), (1, 7), (2, 8), (1, 3), (2, 4), (3, 5), (4, 6)),
    *((13, 14), (14, 1), (14, 2)),
)

# Probability that a hidden keypoint is not labelled (visibility 0 instead of 1). One in seven of the labelled
# keypoints is then hidden, as in COCO.
OMIT_FACE: Final = 0.8
OMIT_BODY: Final = 0.55
_FACE: Final = frozenset(COCO_PERSON.keypoints[:5])


def write_sample(
    folder: Path,
    *,
    train_images: int,
    val_images: int,
    width: int,
    height: int,
    seed: int,
    keypoints: Literal[17, 14] = 17,
    progress: Tracker | None = None,
) -> None:
    """Render the data set into `folder`: train2017/, val2017/ and annotations/person_keypoints_*.json.

    The images are width x height pixels. People have COCO's 17 keypoints, or 14: LIMBS.

    Raises:
        UserError: the images are too small to show people, or the seed is negative.
    """
    if seed < 0:
        raise UserError(f"acquire.sample: seed {seed} is negative; set it to 0 or more")
    if min(width, height) < MIN_SIDE:
        raise UserError(
            f"acquire.sample: images of {width}x{height} pixels are too small to show people; "
            f"set width and height to at least {MIN_SIDE}"
        )
    names, links = (LIMBS, LIMBS_SKELETON) if keypoints == 14 else (COCO_PERSON.keypoints, COCO_SKELETON)
    for number, ((split, offset), count) in enumerate(zip(SPLITS, (train_images, val_images), strict=True)):
        (folder / split).mkdir(parents=True, exist_ok=True)
        this = _Split(folder / split, (seed, number), offset, width, height, names)
        rendered: Iterable[_Rendered] = in_processes(
            this.render, range(1, count + 1), min_per_process=MIN_IMAGES_PER_PROCESS
        )
        if progress:
            rendered = progress(rendered, total=count, label=f"rendering {split}")
        images, annotations = list[dict[str, Any]](), list[dict[str, Any]]()
        for image, people in rendered:
            images.append(image)
            annotations += people
        content = json.dumps(_coco(images, annotations, names, links), separators=(",", ":"))
        write_atomic(folder / "annotations" / f"person_keypoints_{split}.json", content)


@dataclass(frozen=True)
class _Split:
    """What the images of a split depend on."""

    folder: Path
    seed: tuple[int, int]
    offset: int  # of image ids
    width: int
    height: int
    names: Sequence[str]

    def render(self, index: int) -> _Rendered:
        """Write an image. Returns its record and its annotations."""
        rng = np.random.default_rng((*self.seed, index))
        scene, image_id = make_scene(rng, self.width, self.height, self.names), self.offset + index
        name = f"{image_id:012d}.jpg"
        _write_jpeg(self.folder / name, scene)
        size = {"width": self.width, "height": self.height}
        image = {"id": image_id, "file_name": name, **size, "license": 1}
        return image, annotate(scene, rng, image_id, self.names)


def annotate(scene: Scene, rng: Rng, image_id: int, names: Sequence[str]) -> list[dict[str, Any]]:
    """The COCO annotations of a scene, without people who are hardly visible.

    rng: decides which hidden keypoints are labelled.
    """
    people = [_person(truth, rng, names) for truth in scene.people]
    annotations = people + [_crowd(mask, len(names)) for mask in scene.crowds]
    first = image_id * ANNOTATIONS_PER_IMAGE + 1
    return [
        {"id": number, "image_id": image_id, "category_id": 1, **annotation}
        for number, annotation in enumerate(filter(None, annotations), start=first)
    ]


def _person(truth: PersonTruth, rng: Rng, names: Sequence[str]) -> dict[str, Any] | None:
    """A person's annotation without ids, or None if it is smaller than MIN_AREA."""
    omitted = rng.random(len(names)) < [OMIT_FACE if name in _FACE else OMIT_BODY for name in names]
    polygons = mask_to_polygons(truth.mask)
    if not polygons:
        return None
    size = _area_and_box(coco_mask.merge(coco_mask.frPyObjects(polygons, *truth.mask.shape)))
    if size["area"] < MIN_AREA:
        return None
    visibility = np.where(truth.visible, 2, np.where(truth.inside & ~omitted, 1, 0))
    if size["area"] < SMALL_AREA:
        visibility[:] = 0
    keypoints = np.where(visibility[:, None] > 0, truth.keypoints.astype(np.float64).round(2), 0.0)
    triples = [(x, y, int(v)) for (x, y), v in zip(keypoints.tolist(), visibility, strict=True)]
    return {
        "segmentation": polygons,
        **size,
        "iscrowd": 0,
        "num_keypoints": int((visibility > 0).sum()),
        "keypoints": [number for triple in triples for number in triple],
    }


def _crowd(mask: BoolArray, keypoints: int) -> dict[str, Any] | None:
    """A crowd region's annotation without ids, or None: uncompressed RLE and no keypoints."""
    if mask.sum() < MIN_AREA:
        return None
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(np.diff(flat, prepend=False))  # the first run is background, perhaps empty
    counts = np.diff(changes, prepend=0, append=flat.size)
    return {
        "segmentation": {"counts": counts.tolist(), "size": list(mask.shape)},
        **_area_and_box(coco_mask.encode(np.asfortranarray(mask, np.uint8))),
        "iscrowd": 1,
        "num_keypoints": 0,
        "keypoints": [0] * (3 * keypoints),
    }


def _area_and_box(rle: dict[str, Any]) -> dict[str, Any]:
    return {"area": float(coco_mask.area(rle)), "bbox": coco_mask.toBbox(rle).tolist()}


def mask_to_polygons(mask: BoolArray, left: int = 0, top: int = 0) -> list[list[float]]:
    """The pieces of a mask whose corner is at (left, top) as COCO polygons [x1, y1, x2, y2, …].

    Polygons have no holes: a piece with a hole is cut in two through the hole.
    """
    contours, hierarchy = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    polygons = list[list[float]]()
    for index, contour in enumerate(contours):
        if hierarchy[0][index][3] >= 0:  # the contour of a hole
            continue
        x, y, w, h = cv2.boundingRect(contour)
        piece = np.zeros((h, w), np.uint8)
        cv2.drawContours(piece, [contour], 0, 1, -1, offset=(-x, -y))
        part = (piece > 0) & mask[y : y + h, x : x + w]
        if part.sum() < MIN_PIECE:
            continue
        cut = _hole_column((piece > 0) & ~part)
        if cut is None:
            polygons.append(_trace(part, left + x, top + y))
        else:
            polygons += mask_to_polygons(part[:, :cut], left + x, top + y)
            polygons += mask_to_polygons(part[:, cut:], left + x + cut, top + y)
    return polygons


def _hole_column(holes: BoolArray) -> int | None:
    """The column through the middle of the largest hole, or None if all are smaller than MIN_PIECE."""
    count, _, stats, centres = cv2.connectedComponentsWithStats(holes.astype(np.uint8), connectivity=4)
    if count < 2:
        return None
    largest = 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
    if stats[largest, cv2.CC_STAT_AREA] < MIN_PIECE:
        return None
    return max(round(float(centres[largest][0])), 1)


def _trace(piece: BoolArray, left: int, top: int) -> list[float]:
    """The outer contour of one connected piece whose corner is at (left, top)."""
    large = np.kron(piece, np.ones((UPSCALE, UPSCALE), np.uint8))
    contours, _ = cv2.findContours(large, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    contour = max(contours, key=cv2.contourArea)
    simple = cv2.approxPolyDP(contour, 0.45 * UPSCALE, True)
    corners = (simple if len(simple) > 2 else contour).reshape(-1, 2)
    points = (corners + 0.5) / UPSCALE + (left, top)
    polygon: list[float] = points.round(2).ravel().tolist()
    return polygon


def _write_jpeg(path: Path, scene: Scene) -> None:
    bgr = np.ascontiguousarray(scene.image[..., ::-1])
    _, encoded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    path.write_bytes(encoded.tobytes())


def _coco(
    images: list[dict[str, Any]],
    annotations: list[dict[str, Any]],
    names: Sequence[str],
    links: Sequence[tuple[int, int]],
) -> dict[str, Any]:
    person = {"id": 1, "name": "person", "supercategory": "person"}
    licence = {"id": 1, "name": "Apache License 2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"}
    return {
        "info": {"description": "Rendered people in COCO's layout", "version": "1.0", "year": 2026},
        "licenses": [licence],
        "images": images,
        "annotations": annotations,
        "categories": [{**person, "keypoints": names, "skeleton": links}],
    }
