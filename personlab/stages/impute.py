"""Impute keypoints of small people that have a mask but no keypoints, with Ray Data; train split only.

COCO's annotators left small people without keypoints; the paper trains on imputed ones (section 4.1). The val
split is what everything is measured on and stays as annotated.
"""

import logging
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import ray
import ray.data
from PIL import Image
from ray.data import ActorPoolStrategy

from personlab import tables
from personlab.data.crops import Box, person_crop, with_images
from personlab.data.transform import ImageArray
from personlab.distributed import cluster
from personlab.errors import UserError
from personlab.model.estimator import Estimator, from_checkpoint
from personlab.params import Params
from personlab.people import Annotation, FloatArray
from personlab.skeleton import K
from personlab.tables import shards
from personlab.tables.shards import RowGroup
from personlab.utils import malloc
from personlab.utils.files import atomic_folder, write_json
from personlab.utils.progress import progress
from personlab.viz import contact_sheet, draw_pose

log = logging.getLogger("personlab")

Row = dict[str, Any]

# Estimates are kept to this precision: enough for a pixel, and independent of a processor's last bits.
_DECIMALS: Final = 2
# COCO's "labelled and visible": the estimator does not tell hidden from visible.
_VISIBLE: Final = 2

_SHOWN: Final = 24  # people on the sheet
_SHOWN_HEIGHT, _SHOWN_WIDTH, _SHOWN_COLUMNS = 257, 193, 6


def run(params: Params, root: Path) -> None:
    """Write data/impute/people.parquet (all people, in ingest's order), a sheet imputed.png, and metrics.

    Raises:
        UserError: an input is missing or unreadable, or an estimate is missing.
    """
    rows = tables.read_table(root / "data/ingest/people.parquet", tables.PEOPLE).to_pylist()
    wanted = {index: row for index, row in enumerate(rows) if _is_wanted(row, params.impute.max_area)}
    estimates: dict[int, Row] = {}
    if wanted:
        with cluster.connect(params.compute.ray_address):
            estimates = _estimate(root, wanted, gpu=params.compute.gpu)
    if estimates.keys() != wanted.keys():
        raise UserError(f"impute: {len(wanted)} people in, {len(estimates)} out; run the stage again")

    imputed = list[tuple[int, Annotation, FloatArray]]()
    for index, found in sorted(estimates.items()):
        estimate = np.array(found["estimate"], np.float32).reshape(K, 3)
        person = with_keypoints(
            Annotation.from_row(rows[index]),
            estimate,
            height=found["height"],
            width=found["width"],
            min_score=params.impute.min_score,
        )
        if person.imputed:
            confidence = np.where(person.visibility > 0, estimate[:, 2], 0).astype(np.float32)
            rows[index] |= person.to_row(confidence)
            imputed.append((rows[index]["image_id"], person, confidence))
    counts = {
        "people": len(rows),
        "considered": len(wanted),
        "imputed": len(imputed),
        "left_without": len(wanted) - len(imputed),
    }
    with atomic_folder(root / "data/impute") as output:
        digest = tables.params_hash(params.impute, params.estimator)
        people = pa.Table.from_pylist(rows, schema=tables.PEOPLE)
        tables.write_table(people, output / "people.parquet", params_hash=digest)
        Image.fromarray(_sheet(imputed, root / "data/ingest/train")).save(output / "imputed.png")
    write_json(root / "data/metrics/impute.json", counts)
    log.info(
        "impute: %d people, %d of them small and without keypoints: %d imputed, %d left without",
        *counts.values(),
    )


def _is_wanted(row: Row, max_area: float | None) -> bool:
    """Whether a person of the train split has a mask, no keypoints and less than the greatest area."""
    is_small = max_area is None or row["area"] < max_area
    return (
        row["split"] == "train"
        and not row["crowd"]
        and bool(row["mask"])
        and not any(row["visibility"])
        and is_small
    )


