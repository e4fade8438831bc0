"""Pack images and their people into Parquet shards: after this, nothing reads an image file again.

A shard row is one image: its JPEG bytes as they are, and everything needed to rasterise the five target
fields. The fields themselves are made from it on the fly, after augmentation: 150 dense channels of COCO
train would be about 390 GB.
"""

import json
import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from personlab import tables
from personlab.errors import UserError
from personlab.params import Params
from personlab.skeleton import K
from personlab.stages.acquire import image_root
from personlab.utils.files import atomic_folder, write_atomic
from personlab.utils.progress import progress

log = logging.getLogger("personlab")

Row = dict[str, Any]


def run(params: Params, root: Path) -> None:
    """Write data/targets/{train,val}/part-*.parquet and metrics.json.

    Raises:
        UserError: an image that ingest accepted can no longer be read.
    """
    images = tables.read_table(root / "data/ingest/images.parquet", tables.IMAGES)
    people = tables.read_table(root / "data/impute/people.parquet", tables.PEOPLE)
    folder = image_root(root)
    digest = tables.params_hash(params.targets)
    people_of = _people_by_image(people, imputed=params.targets.imputed)

    counts: dict[str, dict[str, int]] = {}
    with atomic_folder(root / "data/targets") as output:
        for split in ("train", "val"):
            rows = [row for row in images.to_pylist() if row["split"] == split]
            full = progress(_fill(rows, people_of, folder), total=len(rows), label=f"targets {split}")
            tally = {"images": 0, "people": 0, "imputed": 0, "shards": 0}
            for number, shard in enumerate(_shards(full, params.targets.shard_mb * 2**20)):
                tables.write_table(
                    pa.Table.from_pylist(shard, schema=tables.SHARD),
                    output / split / f"part-{number:05}.parquet",
                    params_hash=digest,
                    row_group_size=params.targets.row_group,
                )
                tally["shards"] += 1
                tally["images"] += len(shard)
                tally["people"] += sum(len(row["people"]) for row in shard)
                tally["imputed"] += sum(person["imputed"] for row in shard for person in row["people"])
            counts[split] = tally
            log.info(
                "targets %s: %d images, %d people in = %d images, %d people out (%d imputed), %d shards",
                *(split, len(rows), sum(len(people_of[split, row["image_id"]]) for row in rows)),
                *(tally["images"], tally["people"], tally["imputed"], tally["shards"]),
            )
        write_atomic(output / "metrics.json", json.dumps(counts, indent=2) + "\n")


def _people_by_image(people: pa.Table, *, imputed: bool) -> dict[tuple[str, int], list[Row]]:
    """People of each (split, image id), in the table's order; without imputed keypoints if so asked."""
    grouped: dict[tuple[str, int], list[Row]] = defaultdict(list)
    for person in people.to_pylist():
        key = person.pop("split"), person.pop("image_id")
        grouped[key].append(person if imputed or not person["imputed"] else _without_keypoints(person))
    return grouped


def _without_keypoints(person: Row) -> Row:
    nothing = {"keypoints": [0.0] * 2 * K, "visibility": [0] * K, "confidence": [0.0] * K, "imputed": False}
    return person | nothing


def _fill(images: Iterable[Row], people_of: dict[tuple[str, int], list[Row]], folder: Path) -> Iterator[Row]:
    """Shard rows of table rows: with the image's bytes and people, without the split."""
    for image in images:
        path = folder / image["file_name"]
        try:
            jpeg = path.read_bytes()
        except OSError as error:
            raise UserError(
                f"{path}: {error.strerror}, though ingest has read it; put it back, or ingest again"
            ) from None
        key = image["split"], image["image_id"]
        kept = {name: value for name, value in image.items() if name != "split"}
        yield kept | {"jpeg": jpeg, "people": people_of[key]}


def _shards(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    """Cut a stream of rows into shards of about `size` bytes of JPEG; at least one shard, even if empty."""
    shard: list[Row] = []
    held = cut = 0
    for row in rows:
        if shard and held + len(row["jpeg"]) > size:
            yield shard
            shard, held, cut = [], 0, cut + 1
        shard.append(row)
        held += len(row["jpeg"])
    if shard or not cut:
        yield shard
