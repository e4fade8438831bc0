"""Shards: every image and person once, cut by size, the same bytes each time, nothing half-written."""

import hashlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from personlab import tables
from personlab.errors import UserError
from personlab.params import Acquire, Ingest, Params, Sample, Targets
from personlab.stages import acquire, ingest, targets

PARAMS = Params(
    acquire=Acquire(sample=Sample(train_images=6, val_images=3, width=160, height=120, seed=3)),
    ingest=Ingest(train_images_with_people_only=False),
)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project up to `impute`, in which the first person without keypoints has been imputed."""
    acquire.run(PARAMS, tmp_path)
    ingest.run(PARAMS, tmp_path)
    people = tables.read_table(tmp_path / "data/ingest/people.parquet", tables.PEOPLE).to_pylist()
    small = next(p for p in people if not any(p["visibility"]) and not p["crowd"] and p["split"] == "train")
    small |= {"visibility": [2] * 17, "keypoints": [5.0] * 34, "confidence": [0.5] * 17, "imputed": True}
    (tmp_path / "data/impute").mkdir()
    tables.write_table(
        pa.Table.from_pylist(people, schema=tables.PEOPLE),
        tmp_path / "data/impute/people.parquet",
        params_hash="none",
    )
    return tmp_path


def shard_rows(project: Path, split: str) -> list[dict]:
    parts = sorted((project / "data/targets" / split).glob("part-*.parquet"))
    return [row for part in parts for row in tables.read_table(part, tables.SHARD).to_pylist()]


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_every_image_and_person_is_in_the_shards_once(project: Path) -> None:
    targets.run(PARAMS, project)
    images = tables.read_table(project / "data/ingest/images.parquet", tables.IMAGES).to_pylist()
    people = tables.read_table(project / "data/impute/people.parquet", tables.PEOPLE).to_pylist()
    for split in ("train", "val"):
        rows = shard_rows(project, split)
        assert [r["image_id"] for r in rows] == [i["image_id"] for i in images if i["split"] == split]
        inside = [(row["image_id"], person["person_id"]) for row in rows for person in row["people"]]
        assert inside == [(p["image_id"], p["person_id"]) for p in people if p["split"] == split]


def test_jpeg_bytes_are_the_files_own(project: Path) -> None:
    targets.run(PARAMS, project)
    for row in shard_rows(project, "train"):
        assert row["jpeg"] == (project / "data/acquire" / row["file_name"]).read_bytes()


def test_imputed_keypoints_can_be_left_out(project: Path) -> None:
    def imputed() -> list[dict]:
        return [p for row in shard_rows(project, "train") for p in row["people"] if p["imputed"]]

    targets.run(PARAMS, project)
    assert [p["keypoints"] for p in imputed()] == [[5.0] * 34]
    people = sum(len(row["people"]) for row in shard_rows(project, "train"))
    targets.run(PARAMS.model_copy(update={"targets": Targets(imputed=False)}), project)
    assert not imputed()
    rows = shard_rows(project, "train")
    assert sum(len(row["people"]) for row in rows) == people
    assert all(p["keypoints"] != [5.0] * 34 for row in rows for p in row["people"])


def test_shards_are_cut_by_size_and_keep_their_order() -> None:
    rows = [{"n": n, "jpeg": b"x" * 40} for n in range(5)]
    cut = list(targets._shards(rows, size=100))
    assert [[row["n"] for row in shard] for shard in cut] == [[0, 1], [2, 3], [4]]
    assert list(targets._shards([], size=100)) == [[]]
    assert [len(s) for s in targets._shards(rows, size=1)] == [1] * 5


def test_row_groups_are_small(project: Path) -> None:
    targets.run(PARAMS.model_copy(update={"targets": Targets(row_group=2)}), project)
    assert pq.ParquetFile(project / "data/targets/train/part-00000.parquet").num_row_groups == 3


def test_same_input_same_bytes(project: Path) -> None:
    targets.run(PARAMS, project)
    first = digests(project / "data/targets")
    targets.run(PARAMS, project)
    assert digests(project / "data/targets") == first
    assert len(first) == 3


def test_an_image_that_went_missing_is_named_and_nothing_is_half_written(project: Path) -> None:
    targets.run(PARAMS, project)
    before = digests(project / "data/targets")
    (project / "data/acquire/train2017/000000000004.jpg").unlink()
    with pytest.raises(UserError, match=r"000000000004\.jpg"):
        targets.run(PARAMS, project)
    assert digests(project / "data/targets") == before