def with_keypoints(
    person: Annotation, estimate: FloatArray, *, height: int, width: int, min_score: float
) -> Annotation:
    """The person with every estimated keypoint of at least `min_score` inside the height x width image.

    estimate: K x 3 of x, y, confidence. Without any such keypoint the person is returned as it was.
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


# --- estimating with Ray Data -----------------------------------------------------------------------------


def _estimate(root: Path, wanted: dict[int, Row], *, gpu: bool) -> dict[int, Row]:
    """By index of `wanted`: `estimate` (3 K numbers) and the image's `height` and `width`.

    A row group of the image shards is a unit of work, so every batch holds the same people in every run.
    """
    needs = {"num_cpus": int(not gpu), "num_gpus": int(gpu)}
    cluster.require(1, cpus=needs["num_cpus"], gpus=needs["num_gpus"], mend="set compute.gpu to false")
    people: dict[int, list[Row]] = {}
    for index, row in wanted.items():
        people.setdefault(row["image_id"], []).append({"index": index, "box": row["box"]})
    units = [
        {"part": str(group.part), "group": group.index, "rows": group.rows, "image_ids": mine}
        for group in shards.row_groups(root.resolve() / "data/ingest/train")
        if (mine := [i for i in group.read(["image_id"])["image_id"].to_pylist() if i in people])
    ]
    estimated = ray.data.from_items(units, override_num_blocks=len(units)).flat_map(
        _Actor,
        fn_constructor_args=(root.resolve() / "data/estimator/estimator.safetensors", people, gpu),
        compute=ActorPoolStrategy(min_size=1, max_size=_actors(gpu=gpu)),
        **needs,
    )
    found: dict[int, Row] = {}
    for row in progress(estimated.iter_rows(), total=len(wanted), label="impute"):
        if row["failure"]:
            raise UserError(row["failure"])
        found[row["index"]] = row
    return found


def _actors(*, gpu: bool) -> int:
    """One per GPU; or one per processor, less the one that feeds them."""
    resources = ray.cluster_resources()
    return max(1, int(resources.get("GPU", 0)) if gpu else int(resources["CPU"]) - 1)


class _Actor:
    """An estimator, loaded once per process. A UserError is returned as a value, since Ray would wrap it."""

    def __init__(self, weights: Path, people: dict[int, list[Row]], gpu: bool) -> None:
        malloc.disable_trim()
        self.weights, self.people, self.device = weights, people, "cuda" if gpu else "cpu"

    @cached_property
    def estimator(self) -> Estimator:
        return from_checkpoint(self.weights).to(self.device)

    def __call__(self, unit: Row) -> list[Row]:
        """The estimates of the people of one row group."""
        try:
            return self._estimates(RowGroup(Path(unit["part"]), unit["group"], unit["rows"]))
        except UserError as error:
            nothing = {"index": -1, "estimate": [0.0], "height": 0, "width": 0}
            return [nothing | {"failure": str(error)}]

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
        found = self.estimator.estimate(crops, transforms).round(_DECIMALS)
        estimates = found.reshape(len(found), -1).tolist()
        return [row | {"estimate": each} for row, each in zip(rows, estimates, strict=True)]


# --- sheet ------------------------------------------------------------------------------------------------


def _sheet(people: list[tuple[int, Annotation, FloatArray]], images: Path) -> ImageArray:
    """Up to 24 imputed people (image id, person, K confidences), evenly spaced and enlarged."""
    if not people:
        return contact_sheet([np.full((64, 256, 3), 255, np.uint8)], 1, ["no one was imputed"])
    spaced = np.linspace(0, len(people) - 1, min(_SHOWN, len(people))).round().astype(int)
    shown: dict[int, list[tuple[Annotation, FloatArray]]] = {}
    for image_id, person, confidence in (people[index] for index in spaced):
        shown.setdefault(image_id, []).append((person, confidence))
    crops, captions = list[ImageArray](), list[str]()
    rows = shards.read_images(images, shown.keys())
    for (person, confidence), image in with_images(list(rows.values()), shown):
        crop, transform = person_crop(image, person.box, height=_SHOWN_HEIGHT, width=_SHOWN_WIDTH)
        scores = np.where(person.visibility > 0, confidence, -1.0)
        crops.append(draw_pose(crop, transform.points(person.keypoints), scores, min_score=0.0))
        captions.append(f"{person.id}: {person.box[3]:.0f} px tall")
    return contact_sheet(crops, _SHOWN_COLUMNS, captions)
