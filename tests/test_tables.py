"""Tables are checked before they are written; errors name the invalid rows."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from personlab import tables
from personlab.errors import UserError
from personlab.params import Ingest, Targets
from personlab.people import Annotation
from personlab.tables import (
    IMAGES,
    PEOPLE,
    PREDICTIONS,
    REJECTS,
    TARGETS,
    params_hash,
    read_table,
    write_table,
)

NAN = math.nan


def person(person_id: int, **changes: Any) -> dict[str, Any]:
    good = {
        "person_id": person_id,
        "keypoints": np.arange(34.0).tolist(),
        "visibility": [0, 1, 2] * 5 + [2, 2],
        "confidence": [1.0] * 17,
        "imputed": False,
        "box": [1.0, 2.0, 3.0, 4.0],
        "area": 5.5,
        "crowd": False,
        "mask": b"T3",
    }
    return good | changes


def image(image_id: int, **changes: Any) -> dict[str, Any]:
    good = {"image_id": image_id, "file_name": "val2017/a.jpg", "height": 3, "width": 4, "image": b"GIF89a"}
    return good | changes


def detection(score: float, **changes: Any) -> dict[str, Any]:
    good = {
        "score": score,
        "keypoints": [0.5] * 34,
        "keypoint_scores": [0.5] * 17,
        "mask": b"T3",
    }
    return good | changes


def images(*rows: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), IMAGES)


def people(*rows: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist([{"split": "val", "image_id": 7} | row for row in rows], PEOPLE)


def targets(*persons: dict[str, Any]) -> pa.Table:
    rows = [{"image_id": 6, "people": []}, {"image_id": 7, "people": list(persons)}]
    return pa.Table.from_pylist(rows, TARGETS)


def predictions(*persons: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist(
        [{"image_id": 7, "height": 3, "width": 4, "people": list(persons)}], PREDICTIONS
    )


def rejects(*rows: tuple[str, str, str]) -> pa.Table:
    return pa.Table.from_pylist([dict(zip(REJECTS.names, row, strict=True)) for row in rows], REJECTS)


GOOD = {
    "images": images(image(1), image(2)),
    "people": people(person(1), person(2)),
    "targets": targets(person(1), person(2)),
    "predictions": predictions(detection(0.9), detection(0.1)),
    "rejects": rejects(("a.json", "image 1", "no"), ("a.json", "image 1", "no")),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_table_is_read_as_it_was_written(name: str, tmp_path: Path) -> None:
    table = GOOD[name]
    write_table(table, tmp_path / "new" / "t.parquet", params_hash="abc")
    assert read_table(tmp_path / "new" / "t.parquet", table.schema).equals(table)
    empty = table.schema.empty_table()
    write_table(empty, tmp_path / "t.parquet", params_hash="abc")
    assert read_table(tmp_path / "t.parquet", table.schema).equals(empty)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"keypoints": [0.0] * 33}, "keypoints must hold 2 numbers for each of its visibility"),
        ({"keypoints": [0.0] * 33 + [NAN]}, "keypoints must hold finite numbers only"),
        ({"keypoints": [math.inf] + [0.0] * 33}, "keypoints must hold finite numbers only"),
        ({"keypoints": [None] * 34}, "keypoints must hold finite numbers only"),
        ({"keypoints": None}, "keypoints must not be null"),
        ({"visibility": [2] * 16}, "keypoints must hold 2 numbers for each of its visibility"),
        ({"visibility": [3] + [2] * 16}, r"visibility must lie in \[0, 2\]"),
        ({"visibility": [-1] + [2] * 16}, r"visibility must lie in \[0, 2\]"),
        ({"confidence": [1.0] * 18}, "confidence must hold as many numbers as its visibility"),
        ({"confidence": [NAN] * 17}, r"confidence must lie in \[0, 1\]"),
        ({"box": [1.0, 2.0, 3.0]}, "box must hold 4 numbers"),
        ({"box": [1.0, 2.0, 0.0, 4.0]}, "box must have a positive width and height"),
        ({"box": [1.0, 2.0, 3.0, -4.0]}, "box must have a positive width and height"),
        ({"box": [NAN, 2.0, 3.0, 4.0]}, "box must hold finite numbers only"),
        ({"area": 0.0}, "area must be positive"),
        ({"area": math.inf}, "area must be finite"),
        ({"crowd": None}, "crowd must not be null"),
    ],
)
@pytest.mark.parametrize("build", [people, targets])
def test_an_invalid_person_is_named(build: Any, changes: dict[str, Any], reason: str) -> None:
    bad = build(person(1), person(2, **changes), person(4, **changes))
    with pytest.raises(UserError, match=rf"image_id 7, person_id 2 \(and 1 more\): {reason}"):
        tables.validate(bad)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (images(image(1), image(2, height=0)), "image_id 2: height must be positive"),
        (images(image(1, width=-1)), "image_id 1: width must be positive"),
        (images(image(1, file_name="")), "image_id 1: file_name must not be empty"),
        (images(image(1, image=b"")), "image_id 1: image must not be empty"),
        (images(image(1), image(1)), "image_id 1: repeats the image_id of an earlier row"),
        (images(image(2), image(1)), "is out of order: rows are sorted by image_id"),
        (people(person(1), person(1)), "person_id 1: repeats the split and person_id of an earlier row"),
        (people(person(2), person(1)), "is out of order: rows are sorted by split, image_id, person_id"),
        (targets(person(1), person(1)), "image_id 7, person_id 1: repeats the person_id of an earlier row"),
        (targets(person(2), person(1)), "image_id 7, person_id 2.* is out of order"),
        (pa.concat_tables([GOOD["targets"]] * 2), "image_id 6.*: repeats the image_id of an earlier row"),
        (
            predictions(detection(0.1), detection(0.9)),
            "image_id 7.* is out of order: rows are sorted by image_id, score",
        ),
        (predictions(detection(NAN)), "image_id 7: score must be finite"),
        (
            predictions(detection(0.1, keypoints=[0.0])),
            "image_id 7: keypoints must hold 2 numbers for each of its keypoint_scores",
        ),
        (predictions(detection(0.1, keypoint_scores=[NAN] * 17)), "keypoint_scores must hold finite numbers"),
        (rejects(("a.json", "image 1", "")), "file a.json, record image 1: reason must not be empty"),
        (
            rejects(("b", "1", "no"), ("a", "1", "no")),
            "is out of order: rows are sorted by file, record, reason",
        ),
    ],
)
def test_an_invalid_row_is_named(table: pa.Table, message: str) -> None:
    with pytest.raises(UserError, match=message):
        tables.validate(table)


def test_all_reasons_are_given_at_once() -> None:
    with pytest.raises(UserError, match=r"person_id .*; .*person_id 1: area must be positive"):
        tables.validate(people(person(1, area=-1.0), person(2, area=math.inf)))


def test_an_invalid_table_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"images\.parquet: not written: image_id 1"):
        write_table(images(image(1, width=0)), tmp_path / "images.parquet", params_hash="")
    assert list(tmp_path.iterdir()) == []


def test_other_columns_are_refused() -> None:
    with pytest.raises(ValueError, match="no schema"):
        tables.validate(GOOD["images"].drop_columns(["width"]))
    with pytest.raises(ValueError, match="no schema"):
        tables.validate(GOOD["images"].set_column(3, "width", pa.array([4, 4], pa.int64())))


def test_same_rows_same_bytes_and_the_metadata_tells_the_parameters(tmp_path: Path) -> None:
    for name, table in (("a", GOOD["targets"]), ("b", targets(person(1), person(2)))):
        write_table(table, tmp_path / name, params_hash="abc", row_group_size=1)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    metadata = pq.read_schema(tmp_path / "a").metadata
    assert metadata[b"personlab.params_hash"] == b"abc"
    assert metadata[b"personlab.format_version"] == b"1"
    assert pq.ParquetFile(tmp_path / "a").num_row_groups == 2


def test_columns_and_row_groups_can_be_selected(tmp_path: Path) -> None:
    write_table(GOOD["targets"], tmp_path / "t", params_hash="", row_group_size=1)
    table = read_table(tmp_path / "t", TARGETS, ["people", "image_id"])
    assert table.column_names == ["people", "image_id"]
    assert table["image_id"].to_pylist() == [6, 7]
    assert read_table(tmp_path / "t", TARGETS, row_group=1).equals(GOOD["targets"][1:])
    with pytest.raises(UserError, match="cannot be read as Parquet"):
        read_table(tmp_path / "t", TARGETS, row_group=2)


def test_read_errors_name_the_file_and_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "images.parquet"
    with pytest.raises(UserError, match=r"images\.parquet: no such file; run the stage"):
        read_table(path, IMAGES)
    path.write_bytes(b"PAR1 no more")
    with pytest.raises(UserError, match=r"images\.parquet: cannot be read as Parquet"):
        read_table(path, IMAGES)
    write_table(GOOD["images"], path, params_hash="")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"images\.parquet: cannot be read as Parquet"):
        read_table(path, IMAGES)
    with pytest.raises(UserError, match="cannot be read as Parquet"):
        read_table(tmp_path, IMAGES)
    metadata = {"personlab.format_version": "2"}
    pq.write_table(GOOD["images"].replace_schema_metadata(metadata), path)
    with pytest.raises(UserError, match="format version is 2, this program reads 1"):
        read_table(path, IMAGES)
    pq.write_table(GOOD["images"], path)
    with pytest.raises(UserError, match="format version is none"):
        read_table(path, IMAGES)
    write_table(GOOD["images"], path, params_hash="")
    with pytest.raises(UserError, match="columns missing: people"):
        read_table(path, TARGETS)
    metadata = {"personlab.format_version": "1"}
    pq.write_table(pa.table({"image_id": ["7"]}).replace_schema_metadata(metadata), path)
    with pytest.raises(UserError, match="column image_id is string, not int64"):
        read_table(path, IMAGES, ["image_id"])


def test_params_hash_depends_on_every_value_and_on_the_section() -> None:
    assert params_hash(Ingest()) == params_hash(Ingest(max_reject_fraction=0.01))
    hashes = {
        params_hash(Ingest()),
        params_hash(Ingest(max_reject_fraction=0.02)),
        params_hash(Targets()),
        params_hash(Ingest(), Targets()),
        params_hash(Targets(), Ingest()),
    }
    assert len(hashes) == 5
    assert all(len(value) == 64 for value in hashes)


def test_annotation_and_back() -> None:
    record = GOOD["targets"]["people"][1].as_py()[1]
    parsed = Annotation.from_row(record)
    assert parsed.id == 2
    assert parsed.keypoints.shape == (17, 2)
    assert parsed.keypoints[1].tolist() == [2.0, 3.0]
    assert parsed.keypoints.dtype == np.float32
    assert parsed.visibility.tolist() == [0, 1, 2] * 5 + [2, 2]
    assert parsed.box == (1.0, 2.0, 3.0, 4.0)
    assert (parsed.area, parsed.crowd, parsed.imputed, parsed.rle) == (5.5, False, False, b"T3")
    back = parsed.to_row(record["confidence"]) | {"split": "val", "image_id": 7}
    assert pa.Table.from_pylist([back], PEOPLE).equals(people(record))


def test_people_rows_go_with_their_image() -> None:
    rows = tables.people_rows(GOOD["targets"])
    assert rows["image_id"].to_pylist() == [7, 7]
    assert rows["person_id"].to_pylist() == [1, 2]
    assert rows.drop_columns(["image_id"]).to_pylist() == GOOD["targets"]["people"][1].as_py()
