"""Shards: Parquet parts of images, of their people row for row, and of predictions."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from personlab.errors import UserError
from personlab.people import Detection
from personlab.tables.io import read_table, write_table
from personlab.tables.schema import IMAGES, PREDICTIONS, TARGETS

Row = dict[str, Any]


@dataclass(frozen=True)
class RowGroup:
    """A row group of a part; `rows` is its number of rows."""

    part: Path
    index: int
    rows: int

    def read(self, columns: list[str] | None = None) -> pa.Table:
        with pq.ParquetFile(self.part) as file:
            return file.read_row_group(self.index, columns)


def part_name(number: int) -> str:
    return f"part-{number:05}.parquet"


def parts(folder: Path, stage: str) -> list[Path]:
    """The Parquet parts that `stage` wrote to `folder`, in order.

    Raises:
        UserError: there are none.
    """
    found = sorted(folder.glob("part-*.parquet"))
    if not found:
        raise UserError(f"{folder}: no Parquet files; run the stage {stage} first ('dvc repro {stage}')")
    return found


def row_group_size(part: Path) -> int:
    """The row group size that a part was written with, as `write_table` takes it."""
    meta = pq.read_metadata(part)
    return max(1, meta.row_group(0).num_rows) if meta.num_row_groups else 1


def row_groups(folder: Path) -> list[RowGroup]:
    """The row groups of all parts of a folder, in order."""
    return [
        RowGroup(part, index, meta.row_group(index).num_rows)
        for part in sorted(folder.glob("part-*.parquet"))
        for meta in [pq.read_metadata(part)]
        for index in range(meta.num_row_groups)
    ]


def write_images(
    rows: Iterable[Row], folder: Path, *, shard_bytes: int, row_group: int, params_hash: str
) -> int:
    """Pack rows of `tables.IMAGES` into parts of about `shard_bytes` of image files; return how many parts.

    There is at least one part, even if it is empty.
    """
    count = 0
    for count, shard in enumerate(_cut(rows, shard_bytes), start=1):
        table = pa.Table.from_pylist(shard, schema=IMAGES)
        path = folder / part_name(count - 1)
        write_table(table, path, params_hash=params_hash, row_group_size=row_group)
    return count


def _cut(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    shard: list[Row] = []
    held = cut = 0
    for row in rows:
        if shard and held + len(row["image"]) > size:
            yield shard
            shard, held, cut = [], 0, cut + 1
        shard.append(row)
        held += len(row["image"])
    if shard or not cut:
        yield shard


def with_people(images: RowGroup, targets: Path) -> pa.Table:
    """A row group of images, with the `people` of the same row group in the folder `targets`.

    Raises:
        UserError: the two are not of the same images.
    """
    table, people = images.read(), RowGroup(targets / images.part.name, images.index, images.rows).read()
    if not people["image_id"].equals(table["image_id"]):
        raise UserError(f"{targets / images.part.name}: not of the images in {images.part}; run 'dvc repro'")
    return table.append_column(TARGETS.field("people"), people["people"])


def read_images(folder: Path, image_ids: Collection[int]) -> dict[int, Row]:
    """The rows of some images by id; only the row groups that hold them are read."""
    wanted = pa.array(sorted(image_ids), pa.int64())
    rows: dict[int, Row] = {}
    for group in row_groups(folder):
        held = pc.is_in(group.read(["image_id"])["image_id"], wanted)
        if pc.any(held).as_py():
            rows |= {row["image_id"]: row for row in group.read().filter(held).to_pylist()}
    return rows


def annotated(images: Path, targets: Path) -> dict[int, Row]:
    """Sizes and people of all images by id, without their pixels.

    Raises:
        UserError: there are no images, one is there twice, or the two folders are not of the same images.
    """
    columns = [name for name in IMAGES.names if name != "image"]
    rows = _rows(parts(images, "ingest"), IMAGES, columns)
    people = _rows(parts(targets, "targets"), TARGETS)
    if rows.keys() != people.keys():
        raise UserError(f"{targets}: not of the images in {images}; run 'dvc repro targets'")
    return {image_id: row | people[image_id] for image_id, row in rows.items()}


def detections(predictions: Path, images: Mapping[int, Row], shards: Path) -> dict[int, list[Detection]]:
    """The people predicted in each of the `images` of `shards`, best first.

    Raises:
        UserError: the predictions are not those of these images: images in = predictions in, of one size.
    """
    found = _rows(parts(predictions, "infer"), PREDICTIONS)
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
    return {image_id: [Detection.from_row(each) for each in row["people"]] for image_id, row in found.items()}


def _rows(files: Sequence[Path], schema: pa.Schema, columns: list[str] | None = None) -> dict[int, Row]:
    """The rows of all parts by image id."""
    rows: dict[int, Row] = {}
    for part in files:
        for row in read_table(part, schema, columns).to_pylist():
            if row["image_id"] in rows:
                raise UserError(f"{part}: image {row['image_id']} is in an earlier row or part too")
            rows[row["image_id"]] = row
    if not rows:
        raise UserError(f"{files[0].parent}: no images, so there is nothing to evaluate")
    return rows
