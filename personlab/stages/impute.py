"""Impute keypoints of small training people that have a mask but no keypoints, with Ray Data.

COCO does not annotate the keypoints of small people; the paper trains on imputed ones (section 4.1). The
validation split stays as annotated.
"""

import logging
from dataclasses import replace
from functools import cached_property
from operator import itemgetter
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import ray
import ray.data
from PIL import Image
from ray.data import ActorPoolStrategy

from personlab import tables
from personlab.data.crops import person_crop, with_images
from personlab.data.transform import ImageArray
from personlab.distributed import cluster
from personlab.errors import UserError
from personlab.model.estimator import Estimator, from_checkpoint
from personlab.params import Params
from personlab.people import Annotation, Box, FloatArray
from personlab.skeleton import Skeleton
from personlab.tables import shards
from personlab.tables.shards import Row, RowGroup
from personlab.utils import malloc
from personlab.utils.files import atomic_folder, write_json
from personlab.utils.progress import progress
from personlab.viz import contact_sheet, draw_annotations, draw_pose

log = logging.getLogger("personlab")

# Estimates are rounded, so that they do not depend on the last bits of a processor's arithmetic.
_DECIMALS: Final = 2
# COCO's "labelled and visible": the estimator does not distinguish occluded keypoints.
_VISIBLE: Final = 2

_SHEET_PEOPLE: Final = 24
_SHEET_HEIGHT, _SHEET_WIDTH, _SHEET_COLUMNS = 257, 193, 6

_Imputed = tuple[int, Annotation, FloatArray]  # image id, person, confidence (K)


def run(params: Params, root: Path) -> None:
    """Write data/impute/people.parquet (all people, in ingest's order), imputed.png (a sheet), and metrics.

    Raises:
        UserError: an input is missing or cannot be read, or people are of images that are in no shard.
    """
    skeleton = tables.read_dataset(root / "data").skeleton
    rows = tables.read_table(root / "data/ingest/people.parquet", tables.PEOPLE).to_pylist()
    candidates = {index: row for index, row in enumerate(rows) if _is_candidate(row, params.impute.max_area)}
    estimates: dict[int, Row] = {}
    if candidates:
        with cluster.connect(params.compute.ray_address):
            estimates = _estimate(root, candidates, gpu=params.compute.gpu)

    imputed = list[_Imputed]()
    for index, result in sorted(estimates.items()):
        estimate = np.array(result["estimate"], np.float32).reshape(-1, 3)
        size = {"height": result["height"], "width": result["width"]}
        person = Annotation.from_row(rows[index])
        person = with_keypoints(person, estimate, **size, min_score=params.impute.min_score)
        if person.imputed:
            confidence = np.where(person.visibility > 0, estimate[:, 2], 0).astype(np.float32)
            rows[index] |= person.to_row(confidence)
            imputed.append((rows[index]["image_id"], person, confidence))
    counts = {"people": len(rows), "candidates": len(candidates), "imputed": len(imputed)}
    with atomic_folder(root / "data/impute") as output:
        digest = tables.params_hash(params.impute, params.estimator)
        people = pa.Table.from_pylist(rows, schema=tables.PEOPLE)
        tables.write_table(people, output / "people.parquet", params_hash=digest)
        sheet = _sheet(imputed, root / "data/ingest/train", skeleton)
        Image.fromarray(sheet).save(output / "imputed.png")
    write_json(root / "data/metrics/impute.json", counts)
    log.info("impute: %d people, %d of them candidates, %d imputed", *counts.values())


def _is_candidate(row: Row, max_area: float | None) -> bool:
    """Whether a person is in the train split and has a mask, no keypoints and an area below `max_area`."""
    is_small = max_area is None or row["area"] < max_area
    is_unlabelled = bool(row["mask"]) and not row["crowd"] and not any(row["visibility"])
    return row["split"] == "train" and is_unlabelled and is_small


def with_keypoints(
    person: Annotation, estimate: FloatArray, *, height: int, width: int, min_score: float
) -> Annotation:
    """The person with the estimated keypoints of at least `min_score` inside the height x width image.

    Args:
        estimate: K x 3 of x, y, confidence.

    Returns the person unchanged if there are no such keypoints.
    """
    xy = estimate[:, :2]
    kept = (estimate[:, 2] >= min_score) & ((xy >= 0) & (xy <= (width - 1, height - 1))).all(1)
    if not kept.any():
        return person
    return replace(
        person,
        keypoints=np.where(kept[:, None], xy, 0).astype(np.float32),
        visibility=np.where(kept, _VISIBLE, 0).astype(np.int8),
        imputed=True,
    )


# --- estimates with Ray Data ------------------------------------------------------------------------------


