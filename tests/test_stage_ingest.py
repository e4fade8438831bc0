"""From a COCO layout to tables and shards: every record is accounted for, and errors say what to do."""

import hashlib
import json
import logging
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from personlab.data import download
from personlab.data.images import pixels, read
from personlab.errors import UserError
from personlab.params import Acquire, Ingest, Layout, Params, Sample, Skeleton
from personlab.stages import acquire, ingest
from personlab.tables import IMAGES, PEOPLE, REJECTS, read_dataset, read_table
from personlab.utils.files import digest
from tests.layouts import HEIGHT, WIDTH, image, person, without, write_image, write_layout
from tests.layouts import layout as coco_layout


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project beside a layout: two people in image 1 of train, one in image 11 of val, none in 2 and 12."""
    layout = tmp_path / "layout"
    crowd = person(52, 1, iscrowd=1, keypoints=[0] * 51, area=5000.0)
    write_layout(layout, "train", [image(2), image(1)], [person(51, 1), crowd])
    unlabelled = without(person(53, 11), "keypoints", "num_keypoints")
    write_layout(layout, "val", [image(11), image(12)], [unlabelled])
    (tmp_path / "project").mkdir()
    return tmp_path / "project"


def params(**changes: Any) -> Params:
    return Params(acquire=Acquire(source="directory", directory="../layout"), ingest=Ingest(**changes))


def run(project: Path, **changes: Any) -> dict[str, Any]:
    acquire.run(params(**changes), project)
    ingest.run(params(**changes), project)
    metrics: dict[str, Any] = json.loads((project / "data/metrics/ingest.json").read_text())
    return metrics


def rows(project: Path, name: str) -> list[dict[str, Any]]:
    schema = {"people": PEOPLE, "rejects": REJECTS}[name]
    found: list[dict[str, Any]] = read_table(project / f"data/ingest/{name}.parquet", schema).to_pylist()
    return found


def packed(project: Path) -> list[tuple[str, dict[str, Any]]]:
    """The rows of the image shards, each with its split."""
    parts = sorted(project.glob("data/ingest/*/part-*.parquet"))
    return [(part.parent.name, row) for part in parts for row in read_table(part, IMAGES).to_pylist()]


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


# --- ingest -------------------------------------------------------------------------------------------------


def test_tables_and_counts(project: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="personlab"):
        metrics = run(project)
    assert [(split, r["image_id"], r["file_name"]) for split, r in packed(project)] == [
        ("train", 1, "train2017/1.jpg"),
        ("val", 11, "val2017/11.jpg"),
        ("val", 12, "val2017/12.jpg"),
    ]
    assert [(r["split"], r["image_id"], r["person_id"], r["crowd"]) for r in rows(project, "people")] == [
        ("train", 1, 51, False),
        ("train", 1, 52, True),
        ("val", 11, 53, False),
    ]
    assert rows(project, "people")[0]["confidence"] == [1.0, 1.0] + [0.0] * 15
    assert rows(project, "rejects") == []
    none = {"with_keypoints": 0, "small_without_keypoints": 0, "large_without_keypoints": 0, "crowds": 0}
    assert metrics == {
        "train": {
            "images": {"in": 2, "out": 1, "left_out": 1, "rejected": 0, "with_keypoints": 1},
            "people": {"in": 2, "out": 2, "rejected": 0} | none | {"with_keypoints": 1, "crowds": 1},
        },
        "val": {
            "images": {"in": 2, "out": 2, "left_out": 0, "rejected": 0, "with_keypoints": 0},
            "people": {"in": 1, "out": 1, "rejected": 0} | none | {"small_without_keypoints": 1},
        },
    }
    assert "ingest: train: 2 images in = 1 out + 1 without people left out + 0 rejected" in caplog.messages


def test_the_mask_of_a_crowd_does_not_make_a_dataset_with_masks(project: Path) -> None:
    people = [person(51, 1, segmentation=[]), person(52, 1, iscrowd=1, keypoints=[0] * 51)]
    write_layout(project.parent / "layout", "train", [image(1)], people)
    run(project)
    assert not read_dataset(project / "data").masks


def test_images_without_people_can_be_kept(project: Path) -> None:
    metrics = run(project, train_images_with_people_only=False)
    assert metrics["train"]["images"]["out"] == 2
    assert metrics["train"]["images"]["left_out"] == 0


def test_rows_in_are_rows_out_and_rejects(project: Path) -> None:
    layout = project.parent / "layout"
    people = [person(51, 1), person(52, 2), person(53, 3), person(54, 9), person(51, 1)]
    write_layout(layout, "train", [image(1), image(2), image(3), image(4)], people)
    (layout / "train2017/2.jpg").write_text("no image")
    (layout / "train2017/4.jpg").unlink()
    metrics = run(project, max_reject_fraction=0.5)["train"]
    assert metrics["images"] == {"in": 4, "out": 2, "left_out": 0, "rejected": 2, "with_keypoints": 2}
    assert (metrics["people"]["in"], metrics["people"]["out"], metrics["people"]["rejected"]) == (5, 2, 3)
    file = "annotations/person_keypoints_train2017.json"
    assert [tuple(reject.values()) for reject in rows(project, "rejects")] == [
        (file, "annotation 51", "id 51 was used before"),
        (
            file,
            "annotation 52",
            "image 2 was rejected: 2.jpg: is not an image of any format that can be read here",
        ),
        (file, "annotation 54", "image 9 is not among the images"),
        (file, "image 2", "2.jpg: is not an image of any format that can be read here"),
        (file, "image 4", "4.jpg: no such file"),
    ]


def test_too_many_rejects_fail_and_are_listed(project: Path) -> None:
    (project.parent / "layout/train2017/1.jpg").write_text("no image")
    message = (
        r"ingest: 3 records \(42\.9%\) rejected, more than ingest\.max_reject_fraction allows \(1\.0%\)"
        r"(.|\n)*ingest-rejects\.csv; the first of each kind:"
        r"\n  annotations/person_keypoints_train2017\.json, image 1: 1\.jpg: is not an image.*"
        r"\n  annotations/.*, annotation 51: image 1 was rejected: .* \(and 1 more like it\)$"
    )
    with pytest.raises(UserError, match=message):
        run(project)
    assert not (project / "data/ingest").exists()
    listed = (project / "runs/ingest-rejects.csv").read_text().splitlines()
    assert listed[0] == "file,record,reason"
    assert len(listed) == 4
    write_image(project.parent / "layout/train2017/1.jpg")
    run(project)
    assert not (project / "runs/ingest-rejects.csv").exists()


def test_a_skeleton_that_does_not_fit_is_known_before_images_are_read(project: Path) -> None:
    (project.parent / "layout/train2017/1.jpg").write_text("not read")
    acquire.run(params(), project)
    given = params().model_copy(update={"skeleton": Skeleton(keypoints=("nose",))})
    with pytest.raises(UserError, match=r"train2017\.json: skeleton\.keypoints names 1 keypoints"):
        ingest.run(given, project)


def turn(path: Path, orientation: int, size: tuple[int, int] = (WIDTH, HEIGHT)) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    PIL.Image.effect_noise(size, 64).convert("RGB").save(path, exif=exif)


def test_images_are_turned_by_exif_where_the_size_tells(
    project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Later stages take the stored pixels: 6 turns an image by 90 degrees."""
    path = project.parent / "layout/train2017/1.jpg"
    turn(path, 6, (HEIGHT, WIDTH))
    run(project)
    (row,) = [row for split, row in packed(project) if split == "train"]
    assert (row["height"], row["width"]) == (HEIGHT, WIDTH)
    np.testing.assert_array_equal(pixels(row), read(path))
    turn(path, 6)
    run(project)
    (row,) = [row for split, row in packed(project) if split == "train"]
    assert row["image"] == path.read_bytes()
    assert "EXIF" not in caplog.text


