"""The people that training, inference and evaluation use, row for row beside the image shards.

A row holds what is needed to rasterise the five target fields of an image. The fields themselves are computed
after augmentation: 150 dense channels of COCO train would take about 390 GB.
"""

import logging
from collections import defaultdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from personlab import tables
from personlab.errors import UserError
from personlab.params import Params
from personlab.skeleton import K
from personlab.tables import SPLITS, shards
from personlab.utils.files import atomic_folder, write_json

log = logging.getLogger("personlab")

Row = dict[str, Any]


def run(params: Params, root: Path) -> None:
    """Write data/targets/{train,val}/part-*.parquet, in the parts, row groups and order of the image shards.

    Raises:
        UserError: an input is missing; or people of images that are in no shard.
    """
    people = tables.read_table(root / "data/impute/people.parquet", tables.PEOPLE)
    people_of = _people_by_image(people, imputed=params.targets.imputed)
    digest = tables.params_hash(params.targets)
    counts: dict[str, dict[str, int]] = {}
    with atomic_folder(root / "data/targets") as output:
        for split in SPLITS:
            counts[split] = {"images": 0, "people": 0, "imputed": 0, "shards": 0}
            for part in shards.parts(root / "data/ingest" / split, "ingest"):
                ids = tables.read_table(part, tables.IMAGES, ["image_id"])["image_id"].to_pylist()
                rows = [{"image_id": i, "people": people_of.pop((split, i), [])} for i in ids]
                tables.write_table(
                    pa.Table.from_pylist(rows, schema=tables.TARGETS),
                    output / split / part.name,
                    params_hash=digest,
                    row_group_size=shards.row_group_size(part),
                )
                _add(counts[split], rows)
        if people_of:
            first, *others = people_of
            raise UserError(
                f"data/impute/people.parquet: people of {len(others) + 1} images that are in no shard, image "
                f"{first[1]} of {first[0]} first; run 'dvc repro targets'"
            )
    write_json(root / "data/metrics/targets.json", counts)
    for name, count in counts.items():
        log.info("targets %s: %s", name, ", ".join(f"{value} {name}" for name, value in count.items()))


def _add(count: dict[str, int], rows: list[Row]) -> None:
    people = [person for row in rows for person in row["people"]]
    count["images"] += len(rows)
    count["people"] += len(people)
    count["imputed"] += sum(person["imputed"] for person in people)
    count["shards"] += 1


def _people_by_image(people: pa.Table, *, imputed: bool) -> dict[tuple[str, int], list[Row]]:
    """People of each (split, image id), in the table's order; `imputed` keeps imputed keypoints."""
    grouped: dict[tuple[str, int], list[Row]] = defaultdict(list)
    for person in people.to_pylist():
        key = person.pop("split"), person.pop("image_id")
        grouped[key].append(person if imputed or not person["imputed"] else _without_keypoints(person))
    return grouped


def _without_keypoints(person: Row) -> Row:
    nothing = {"keypoints": [0.0] * 2 * K, "visibility": [0] * K, "confidence": [0.0] * K, "imputed": False}
    return person | nothing
