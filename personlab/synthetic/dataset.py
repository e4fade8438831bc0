"""The sample dataset: rendered people in the standard COCO layout, annotated as COCO annotates.

It makes the whole pipeline runnable without downloading anything. Every image depends only on the seed,
its split and its number, so the same seed gives the same bytes and no image of one split is in the other.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import pycocotools.mask as coco_mask

from personlab.errors import UserError
from personlab.people import BoolArray
from personlab.skeleton import KEYPOINTS, K
from personlab.synthetic.pose import Rng
from personlab.synthetic.scene import Figure, Scene, make_scene
from personlab.utils.files import write_atomic
from personlab.utils.progress import Tracker

JPEG_QUALITY: Final = 92
LEAST_SIDE: Final = 64  # pixels
SMALL_AREA: Final = 32**2  # COCO's annotators mark no keypoints on people smaller than this
LEAST_AREA: Final = 20  # pixels; nobody annotates less
LEAST_PIECE: Final = 4  # pixels; annotators overlook smaller fragments and holes
# Image ids are unique over both splits, as in COCO; each split's begin after its offset.
SPLITS: Final = (("train2017", 0), ("val2017", 500_000))
ANNOTATIONS_PER_IMAGE: Final = 100  # annotation id = image id * this + number

# COCO's drawing order of the 17 keypoints, numbered from 1.
COCO_SKELETON: Final = (
    *((16, 14), (14, 12), (17, 15), (15, 13), (12, 13), (6, 12), (7, 13), (6, 7), (6, 8), (7, 9)),
    *((8, 10), (9, 11), (2, 3), (1, 2), (1, 3), (2, 4), (3, 5), (4, 6), (5, 7)),
)

# How often annotators leave out a keypoint that they cannot see (it gets visibility 0, else 1): mostly on a
# head turned away, every other time on the body. One in seven labelled keypoints is then hidden, as in COCO.
OMITTED_FACE: Final = 0.8
OMITTED_BODY: Final = 0.55


def write_sample(
    folder: Path,
    *,
    train_images: int,
    val_images: int,
    width: int,
    height: int,
    seed: int,
    progress: Tracker | None = None,
) -> None:
    """Render the dataset into `folder`: train2017/, val2017/ and annotations/person_keypoints_*.json.

    Sizes in pixels. Coordinates are exact to 1/100 pixel, with pixel centres at whole numbers.

    Raises:
        UserError: the images are too small to show anybody, or the seed is negative.
    """
    if seed < 0:
        raise UserError(f"acquire.sample: seed {seed} is negative; set it to 0 or more")
    if min(width, height) < LEAST_SIDE:
        raise UserError(
            f"acquire.sample: images of {width}x{height} pixels are too small to show people; "
            f"set width and height to at least {LEAST_SIDE}"
        )
    for number, ((split, offset), count) in enumerate(zip(SPLITS, (train_images, val_images), strict=True)):
        images, annotations = list[dict[str, Any]](), list[dict[str, Any]]()
        (folder / split).mkdir(parents=True, exist_ok=True)
        indices: Iterable[int] = range(1, count + 1)
        for index in progress(indices, total=count, label=f"rendering {split}") if progress else indices:
            rng = np.random.default_rng((seed, number, index))
            scene, image_id = make_scene(rng, width, height), offset + index
            name = f"{image_id:012d}.jpg"
            _write_jpeg(folder / split / name, scene)
            images.append({"id": image_id, "file_name": name, "width": width, "height": height, "license": 1})
            annotations += annotate(scene, rng, image_id)
        content = json.dumps(_document(images, annotations), separators=(",", ":"))
        write_atomic(folder / "annotations" / f"person_keypoints_{split}.json", content)


def annotate(scene: Scene, rng: Rng, image_id: int) -> list[dict[str, Any]]:
    """COCO annotations of everybody of whom enough shows; `rng` decides what annotators leave out."""
    found = [_person(figure, rng) for figure in scene.people] + [_crowd(mask) for mask in scene.crowds]
    return [
        {
            "id": image_id * ANNOTATIONS_PER_IMAGE + number,
            "image_id": image_id,
            "category_id": 1,
            **annotation,
        }
        for number, annotation in enumerate((annotation for annotation in found if annotation), start=1)
    ]


def _person(figure: Figure, rng: Rng) -> dict[str, Any] | None:
    """One person's annotation, but for the ids; None where hardly anything shows."""
    omitted = rng.random(K) < np.where(np.arange(K) < 5, OMITTED_FACE, OMITTED_BODY)
    polygons = outline(figure.mask)
    if not polygons:
        return None
    measures = _measures(coco_mask.merge(coco_mask.frPyObjects(polygons, *figure.mask.shape)))
    if measures["area"] < LEAST_AREA:
        return None
    visibility = np.where(figure.visible, 2, np.where(figure.inside & ~omitted, 1, 0))
    if measures["area"] < SMALL_AREA:
        visibility[:] = 0
    keypoints = np.where(visibility[:, None] > 0, figure.keypoints.astype(np.float64).round(2), 0.0)
    triples = [(x, y, int(v)) for (x, y), v in zip(keypoints.tolist(), visibility, strict=True)]
    return {
        "segmentation": polygons,
        **measures,
        "iscrowd": 0,
        "num_keypoints": int((visibility > 0).sum()),
        "keypoints": [number for triple in triples for number in triple],
    }