def test_orientations_that_the_size_does_not_tell_are_named(
    project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    turn(project.parent / "layout/train2017/1.jpg", 3)
    run(project)
    assert "ingest: train: 1 images have an EXIF orientation that their size does not tell" in caplog.text
    assert "(train2017/1.jpg): the annotations are taken to mean the pixels as stored" in caplog.text


def test_a_split_without_images_is_an_error(project: Path) -> None:
    write_layout(project.parent / "layout", "train", [image(1)], [])
    with pytest.raises(UserError, match="no images in train: 0 rejected, 1 without people left out"):
        run(project)


def test_same_input_same_bytes(project: Path) -> None:
    run(project)
    first = digests(project / "data")
    assert set(first) == {"acquire/source.json", "metrics/ingest.json"} | {
        f"ingest/{name}"
        for name in (
            *("dataset.json", "people.parquet", "rejects.parquet", "sheet.jpg"),
            *("train/part-00000.parquet", "val/part-00000.parquet"),
        )
    }
    run(project)
    assert digests(project / "data") == first


def test_changed_annotations_are_refused(project: Path) -> None:
    run(project)
    before = digests(project / "data")
    changed = write_layout(project.parent / "layout", "val", [image(11), image(12)], [])
    with pytest.raises(
        UserError, match=r"val2017\.json \(val\): changed since acquire; run 'dvc repro --force"
    ):
        ingest.run(params(), project)
    changed.unlink()
    with pytest.raises(UserError, match=r"val2017\.json: no such file, although acquire found it"):
        ingest.run(params(), project)
    assert digests(project / "data") == before


@pytest.mark.testdata
def test_coco_mini(project: Path, coco_mini: Path) -> None:
    real = Params(acquire=Acquire(source="directory", directory=str(coco_mini)))
    acquire.run(real, project)
    ingest.run(real, project)
    metrics = json.loads((project / "data/metrics/ingest.json").read_text())
    for split, images, people, labelled, without_keypoints, crowds in (
        ("train", (80, 36, 44), 172, (86, 28), 81, 5),
        ("val", (79, 79, 0), 118, (68, 32), 49, 1),
    ):
        found, persons = metrics[split]["images"], metrics[split]["people"]
        assert (found["in"], found["out"], found["left_out"], found["rejected"]) == (*images, 0)
        assert (persons["in"], persons["out"], persons["rejected"]) == (people, people, 0)
        assert (persons["with_keypoints"], found["with_keypoints"]) == labelled
        unlabelled = persons["small_without_keypoints"] + persons["large_without_keypoints"]
        assert (unlabelled, persons["crowds"]) == (without_keypoints, crowds)


def test_images_in_both_splits_are_counted(project: Path, caplog: pytest.LogCaptureFixture) -> None:
    run(project)
    assert "in both train and val" not in caplog.text
    file = Layout().train
    layout = Layout(train=file, val=file, val_images=Layout().train_images)
    settings = Params(acquire=Acquire(source="directory", directory="../layout", layout=layout))
    acquire.run(settings, project)
    ingest.run(settings, project)
    assert caplog.text.count("ingest: 1 images are in both train and val (train2017/1.jpg)") == 1


# --- acquire ------------------------------------------------------------------------------------------------


def test_the_source_describes_the_layout(project: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        acquire.run(params(), project)
    layout = project.parent / "layout"
    annotations = layout / "annotations/person_keypoints_train2017.json"
    pictures = sorted((layout / "train2017").iterdir())
    hashes = "".join(f"{digest(path)} train2017/{path.name}\n" for path in pictures)
    source = acquire.read_source(project)
    assert (source.source, source.root) == ("directory", layout.as_posix())
    assert source.splits["train"] == acquire.SplitSource(
        annotations=annotations.as_posix(),
        sha256=hashlib.sha256(annotations.read_bytes()).hexdigest(),
        contents=hashlib.sha256(hashes.encode()).hexdigest(),
        folder="train2017",
        share=None,
        images=2,
        people=2,
        other_annotations=0,
    )
    assert acquire.layouts(project)["train"] == coco_layout(layout, "train")


def test_a_layout_inside_the_project_is_relative(project: Path) -> None:
    (project.parent / "layout").rename(project / "mine")
    acquire.run(Params(acquire=Acquire(source="directory", directory="mine")), project)
    assert acquire.read_source(project).root == "mine"
    assert acquire.layouts(project)["val"] == coco_layout(project / "mine", "val")


def test_a_layout_is_found_whatever_form_its_accents_have(project: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "é/ü") for form in ("NFC", "NFD"))
    (project / decomposed).parent.mkdir()
    (project.parent / "layout").rename(project / decomposed)
    acquire.run(Params(acquire=Acquire(source="directory", directory=composed)), project)
    assert acquire.layouts(project)["val"].root == project / decomposed


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (
            "annotations/person_keypoints_val2017.json",
            r"person_keypoints_val2017\.json: no such file",
        ),
        ("train2017", r"train2017: no such file or folder"),
        ("", r"layout: no such file or folder"),
    ],
)
def test_errors_name_a_missing_part_of_a_layout(project: Path, missing: str, message: str) -> None:
    (project.parent / "layout" / missing).rename(project.parent / "elsewhere")
    with pytest.raises(UserError, match=message):
        acquire.run(params(), project)
    assert not (project / "data/acquire").exists()


