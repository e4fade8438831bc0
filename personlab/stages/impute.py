"""Give people who have a mask but no keypoints the estimator's, by Ray Data; in the train split only.

COCO's annotators left small people without keypoints; the paper's training is given them back (section 4.1).
The val split is what everything is measured on and stays as annotated.
"""

import json
import logging
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
from PIL import Image
from ray.data import ActorPoolStrategy

from personlab import params, tables
from personlab.data.crops import Box, person_crop, read_image
from personlab.data.transform import ImageArray
from personlab.distributed import cluster
from personlab.errors import UserError
from personlab.model.estimator import Estimator, from_checkpoint
from personlab.params import Params
from personlab.people import Annotation, FloatArray
from personlab.skeleton import K
from personlab.stages.acquire import image_root
from personlab.utils import malloc
from personlab.utils.files import atomic_folder, write_atomic
from personlab.utils.progress import progress
from personlab.viz import contact_sheet, draw_pose

log = logging.getLogger("personlab")

# Estimates are kept to this precision: enough for a pixel, too little for a processor's last bits to show.
_DECIMALS = 2
# COCO's "labelled and visible": the estimator cannot tell hidden from seen, it is only more or less sure.
_VISIBLE = 2

_SHOWN = 24  # people in the picture
_SHOWN_HEIGHT, _SHOWN_WIDTH, _SHOWN_COLUMNS = 257, 193, 6


@dataclass(frozen=True)
class _Source:
    path: Path
    height: int
    width: int


def run(params: Params, root: Path) -> None:
    """Write data/impute: people.parquet (everybody, in ingest's order), metrics.json, imputed.png.

    Raises:
        UserError: an input is missing or unreadable, or somebody was lost on the way.
    """
    images = _images(root)
    rows = tables.read_table(root / "data/ingest/people.parquet", tables.PEOPLE).to_pylist()
    wanted = [index for index, row in enumerate(rows) if _needs_keypoints(row)]
    found: dict[int, FloatArray] = {}
    if wanted:
        with cluster.connect(params.ray.address):
            found = _estimate(params.impute, root, rows, wanted, images)
    if len(found) != len(wanted):
        raise UserError(f"impute: {len(wanted)} people in, {len(found)} out; run the stage again")

    imputed = list[tuple[Annotation, FloatArray, Path]]()
    for index, estimate in found.items():
        image = images[_image_of(rows[index])]
        person = with_keypoints(
            Annotation.from_row(rows[index]),
            estimate,
            height=image.height,
            width=image.width,
            min_score=params.impute.min_score,
        )
        if person.imputed:
            confidence = np.where(person.visibility > 0, estimate[:, 2], 0).astype(np.float32)
            rows[index] |= person.to_row(confidence)
            imputed.append((person, confidence, image.path))
    table = pa.Table.from_pylist(rows, schema=tables.PEOPLE)
    counts = {
        "people": table.num_rows,
        "considered": len(wanted),
        "imputed": len(imputed),
        "left_without": len(wanted) - len(imputed),
    }
    with atomic_folder(root / "data/impute") as output:
        digest = tables.params_hash(params.impute, params.estimator)
        tables.write_table(table, output / "people.parquet", params_hash=digest)
        write_atomic(output / "metrics.json", json.dumps(counts, indent=2) + "\n")
        Image.fromarray(_sheet(imputed)).save(output / "imputed.png")
    log.info(
        "impute: %d people in = %d people out; %d without keypoints = %d imputed + %d left without",
        *(len(rows), *counts.values()),
    )


