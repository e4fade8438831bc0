"""Image shards and targets: every image and person once, row for row, the same bytes each time."""

import hashlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from personlab import tables
from personlab.errors import UserError
from personlab.params import Acquire, Ingest, Params, Sample, Targets
from personlab.stages import acquire, ingest, targets
from personlab.tables import shards

PARAMS = Params(
    acquire=Acquire(sample=Sample(train_images=7, val_images=3, width=160, height=120, seed=3)),
    ingest=Ingest(train_images_with_people_only=False, row_group=2),
)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project up to `impute`: small image shards, and the first person without keypoints imputed."""
    acquire.run(PARAMS, tmp_path)
    write = shards.write_images
    monkeypatch.setattr(
        shards, "write_images", lambda *args, **options: write(*args, **options | {"shard_bytes": 20_000})
    )
    ingest.run(PARAMS, tmp_path)
    people = tables.read_table(tmp_path / "data/ingest/people.parquet", tables.PEOPLE).to_pylist()
    small = next(p for p in people if not any(p["visibility"]) and not p["crowd"] and p["split"] == "train")
    small |= {"visibility": [2] * 17, "keypoints": [5.0] * 34, "confidence": [0.5] * 17, "imputed": True}
    (tmp_path / "data/impute").mkdir()
    write_people(tmp_path, people)
    return tmp_path


def write_people(project: Path, people: list[dict[str, Any]]) -> None:
    table = pa.Table.from_pylist(people, schema=tables.PEOPLE)
    tables.write_table(table, project / "data/impute/people.parquet", params_hash="none")


def rows(project: Path, split: str) -> list[dict[str, Any]]:
    """The rows of all parts of targets."""
    parts = sorted((project / "data/targets" / split).glob("part-*.parquet"))
    return [row for part in parts for row in tables.read_table(part, tables.TARGETS).to_pylist()]


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_every_person_is_in_the_targets_once(project: Path) -> None:
    targets.run(PARAMS, project)
    people = tables.read_table(project / "data/impute/people.parquet", tables.PEOPLE).to_pylist()
    for split in ("train", "val"):
        inside = [
            (row["image_id"], person["person_id"]) for row in rows(project, split) for person in row["people"]
        ]
        assert inside == [(p["image_id"], p["person_id"]) for p in people if p["split"] == split]


def test_targets_are_row_for_row_beside_the_images(project: Path) -> None:
    """In parts, row groups and order."""
    targets.run(PARAMS, project)
    for split, least in (("train", 3), ("val", 1)):
        images, people = (project / "data" / stage / split for stage in ("ingest", "targets"))
        assert [p.name for p in sorted(people.iterdir())] == [p.name for p in sorted(images.iterdir())]
        groups = shards.row_groups(images)
        assert len(groups) >= least
        for group in groups:
            joined = shards.with_people(group, people)
            assert joined.num_rows == group.rows
            assert joined["image_id"].to_pylist() == group.read(["image_id"])["image_id"].to_pylist()
    assert len(list((project / "data/ingest/train").iterdir())) > 1


def test_image_shards_hold_the_files_own_bytes(project: Path) -> None:
    held = [
        row for group in shards.row_groups(project / "data/ingest/train") for row in group.read().to_pylist()
    ]
    assert [row["image_id"] for row in held] == list(range(1, 8))
    for row in held:
        assert row["image"] == (project / "data/acquire" / row["file_name"]).read_bytes()


def test_a_changed_imputation_rewrites_no_image(project: Path) -> None:
    """Nor does any stage after ingest read an image file."""
    images = digests(project / "data/ingest")
    for path in (project / "data/acquire").rglob("*.jpg"):
        path.unlink()
    targets.run(PARAMS, project)
    before = digests(project / "data/targets")
    targets.run(PARAMS.model_copy(update={"targets": Targets(imputed=False)}), project)
    assert digests(project / "data/targets") != before
    assert digests(project / "data/ingest") == images


def test_imputed_keypoints_can_be_left_out(project: Path) -> None:
    def imputed() -> list[dict[str, Any]]:
        return [p for row in rows(project, "train") for p in row["people"] if p["imputed"]]

    targets.run(PARAMS, project)
    assert [p["keypoints"] for p in imputed()] == [[5.0] * 34]
    people = sum(len(row["people"]) for row in rows(project, "train"))
    targets.run(PARAMS.model_copy(update={"targets": Targets(imputed=False)}), project)
    assert not imputed()
    found = rows(project, "train")
    assert sum(len(row["people"]) for row in found) == people
    assert all(p["keypoints"] != [5.0] * 34 for row in found for p in row["people"])


def test_shards_are_cut_by_size_and_keep_their_order() -> None:
    images = [{"n": n, "image": b"x" * 40} for n in range(5)]
    cut = list(shards._cut(images, size=100))
    assert [[row["n"] for row in shard] for shard in cut] == [[0, 1], [2, 3], [4]]
    assert list(shards._cut([], size=100)) == [[]]
    assert [len(s) for s in shards._cut(images, size=1)] == [1] * 5


def test_row_groups_are_as_small_as_asked(project: Path) -> None:
    parts = sorted((project / "data/ingest/train").iterdir())
    sizes = [pq.read_metadata(part).row_group(0).num_rows for part in parts]
    assert max(sizes) <= 2


def test_only_the_row_groups_of_some_images_are_read(project: Path) -> None:
    found = shards.read_images(project / "data/ingest/train", {2, 5})
    assert {image_id: row["file_name"] for image_id, row in found.items()} == {
        2: "train2017/000000000002.jpg",
        5: "train2017/000000000005.jpg",
    }


def test_same_input_same_bytes(project: Path) -> None:
    targets.run(PARAMS, project)
    first = digests(project / "data/targets")
    targets.run(PARAMS, project)
    assert digests(project / "data/targets") == first


def test_people_of_no_image_stop_the_stage_and_nothing_is_half_written(project: Path) -> None:
    targets.run(PARAMS, project)
    before = digests(project / "data/targets")
    people = tables.read_table(project / "data/impute/people.parquet", tables.PEOPLE).to_pylist()
    write_people(project, [*people[:-1], people[-1] | {"image_id": 10**9}])
    with pytest.raises(
        UserError, match="people of 1 images that are in no shard, image 1000000000 of val first"
    ):
        targets.run(PARAMS, project)
    assert digests(project / "data/targets") == before
