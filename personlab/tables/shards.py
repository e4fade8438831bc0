"""Parquet parts of images, of their people (row for row in a second folder) and of predictions (a third)."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from personlab.errors import UserError
from personlab.people import Detection
from personlab.tables.io import read_table, write_table
from personlab.tables.schema import IMAGES, PREDICTIONS, TARGETS

Row = dict[str, Any]

_PARTS: Final = "part-*.parquet"


@dataclass(frozen=True)
class RowGroup:
    """A row group of a part of image shards."""

    part: Path
    index: int
    rows: int

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        return read_table(self.part, IMAGES, columns, row_group=self.index)


def part_name(number: int) -> str:
    return f"part-{number:05}.parquet"


def parts(folder: Path, stage: str) -> list[Path]:
    """The parts that `stage` wrote to `folder`, in order.

    Raises:
        UserError: there are none.
    """
    if found := sorted(folder.glob(_PARTS)):
        return found
    raise UserError(f"{folder}: no Parquet files; run the stage {stage} first ('dvc repro {stage}')")


def row_group_size(part: Path) -> int:
    """The `row_group_size` that a part was written with, or one with the same effect."""
    metadata = pq.read_metadata(part)
    return metadata.row_group(0).num_rows if metadata.num_rows else 1


def row_groups(folder: Path) -> list[RowGroup]:
    """The row groups of the image shards in a folder, in order."""
    return [
        RowGroup(part, index, metadata.row_group(index).num_rows)
        for part in sorted(folder.glob(_PARTS))
        for metadata in [pq.read_metadata(part)]
        for index in range(metadata.num_row_groups)
    ]


def write_images(
    rows: Iterable[Row], folder: Path, *, shard_bytes: int, row_group: int, params_hash: str
) -> None:
    """Write rows of `tables.IMAGES` to parts with about `shard_bytes` of image files each.

    Without rows, one empty part is written.
    """
    for number, shard in enumerate(_shards(rows, shard_bytes)):
        table = pa.Table.from_pylist(shard, schema=IMAGES)
        write_table(table, folder / part_name(number), params_hash=params_hash, row_group_size=row_group)


def _shards(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    """Consecutive rows whose images have at most `size` bytes together, or a single row."""
    shard: list[Row] = []
    filled = 0
    for row in rows:
        if shard and filled + len(row["image"]) > size:
            yield shard
            shard, filled = [], 0
        shard.append(row)
        filled += len(row["image"])
    yield shard


def with_people(images: RowGroup, targets: Path) -> pa.Table:
    """Read a row group of images, with the `people` of the same row group in the folder `targets`.

    Raises:
        UserError: the targets are missing or those of other images.
    """
    part = targets / images.part.name
    table, people = images.read(), read_table(part, TARGETS, row_group=images.index)
    if not people["image_id"].equals(table["image_id"]):
        raise UserError(f"{part}: not the targets of the images in {images.part}; run 'dvc repro targets'")
    return table.append_column(TARGETS.field("people"), people["people"])


def read_images(folder: Path, image_ids: Collection[int]) -> dict[int, Row]:
    """Rows of some images by id. Only the row groups that hold them are read."""
    ids = pa.array(sorted(image_ids), pa.int64())
    rows: dict[int, Row] = {}
    for group in row_groups(folder):
        selected = pc.is_in(group.read(["image_id"])["image_id"], ids)
        if pc.any(selected).as_py():
            rows |= {row["image_id"]: row for row in group.read().filter(selected).to_pylist()}
    return rows


def annotated(images: Path, targets: Path) -> dict[int, Row]:
    """Rows of images and targets by image id, without the image files.

    Raises:
        UserError: there are no images, an image is repeated, or the targets are those of other images.
    """
    columns = [name for name in IMAGES.names if name != "image"]
    rows = _rows(parts(images, "ingest"), IMAGES, columns)
    people = _rows(parts(targets, "targets"), TARGETS)
    if rows.keys() != people.keys():
        raise UserError(f"{targets}: not the targets of the images in {images}; run 'dvc repro targets'")
    return {image_id: row | people[image_id] for image_id, row in rows.items()}


def detections(
    predictions: Path, images: Mapping[int, Row], shards: Path | str
) -> dict[int, list[Detection]]:
    """Predicted people by image id, best first.

    Args:
        images: rows with height and width by image id.
        shards: where they are from, for errors: the folder of `annotated` images.

    Raises:
        UserError: the predictions are not those of exactly these images, or an image's size differs.
    """
    found = _rows(parts(predictions, "infer"), PREDICTIONS)
    for missing, here, there in (
        (images.keys() - found.keys(), predictions, shards),
        (found.keys() - images.keys(), shards, predictions),
    ):
        if missing:
            raise UserError(
                f"{here} lacks {len(missing)} images of {there}, first image {min(missing)}; "
                "run 'dvc repro infer'"
            )
    for image_id, image in images.items():
        size, predicted = ((row["height"], row["width"]) for row in (image, found[image_id]))
        if size != predicted:
            raise UserError(
                f"{predictions}: image {image_id} has the size {predicted} (height, width), but {size} in "
                f"{shards}; run 'dvc repro infer'"
            )
    return {image_id: [Detection.from_row(each) for each in row["people"]] for image_id, row in found.items()}


def _rows(files: Sequence[Path], schema: pa.Schema, columns: list[str] | None = None) -> dict[int, Row]:
    """Rows of all parts by image id."""
    rows: dict[int, Row] = {}
    for part in files:
        for row in read_table(part, schema, columns).to_pylist():
            if row["image_id"] in rows:
                raise UserError(f"{part}: image {row['image_id']} is repeated")
            rows[row["image_id"]] = row
    if not rows:
        raise UserError(f"{files[0].parent}: no images to evaluate")
    return rows