def with_keypoints(
    person: Annotation, estimate: FloatArray, *, height: int, width: int, min_score: float
) -> Annotation:
    """The person with every estimated keypoint (K x 3) that is sure enough and inside the image.

    If there is none, the person as it was.
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


def _images(root: Path) -> dict[tuple[str, int], _Source]:
    folder = image_root(root).resolve()
    rows = tables.read_table(root / "data/ingest/images.parquet", tables.IMAGES).to_pylist()
    return {_image_of(row): _Source(folder / row["file_name"], row["height"], row["width"]) for row in rows}


def _image_of(row: dict[str, Any]) -> tuple[str, int]:
    return row["split"], row["image_id"]


def _needs_keypoints(row: dict[str, Any]) -> bool:
    return row["split"] == "train" and not row["crowd"] and bool(row["mask"]) and not any(row["visibility"])


# --- estimating by Ray Data -------------------------------------------------------------------------------


def _estimate(
    settings: params.Impute,
    root: Path,
    rows: list[dict[str, Any]],
    wanted: list[int],
    images: dict[tuple[str, int], _Source],
) -> dict[int, FloatArray]:
    """Estimates (K x 3) of the wanted rows, by row, in the order of `wanted`."""
    needs = {"num_cpus": int(not settings.gpu), "num_gpus": int(settings.gpu)}
    cluster.require(1, cpus=needs["num_cpus"], gpus=needs["num_gpus"], mend="set impute.gpu to false")
    people = [
        {"row": index, "path": str(images[_image_of(rows[index])].path), "box": rows[index]["box"]}
        for index in wanted
    ]
    # Rows are dealt out in fixed blocks, so that every batch holds the same people in every run.
    blocks = -(-len(people) // settings.batch)
    estimated = (
        ray.data.from_arrow(pa.Table.from_pylist(people))
        .repartition(blocks)
        .map_batches(
            _Actor,
            fn_constructor_args=(root.resolve() / "data/estimator/estimator.safetensors", settings.gpu),
            batch_format="pyarrow",
            batch_size=None,  # a block
            compute=ActorPoolStrategy(min_size=1, max_size=_actors(settings)),
            **needs,
        )
    )
    found = dict(map(_found, progress(estimated.iter_rows(), total=len(people), label="impute")))
    return {index: found[index] for index in wanted if index in found}


def _found(row: dict[str, Any]) -> tuple[int, FloatArray]:
    """Of a row that an actor made: which person, and the estimate."""
    if row["failure"]:
        raise UserError(row["failure"])
    return row["row"], np.array(row["estimate"], np.float32).reshape(K, 3)


def _actors(settings: params.Impute) -> int:
    """As many as there are devices for; on processors, all but one, which feeds them."""
    resources = ray.cluster_resources()
    return max(1, int(resources.get("GPU", 0)) if settings.gpu else int(resources["CPU"]) - 1)


class _Actor:
    """An estimator, loaded once per worker process. UserErrors reach the driver as values, without Ray's
    wrapping.
    """

    def __init__(self, weights: Path, gpu: bool) -> None:
        malloc.disable_trim()
        self.weights, self.device = weights, "cuda" if gpu else "cpu"
        self.image: tuple[str, ImageArray] = ("", np.zeros((1, 1, 3), np.uint8))

    @cached_property
    def estimator(self) -> Estimator:
        return from_checkpoint(self.weights).to(self.device)

    def __call__(self, batch: pa.Table) -> pa.Table:
        try:
            estimates, failure = self._estimates(batch), ""
        except UserError as error:
            estimates, failure = [None] * len(batch), str(error)
        return pa.table(
            {
                "row": batch["row"],
                "estimate": pa.array(estimates, pa.list_(pa.float32())),
                "failure": [failure] * len(batch),
            }
        )

    def _estimates(self, batch: pa.Table) -> list[FloatArray] | list[None]:
        settings = self.estimator.settings
        crops, transforms = [], []
        for person in batch.to_pylist():
            image, box = self._image(person["path"]), _box(person["box"])
            crop, transform = person_crop(image, box, height=settings.crop_height, width=settings.crop_width)
            crops.append(crop)
            transforms.append(transform)
        found = self.estimator.estimate(crops, transforms).round(_DECIMALS)
        return list(found.reshape(len(found), -1))

    def _image(self, path: str) -> ImageArray:
        """Rows come image by image: the last one is kept."""
        if self.image[0] != path:
            self.image = path, read_image(Path(path))
        return self.image[1]


def _box(values: list[float]) -> Box:
    x, y, width, height = values
    return x, y, width, height


# --- picture ----------------------------------------------------------------------------------------------


def _sheet(people: list[tuple[Annotation, FloatArray, Path]]) -> ImageArray:
    """Up to 24 imputed people with their confidences (K), spread over all of them and enlarged."""
    if not people:
        return contact_sheet([np.full((64, 256, 3), 255, np.uint8)], 1, ["nobody was imputed"])
    pictures, captions = list[ImageArray](), list[str]()
    for index in np.linspace(0, len(people) - 1, min(_SHOWN, len(people))).round().astype(int):
        person, confidence, path = people[index]
        crop, transform = person_crop(read_image(path), person.box, height=_SHOWN_HEIGHT, width=_SHOWN_WIDTH)
        sure = np.where(person.visibility > 0, confidence, -1.0)
        pictures.append(draw_pose(crop, transform.points(person.keypoints), sure, min_score=0.0))
        captions.append(f"{person.id}: {person.box[3]:.0f} px tall")
    return contact_sheet(pictures, _SHOWN_COLUMNS, captions)
