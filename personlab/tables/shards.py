"""What is scored: the annotated images of shards, and what was predicted for those very images."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from personlab import tables
from personlab.errors import UserError
from personlab.people import Detection

Row = dict[str, Any]


def parts(folder: Path, stage: str) -> list[Path]:
    """The Parquet parts that `stage` wrote to `folder`, in order.

    Raises:
        UserError: there are none.
    """
    found = sorted(folder.glob("*.parquet"))
    if not found:
        raise UserError(f"{folder}: no Parquet files; run the stage {stage} first ('dvc repro {stage}')")
    return found


def annotated(shards: Path) -> dict[int, Row]:
    """The images of a folder of shards by id, without their pixels.

    Raises:
        UserError: there are no images, or one is there twice.
    """
    columns = [name for name in tables.SHARD.names if name != "jpeg"]
    return _rows(parts(shards, "targets"), tables.SHARD, columns)


def detections(predictions: Path, images: Mapping[int, Row], shards: Path) -> dict[int, list[Detection]]:
    """What a folder of predictions found in each of the `images` of `shards`, best first.

    Raises:
        UserError: the predictions are not those of these images: images in = predictions in, of one size.
    """
    found = _rows(parts(predictions, "infer"), tables.PREDICTIONS)
    for only, where in (
        (images.keys() - found.keys(), predictions),
        (found.keys() - images.keys(), shards),
    ):
        if only:
            raise UserError(
                f"{where} lacks {len(only)} of the other's images, image {min(only)} first; "
                "run 'dvc repro infer'"
            )
    for image_id, image in images.items():
        size, predicted = ((row["height"], row["width"]) for row in (image, found[image_id]))
        if size != predicted:
            raise UserError(
                f"{predictions}: image {image_id} is {predicted} pixels (height, width), in {shards} {size}; "
                "run 'dvc repro infer'"
            )
    return {
        image_id: [Detection.from_row(record) for record in row["people"]] for image_id, row in found.items()
    }


def _rows(files: Sequence[Path], schema: pa.Schema, columns: list[str] | None = None) -> dict[int, Row]:
    """The rows of all parts by image id."""
    rows: dict[int, Row] = {}
    for part in files:
        for row in tables.read_table(part, schema, columns).to_pylist():
            if row["image_id"] in rows:
                raise UserError(f"{part}: image {row['image_id']} is in an earlier row or part too")
            rows[row["image_id"]] = row
    if not rows:
        raise UserError(f"{files[0].parent}: no images, so there is nothing to evaluate")
    return rows
