"""Image shards: cut by size, read by row group, and joined with targets of the same images only."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from personlab import tables
from personlab.errors import UserError
from personlab.tables import shards
from tests.test_tables import image, person


def write(root: Path, parts: list[list[int]], row_group: int = 2, *, stages: str = "images targets") -> None:
    """Image shards and targets with one person per image, in parts of these image ids."""
    for number, ids in enumerate(parts):
        rows = [image(i, image=b"%d" % i) | {"people": [person(10 * i)]} for i in ids]
        for stage in stages.split():
            schema = {"images": tables.IMAGES, "targets": tables.TARGETS}[stage]
            table = pa.Table.from_pylist(rows, schema=schema)
            path = root / stage / shards.part_name(number)
            tables.write_table(table, path, params_hash="", row_group_size=row_group)


def rows(sizes: list[int]) -> list[dict[str, Any]]:
    return [image(number, image=b"x" * size) for number, size in enumerate(sizes)]


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([40] * 5, [[0, 1], [2, 3], [4]]),
        ([200, 40, 40, 40, 99], [[0], [1, 2], [3], [4]]),  # an image larger than a shard
        ([], [[]]),
    ],
)
def test_images_are_cut_into_shards_by_size(
    tmp_path: Path, sizes: list[int], expected: list[list[int]]
) -> None:
    shards.write_images(rows(sizes), tmp_path, shard_bytes=100, row_group=64, params_hash="")
    parts = shards.parts(tmp_path, "ingest")
    assert [part.name for part in parts] == [shards.part_name(number) for number in range(len(expected))]
    assert [tables.read_table(p, tables.IMAGES)["image_id"].to_pylist() for p in parts] == expected


@pytest.mark.parametrize("row_group", [1, 2, 3, 5, 64])
def test_the_row_group_size_of_a_part_is_known(tmp_path: Path, row_group: int) -> None:
    shards.write_images(rows([9] * 5), tmp_path, shard_bytes=100, row_group=row_group, params_hash="")
    [part] = shards.parts(tmp_path, "ingest")
    groups = shards.row_groups(tmp_path)
    assert [group.rows for group in groups] == [min(row_group, 5 - at) for at in range(0, 5, row_group)]
    table = tables.read_table(part, tables.IMAGES)
    tables.write_table(table, tmp_path / "a", params_hash="", row_group_size=shards.row_group_size(part))
    assert pq.read_metadata(tmp_path / "a").num_row_groups == len(groups)


def test_images_are_read_by_id(tmp_path: Path) -> None:
    write(tmp_path, [[1, 2, 3], [5, 8]])
    found = shards.read_images(tmp_path / "images", {2, 8, 9})
    assert {image_id: row["image"] for image_id, row in found.items()} == {2: b"2", 8: b"8"}


def test_images_are_joined_with_their_people(tmp_path: Path) -> None:
    write(tmp_path, [[1, 2, 3], [5, 8]])
    joined = [
        shards.with_people(group, tmp_path / "targets") for group in shards.row_groups(tmp_path / "images")
    ]
    assert [[row["image_id"] for row in table.to_pylist()] for table in joined] == [[1, 2], [3], [5, 8]]
    for row in (row for table in joined for row in table.to_pylist()):
        assert row["image"] == b"%d" % row["image_id"]
        assert [each["person_id"] for each in row["people"]] == [10 * row["image_id"]]
    annotated = shards.annotated(tmp_path / "images", tmp_path / "targets")
    assert list(annotated) == [1, 2, 3, 5, 8]
    assert all("image" not in row for row in annotated.values())


@pytest.mark.parametrize(
    ("parts", "row_group", "message"),
    [
        ([[1, 2, 4]], 2, "part-00000.parquet: not the targets of the images in"),
        ([[1, 2, 3]], 1, "part-00000.parquet: not the targets of the images in"),
        ([[1, 2]], 2, "part-00000.parquet: cannot be read"),  # a row group is missing
        ([], 2, "part-00000.parquet: no such file"),
    ],
)
def test_other_targets_are_refused(
    tmp_path: Path, parts: list[list[int]], row_group: int, message: str
) -> None:
    write(tmp_path, [[1, 2, 3]], stages="images")
    write(tmp_path, parts, row_group, stages="targets")
    with pytest.raises(UserError, match=message):
        [shards.with_people(group, tmp_path / "targets") for group in shards.row_groups(tmp_path / "images")]


@pytest.mark.parametrize("parts", [[[1, 2]], [[1, 2, 4]], [[1, 2, 3, 4]]])
def test_targets_of_other_images_are_not_evaluated(tmp_path: Path, parts: list[list[int]]) -> None:
    write(tmp_path, [[1, 2, 3]], stages="images")
    write(tmp_path, parts, stages="targets")
    with pytest.raises(UserError, match="targets: not the targets of the images in"):
        shards.annotated(tmp_path / "images", tmp_path / "targets")