def test_an_error_names_the_needed_parts_of_a_layout_once(project: Path) -> None:
    file = "annotations/person_keypoints_train2017.json"
    layout = Layout(val=None, train_images="photos")
    settings = Params(acquire=Acquire(source="directory", directory="../layout", layout=layout))
    with pytest.raises(UserError, match=rf"photos: no such .* must hold {file}, photos, or acquire\.layout"):
        acquire.run(settings, project)


def test_truncated_annotations_fail_at_acquire(project: Path) -> None:
    path = project.parent / "layout/annotations/person_keypoints_val2017.json"
    path.write_text(path.read_text()[:-9])
    with pytest.raises(UserError, match=r"person_keypoints_val2017\.json: not valid JSON"):
        acquire.run(params(), project)


def test_the_sample_is_rendered_to_data_acquire(project: Path) -> None:
    sample = Sample(train_images=3, val_images=2, width=96, height=64)
    settings = Params(acquire=Acquire(sample=sample), ingest=Ingest(train_images_with_people_only=False))
    acquire.run(settings, project)
    ingest.run(settings, project)
    assert acquire.read_source(project).root == "data/acquire"
    assert len(packed(project)) == 5
    assert rows(project, "rejects") == []
    for _, row in packed(project):
        assert row["image"] == (project / "data/acquire" / row["file_name"]).read_bytes()


def test_coco_2017_is_downloaded_into_its_folder(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = list[tuple[str, Path]]()

    def fetch(url: str, folder: Path) -> None:
        fetched.append((url, folder))
        (project.parent / "layout").rename(folder)

    monkeypatch.setattr(acquire, "fetch_archives", fetch)
    settings = Params(acquire=Acquire(source="coco2017", download="coco", url="http://127.0.0.1"))
    acquire.run(settings, project)
    assert fetched == [("http://127.0.0.1", project / "coco")]
    assert acquire.read_source(project).root == "coco"
    folders = {archive.folder for archive in download.COCO_2017}
    assert folders == {path.name for path in (project / "coco").iterdir()}


def test_reading_a_source_that_is_missing_or_broken(project: Path) -> None:
    with pytest.raises(UserError, match=r"source\.json: no such file; run 'dvc repro acquire' first"):
        acquire.read_source(project)
    acquire.run(params(), project)
    (project / "data/acquire/source.json").write_text("{}")
    with pytest.raises(
        UserError, match=r"source\.json: not written by acquire \(.*\); run 'dvc repro --force"
    ):
        acquire.read_source(project)
