"""Targets: every person once, row for row beside the image shards, which are never rewritten."""

import hashlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from personlab import tables
from personlab.errors import UserError
from personlab.params import Params, Targets
from personlab.stages import targets
from personlab.tables import shards
from tests.test_tables import image, person

PARAMS, ANNOTATED_ONLY = Params(), Params(targets=Targets(imputed=False))
IMPUTED = {"visibility": [2] * 17, "keypoints": [5.0] * 34, "confidence": [0.5] * 17, "imputed": True}
UNLABELLED = {"visibility": [0] * 17, "keypoints": [0.0] * 34, "confidence": [0.0] * 17, "imputed": False}

Row = dict[str, Any]


def people(**changes: Any) -> list[Row]:
    """Of each split, images 0, 3, 6, ... without people, the next ones with one, the others with two."""
    return [
        {"split": split, "image_id": i, **person(10 * i + n), **(changes if n else {})}
        for split in tables.SPLITS
        for i in range(10)
        for n in range(i % 3)
    ]


def write_people(root: Path, rows: list[Row]) -> None:
    table = pa.Table.from_pylist(rows, schema=tables.PEOPLE)
    tables.write_table(table, root / "data/impute/people.parquet", params_hash="")


# The images of each part, and the images of a row group.
LAYOUTS = [([10], 64), ([10], 3), ([5, 1, 4], 2), ([4, 4, 2], 4), ([7, 3], 1)]


@pytest.fixture(params=LAYOUTS, ids=str)
def project(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Image shards (of bytes that are no image files), and people of whom every second is imputed."""
    sizes, row_group = request.param
    for split in tables.SPLITS:
        ids = iter(range(10))
        for number, size in enumerate(sizes):
            rows = [image(next(ids)) for _ in range(size)]
            table = pa.Table.from_pylist(rows, schema=tables.IMAGES)
            path = tmp_path / "data/ingest" / split / shards.part_name(number)
            tables.write_table(table, path, params_hash="", row_group_size=row_group)
    write_people(tmp_path, people(**IMPUTED))
    return tmp_path


def contents(folder: Path) -> dict[str, tuple[str, int]]:
    """Digest and time of modification of every file."""
    return {
        str(path.relative_to(folder)): (
            hashlib.sha256(path.read_bytes()).hexdigest(),
            path.stat().st_mtime_ns,
        )
        for path in sorted(folder.rglob("*.parquet"))
    }


def digests(folder: Path) -> dict[str, str]:
    return {name: digest for name, (digest, _) in contents(folder).items()}


def joined(root: Path, split: str) -> list[Row]:
    """The rows of the image shards with their people, as training reads them."""
    groups = shards.row_groups(root / "data/ingest" / split)
    return [
        row
        for group in groups
        for row in shards.with_people(group, root / "data/targets" / split).to_pylist()
    ]


def persons(root: Path) -> list[Row]:
    """The people of all rows, as rows of tables.PEOPLE."""
    return [
        {"split": split, "image_id": row["image_id"], **each}
        for split in tables.SPLITS
        for row in joined(root, split)
        for each in row["people"]
    ]


def test_every_person_is_in_the_row_of_its_image(project: Path) -> None:
    targets.run(PARAMS, project)
    assert persons(project) == people(**IMPUTED)


def test_parts_and_row_groups_are_those_of_the_images(project: Path) -> None:
    targets.run(PARAMS, project)
    for split in tables.SPLITS:
        images, people = (project / "data" / stage / split for stage in ("ingest", "targets"))
        expected = [(group.part.name, group.rows) for group in shards.row_groups(images)]
        assert [(group.part.name, group.rows) for group in shards.row_groups(people)] == expected


def test_a_changed_imputation_rewrites_no_image(project: Path) -> None:
    before = contents(project / "data/ingest")
    targets.run(PARAMS, project)
    first = digests(project / "data/targets")
    write_people(project, people(**IMPUTED | {"keypoints": [6.0] * 34}))
    targets.run(PARAMS, project)
    assert digests(project / "data/targets").keys() == first.keys()
    assert digests(project / "data/targets") != first
    assert persons(project) == people(**IMPUTED | {"keypoints": [6.0] * 34})
    assert contents(project / "data/ingest") == before


def test_imputed_keypoints_can_be_left_out(project: Path) -> None:
    targets.run(ANNOTATED_ONLY, project)
    assert persons(project) == people(**UNLABELLED)


def test_same_input_same_bytes(project: Path) -> None:
    targets.run(PARAMS, project)
    first = digests(project / "data/targets")
    targets.run(PARAMS, project)
    assert digests(project / "data/targets") == first


def test_people_of_unknown_images_are_refused_and_the_targets_kept(project: Path) -> None:
    targets.run(PARAMS, project)
    before = digests(project / "data/targets")
    *others, last = people(**IMPUTED)
    write_people(project, [*others, last | {"image_id": 10**9}])
    with pytest.raises(UserError, match="1 images that are in no shard, first image 1000000000 of val"):
        targets.run(PARAMS, project)
    assert digests(project / "data/targets") == before