def _estimate(root: Path, people: dict[int, Row], *, gpu: bool) -> dict[int, Row]:
    """For each person, by key: `estimate` (3 K numbers) and the image's `height` and `width`.

    A row group of the image shards is a unit of work, so that batches are the same in every run.
    """
    needs = {"num_cpus": int(not gpu), "num_gpus": int(gpu)}
    cluster.require(1, cpus=needs["num_cpus"], gpus=needs["num_gpus"], hint="set compute.gpu to false")
    images = root.resolve() / "data/ingest/train"
    by_image: dict[int, list[Row]] = {}
    for index, row in people.items():
        by_image.setdefault(row["image_id"], []).append({"index": index, "box": row["box"]})
    units, missing = list[Row](), set(by_image)
    for group in shards.row_groups(images):
        if ids := by_image.keys() & group.read(["image_id"])["image_id"].to_pylist():
            units.append({"part": str(group.part), "group": group.index, "rows": group.rows})
            missing -= ids
    if missing:
        raise UserError(
            f"{images}: lacks {len(missing)} images of data/ingest/people.parquet, first image "
            f"{min(missing)}; run 'dvc repro'"
        )
    estimates = ray.data.from_items(units, override_num_blocks=len(units)).flat_map(
        _Actor,
        fn_constructor_args=(
            root.resolve() / "data/estimator/estimator.safetensors",
            tables.read_dataset(root / "data").skeleton,
            by_image,
            gpu,
        ),
        compute=ActorPoolStrategy(min_size=1, max_size=_actors(gpu=gpu)),
        **needs,
    )
    found: dict[int, Row] = {}
    for row in progress(estimates.iter_rows(), total=len(people), label="impute"):
        if row["failure"]:
            raise UserError(row["failure"])
        found[row["index"]] = row
    return found


def _actors(*, gpu: bool) -> int:
    """One per GPU; or one per CPU, except the one that serves them."""
    resources = ray.cluster_resources()
    return max(1, int(resources.get("GPU", 0)) if gpu else int(resources["CPU"]) - 1)


class _Actor:
    """An estimator in a process. A UserError is returned as a value, because Ray wraps exceptions."""

    def __init__(self, weights: Path, skeleton: Skeleton, people: dict[int, list[Row]], gpu: bool) -> None:
        malloc.disable_trim()
        self.weights, self.skeleton = weights, skeleton
        self.people, self.device = people, "cuda" if gpu else "cpu"

    @cached_property
    def estimator(self) -> Estimator:
        return from_checkpoint(self.weights, self.skeleton).to(self.device)

    def __call__(self, unit: Row) -> list[Row]:
        """The estimates of the people of one row group."""
        try:
            return self._estimates(RowGroup(Path(unit["part"]), unit["group"], unit["rows"]))
        except UserError as error:
            return [{"index": -1, "estimate": [0.0], "height": 0, "width": 0, "failure": str(error)}]

    def _estimates(self, group: RowGroup) -> list[Row]:
        settings = self.estimator.settings
        rows, crops, transforms = list[Row](), list[ImageArray](), []
        for person, image in with_images(group.read().to_pylist(), self.people):
            box: Box = tuple(person["box"])
            crop, transform = person_crop(image, box, height=settings.crop_height, width=settings.crop_width)
            crops.append(crop)
            transforms.append(transform)
            height, width = image.shape[:2]
            rows.append({"index": person["index"], "height": height, "width": width, "failure": ""})
        estimates = self.estimator.estimate(crops, transforms).round(_DECIMALS).reshape(len(rows), -1)
        return [row | {"estimate": each} for row, each in zip(rows, estimates.tolist(), strict=True)]


# --- sheet ------------------------------------------------------------------------------------------------


def _sheet(people: list[_Imputed], images: Path, skeleton: Skeleton) -> ImageArray:
    """Enlarged crops of up to 24 imputed people, evenly spaced from the least to the most sure."""
    if not people:
        return contact_sheet([np.full((64, 256, 3), 255, np.uint8)], 1, ["no people imputed"])
    ranked = sorted(people, key=lambda each: (_sureness(each), each[1].id))
    spaced = np.linspace(0, len(ranked) - 1, min(_SHEET_PEOPLE, len(ranked))).round().astype(int)
    by_image: dict[int, list[_Imputed]] = {}
    for index in spaced:
        by_image.setdefault(ranked[index][0], []).append(ranked[index])
    shown = list[tuple[float, str, ImageArray]]()
    rows = shards.read_images(images, by_image.keys())
    for imputed, image in with_images(list(rows.values()), by_image):
        _, person, confidence = imputed
        found = person.visibility > 0
        outline = replace(person, visibility=np.zeros_like(person.visibility))
        marked = draw_annotations(image, [outline], skeleton)
        crop, transform = person_crop(marked, person.box, height=_SHEET_HEIGHT, width=_SHEET_WIDTH)
        points = transform.points(person.keypoints)
        crop = draw_pose(crop, points, np.where(found, confidence, -1.0), skeleton, min_score=0.0)
        caption = f"{found.sum()} of {len(found)} keypoints\nconfidence {confidence[found].mean():.2f}"
        shown.append((_sureness(imputed), caption, crop))
    shown.sort(key=itemgetter(0))
    return contact_sheet([crop for *_, crop in shown], _SHEET_COLUMNS, [caption for _, caption, _ in shown])


def _sureness(imputed: _Imputed) -> float:
    """The sum of the confidences: more keypoints, or surer ones."""
    return float(imputed[2].sum())
