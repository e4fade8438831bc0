"""Write the people to train and evaluate on, row for row beside the image shards.

A row holds what is needed to rasterise the five target fields of an image, which is done after augmentation:
dense fields of 150 channels would take about 390 GB for COCO train.
"""

import logging
from collections import defaultdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from personlab import tables
from personlab.errors import UserError
from personlab.params import Params
from personlab.tables import SPLITS, shards
from personlab.tables.shards import Row
from personlab.utils.files import atomic_folder, write_json

log = logging.getLogger("personlab")


def run(params: Params, root: Path) -> None:
    """Write data/targets/{train,val}/part-*.parquet with the parts, row groups and order of the image shards.

    Raises:
        UserError: an input is missing, or there are people of images that are in no shard.
    """
    people = tables.read_table(root / "data/impute/people.parquet", tables.PEOPLE)
    by_image = _people_by_image(people, imputed=params.targets.imputed)
    digest = tables.params_hash(params.targets)
    counts: dict[str, dict[str, int]] = {}
    with atomic_folder(root / "data/targets") as output:
        for split in SPLITS:
            counts[split] = {"images": 0, "people": 0, "imputed": 0, "shards": 0}
            for part in shards.parts(root / "data/ingest" / split, "ingest"):
                ids = tables.read_table(part, tables.IMAGES, ["image_id"])["image_id"].to_pylist()
                rows = [{"image_id": i, "people": by_image.pop((split, i), [])} for i in ids]
                table = pa.Table.from_pylist(rows, schema=tables.TARGETS)
                group = shards.row_group_size(part)
                path = output / split / part.name
                tables.write_table(table, path, params_hash=digest, row_group_size=group)
                _add(counts[split], rows)
        if by_image:
            name, image_id = min(by_image)
            raise UserError(
                f"data/impute/people.parquet: people of {len(by_image)} images that are in no shard, first "
                f"image {image_id} of {name}; run 'dvc repro targets'"
            )
    write_json(root / "data/metrics/targets.json", counts)
    for name, count in counts.items():
        log.info("targets: %s: %s", name, ", ".join(f"{number} {what}" for what, number in count.items()))


def _add(count: dict[str, int], rows: list[Row]) -> None:
    people = [person for row in rows for person in row["people"]]
    count["images"] += len(rows)
    count["people"] += len(people)
    count["imputed"] += sum(person["imputed"] for person in people)
    count["shards"] += 1


def _people_by_image(people: pa.Table, *, imputed: bool) -> dict[tuple[str, int], list[Row]]:
    """The people of each (split, image id), in the table's order. imputed: keep imputed keypoints."""
    by_image: dict[tuple[str, int], list[Row]] = defaultdict(list)
    for person in people.to_pylist():
        key = person.pop("split"), person.pop("image_id")
        by_image[key].append(person if imputed or not person["imputed"] else _without_keypoints(person))
    return by_image


def _without_keypoints(person: dict[str, Any]) -> Row:
    count = len(person["visibility"])
    unlabelled = {"keypoints": [0.0] * 2 * count, "visibility": [0] * count, "confidence": [0.0] * count}
    return person | unlabelled | {"imputed": False}