def _crowd(mask: BoolArray) -> dict[str, Any] | None:
    """A crowd region's annotation, but for the ids: uncompressed RLE and no keypoints."""
    if mask.sum() < LEAST_AREA:
        return None
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(np.diff(flat, prepend=False))  # counts begin with a run of background
    counts = np.diff(changes, prepend=0, append=flat.size)
    return {
        "segmentation": {"counts": counts.tolist(), "size": list(mask.shape)},
        **_measures(coco_mask.encode(np.asfortranarray(mask, np.uint8))),
        "iscrowd": 1,
        "num_keypoints": 0,
        "keypoints": [0] * (3 * K),
    }


def _measures(rle: dict[str, Any]) -> dict[str, Any]:
    """Area and box of exactly the mask that a reader of the annotation will decode."""
    return {"area": float(coco_mask.area(rle)), "bbox": coco_mask.toBbox(rle).tolist()}


ENLARGED: Final = 4  # contours run through pixel centres: on an enlarged mask they come close to the edges


def outline(mask: BoolArray) -> list[list[float]]:
    """The mask's pieces as polygons [x1, y1, x2, y2, …] in pixels measured from the image's corner.

    A piece with a hole in it is cut in two through the hole, for polygons cannot have holes.
    """
    contours, hierarchy = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    polygons = list[list[float]]()
    for index, contour in enumerate(contours):
        if hierarchy[0][index][3] >= 0:  # the rim of a hole
            continue
        x, y, w, h = cv2.boundingRect(contour)
        piece = np.zeros((h, w), np.uint8)
        cv2.drawContours(piece, [contour], 0, 1, -1, offset=(-x, -y))
        shown = (piece > 0) & mask[y : y + h, x : x + w]
        if shown.sum() < LEAST_PIECE:
            continue
        cut = _hole_column(piece > 0, shown)
        halves = [(x, shown)] if cut is None else [(x, shown[:, :cut]), (x + cut, shown[:, cut:])]
        for left, half in halves:
            polygons += [_trace(half, left, y)] if cut is None else _moved(outline(half), left, y)
    return polygons


def _hole_column(filled: BoolArray, shown: BoolArray) -> int | None:
    """The column through the middle of the largest hole, if one is worth cutting."""
    count, _, stats, centres = cv2.connectedComponentsWithStats(
        (filled & ~shown).astype(np.uint8), connectivity=4
    )
    if count < 2:
        return None
    largest = 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
    if stats[largest, cv2.CC_STAT_AREA] < LEAST_PIECE:
        return None
    return max(round(float(centres[largest][0])), 1)


def _trace(piece: BoolArray, left: int, top: int) -> list[float]:
    """The outer edge of one connected piece."""
    large = np.repeat(np.repeat(piece.astype(np.uint8), ENLARGED, 0), ENLARGED, 1)
    contours, _ = cv2.findContours(large, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    edge = max(contours, key=cv2.contourArea)
    simple = cv2.approxPolyDP(edge, 0.45 * ENLARGED, True)
    ring = (simple if len(simple) > 2 else edge).reshape(-1, 2)
    points = (ring + 0.5) / ENLARGED + (left, top)
    return [float(number) for number in points.round(2).ravel()]


def _moved(polygons: list[list[float]], left: int, top: int) -> list[list[float]]:
    shift = np.array([left, top])
    return [(np.reshape(polygon, (-1, 2)) + shift).round(2).ravel().tolist() for polygon in polygons]


def _write_jpeg(path: Path, scene: Scene) -> None:
    bgr = np.ascontiguousarray(scene.image[..., ::-1])
    _, encoded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    path.write_bytes(encoded.tobytes())


def _document(images: list[dict[str, Any]], annotations: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "info": {"description": "Rendered people in COCO's layout", "version": "1.0", "year": 2026},
        "licenses": [
            {"id": 1, "name": "Apache License 2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"}
        ],
        "images": images,
        "annotations": annotations,
        "categories": [
            {
                "id": 1,
                "name": "person",
                "supercategory": "person",
                "keypoints": list(KEYPOINTS),
                "skeleton": [list(edge) for edge in COCO_SKELETON],
            }
        ],
    }
