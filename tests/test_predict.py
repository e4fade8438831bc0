"""Many images in, one folder out."""

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from pycocotools import mask as rle_tools
from pycocotools.coco import COCO

from personlab import tables
from personlab.data.transform import ImageArray
from personlab.errors import UserError
from personlab.inference.image_ids import AnnotatedImages
from personlab.inference.listing import list_all
from personlab.inference.predict import Format, Output, plan_images, predict
from personlab.inference.results import Result, coco_dataset
from personlab.params import Infer
from personlab.people import SHOWN, Detection
from personlab.predictor import Predictor
from personlab.skeleton import COCO_PERSON
from personlab.utils.progress import progress
from tests import layouts
from tests.batches import save_pictures
from tests.coco_person import KEYPOINTS, K
from tests.conftest import ROOT

HEIGHT, WIDTH = 60, 80
V01 = ROOT / "tests/fixtures/v0.1/model.safetensors"
HEIC_HEAD = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"


@dataclass(frozen=True)
class FixedPredictor:
    """Finds the same person with scores of 0.9 and 0.1 in every image."""

    masks: bool = True
    skeleton = COCO_PERSON

    def __call__(self, image: ImageArray) -> list[Detection]:
        return [self.person(image, score) for score in (0.9, 0.1)]

    def person(self, image: ImageArray, score: float) -> Detection:
        height, width = image.shape[:2]
        points = np.linspace((0.2, 0.25), (0.7, 0.75), K) * (width, height)
        mask = np.zeros((height, width), np.uint8, order="F")
        mask[height // 4 : height // 2, width // 5 : width // 2] = 1
        return Detection(
            keypoints=points.astype(np.float32),
            keypoint_scores=np.linspace(0.3, 1, K).astype(np.float32),
            score=score,
            rle=rle_tools.encode(mask)["counts"] if self.masks else b"",
        )


def picture(path: Path, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (90, 90, 90)).save(path)
    return path


def run(
    folder: Path,
    *places: Path,
    form: Format = "json",
    masks: bool = True,
    annotations: Path | None = None,
    min_score: float = SHOWN,
) -> list[str]:
    annotated = AnnotatedImages.read(annotations) if annotations else None
    person = annotated.person if annotated else 1
    output = Output(folder, form, params_hash="abc", person=person, skeleton=COCO_PERSON, min_score=min_score)
    listings, failures = list_all(map(str, places), leave_out=output.left_out)
    predictor: Any = FixedPredictor(masks)
    return failures + predict(
        predictor, listings, output, annotated=annotated, progress=progress, report=print
    )


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_json_names_keypoints_and_everything_is_in_place(tmp_path: Path) -> None:
    path = picture(tmp_path / "in/me.png")
    assert run(tmp_path / "out", path) == []
    assert files(tmp_path / "out") == ["me.json", "overlays/me.jpg"]
    found = json.loads((tmp_path / "out/me.json").read_text())
    assert (found["file_name"], found["height"], found["width"]) == (str(path), HEIGHT, WIDTH)
    assert [person["score"] for person in found["people"]] == [0.9, 0.1]
    person = found["people"][0]
    assert list(person["keypoints"]) == list(KEYPOINTS)
    assert person["keypoints"]["nose"] == {"x": 16.0, "y": 15.0, "score": 0.3}
    assert person["bbox"] == [16, 15, 24, 15]
    assert rle_tools.decode(person["segmentation"])[15:30, 16:40].all()
    overlay = np.asarray(Image.open(tmp_path / "out/overlays/me.jpg"))
    assert overlay.shape == (HEIGHT, WIDTH, 3)
    assert (overlay[20, 20] != 90).any()


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


def test_images_beside_each_other_have_the_files_of_each_alone(tmp_path: Path, two_threads: None) -> None:
    """Layers that two threads share, and images side by side in one thread each: the same bytes."""
    paths = sorted(save_pictures(tmp_path / "in", count=5).iterdir())
    predictor = Predictor.from_checkpoint(V01, Infer(sides=(129,)))

    def predict_all(folder: Path, *places: Path) -> None:
        output = Output(folder, "json", params_hash="", skeleton=COCO_PERSON)
        listings, _ = list_all(map(str, places), leave_out=())
        assert predict(predictor, listings, output, progress=progress, report=print) == []

    predict_all(tmp_path / "together", *paths)
    for path in paths:
        predict_all(tmp_path / "alone", path)
    assert len(files(tmp_path / "together")) == 10
    for name in files(tmp_path / "together"):
        assert (tmp_path / "together" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()


def test_coco_results_have_the_ids_of_cocos_file_names(tmp_path: Path) -> None:
    picture(tmp_path / "in/000000000139.jpg")
    picture(tmp_path / "in/000000000042.jpg", size=(30, 40))
    run(tmp_path / "out", tmp_path / "in", form="coco")
    assert files(tmp_path / "out")[:2] == ["images.json", "overlays/000000000042.jpg"]
    images = json.loads((tmp_path / "out/images.json").read_text())
    assert [(image["id"], image["height"]) for image in images] == [(42, 40), (139, HEIGHT)]
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert [(r["image_id"], r["category_id"], r["score"]) for r in results] == [
        *((42, 1, 0.9), (42, 1, 0.1), (139, 1, 0.9), (139, 1, 0.1))
    ]
    assert results[2]["keypoints"][:3] == [16.0, 15.0, 0.3]
    assert len(results[2]["keypoints"]) == 3 * K
    assert results[0]["segmentation"]["size"] == [40, 30]


def test_the_table_is_that_of_the_pipeline(tmp_path: Path) -> None:
    wanted = [picture(tmp_path / name) for name in ("7.png", "3.png")]
    run(tmp_path / "out", *wanted, form="parquet")
    table = tables.read_table(tmp_path / "out/predictions.parquet", tables.PREDICTIONS)
    assert table["image_id"].to_pylist() == [3, 7]
    found = Detection.from_row(table.to_pylist()[0]["people"][0])
    expected = FixedPredictor().person(np.zeros((HEIGHT, WIDTH, 3), np.uint8), 0.9)
    np.testing.assert_array_equal(found.keypoints, expected.keypoints)
    assert found.rle == expected.rle


@pytest.mark.parametrize("form", ["json", "coco", "parquet"])
def test_poses_without_masks_are_written_and_drawn(tmp_path: Path, form: Format) -> None:
    run(tmp_path / "out", picture(tmp_path / "a.png"), form=form, masks=False)
    overlay = np.asarray(Image.open(tmp_path / "out/overlays/a.jpg")).astype(int)
    assert (abs(overlay - 90) > 40).any()
    if form == "parquet":
        rows = tables.read_table(tmp_path / "out/predictions.parquet", tables.PREDICTIONS).to_pylist()
        assert rows[0]["people"][0]["mask"] == b""
        return
    people: Any = json.loads((tmp_path / f"out/{'a' if form == 'json' else 'results'}.json").read_text())
    person = (people["people"] if form == "json" else people)[0]
    assert "segmentation" not in person
    assert person["bbox"] == [16.0, 15.0, 40.0, 30.0]


def test_people_with_low_scores_are_not_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = picture(tmp_path / "a.png")
    monkeypatch.setattr(FixedPredictor, "__call__", lambda self, image: [self.person(image, 0.1)])
    run(tmp_path / "out", path)
    overlay = np.asarray(Image.open(tmp_path / "out/overlays/a.jpg")).astype(int)
    assert abs(overlay[: len(overlay) // 2] - 90).max() <= 2
    assert overlay.max() > 200  # a line at the bottom says that there is no person


def test_the_least_score_decides_who_is_drawn_and_in_a_dataset(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = picture(tmp_path / "a.png")
    for min_score, count in ((0.05, 2), (0.5, 1), (0.95, 0)):
        with caplog.at_level(logging.INFO):
            run(tmp_path / "out", path, form="coco-dataset", min_score=min_score)
        dataset = json.loads((tmp_path / "out/dataset.json").read_text())
        assert len(dataset["annotations"]) == count
        assert f"2 proposals, {count} with a score of at least {min_score:g}; " in caplog.text


def test_what_cannot_be_read_is_returned_with_reasons(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = tmp_path / "text.jpg"
    text.write_text("nothing but text")
    with caplog.at_level(logging.INFO):
        unread = run(tmp_path / "out", tmp_path / "none.jpg", text, picture(tmp_path / "z.png"), form="coco")
    assert unread == [
        f"{tmp_path}/none.jpg: no such file or folder",
        f"{text}: is not an image of any format that can be read here",
    ]
    assert [image["id"] for image in json.loads((tmp_path / "out/images.json").read_text())] == [2]
    counted = f"2 images = 1 predicted + 1 not read; 2 proposals, 1 with a score of at least {SHOWN:g}; "
    assert counted in caplog.text


def test_the_same_name_in_two_folders_is_two_images(tmp_path: Path) -> None:
    a, b = picture(tmp_path / "a/x.png"), picture(tmp_path / "b/x.jpg", size=(30, 20))
    run(tmp_path / "out", a, b)
    assert files(tmp_path / "out") == ["overlays/x-2.jpg", "overlays/x.jpg", "x-2.json", "x.json"]
    assert json.loads((tmp_path / "out/x-2.json").read_text())["file_name"] == str(b)


def test_an_overlay_never_replaces_an_image(tmp_path: Path) -> None:
    path = picture(tmp_path / "out/overlays/x.jpg")
    before = path.read_bytes()
    with pytest.raises(UserError, match="choose another --out"):
        run(tmp_path / "out", picture(tmp_path / "x.png"), path)
    assert path.read_bytes() == before


def test_a_link_in_the_place_of_an_overlay_is_not_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("mine")
    (tmp_path / "out/overlays").mkdir(parents=True)
    (tmp_path / "out/overlays/x.jpg").symlink_to(elsewhere)
    run(tmp_path / "out", picture(tmp_path / "x.png"))
    assert elsewhere.read_text() == "mine"


def test_a_file_where_the_folder_should_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(UserError, match=r"out/overlays: cannot be written"):
        run(tmp_path / "out", picture(tmp_path / "x.png"))


def test_the_same_images_give_the_same_bytes(tmp_path: Path) -> None:
    path = picture(tmp_path / "x.png")
    for out in ("one", "two"):
        run(tmp_path / out, path, form="parquet")
    for name in files(tmp_path / "one"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_second_run_does_not_predict_the_first_ones_overlays(tmp_path: Path) -> None:
    for folder, out in ((tmp_path / "a", tmp_path / "a/out"), (tmp_path / "b", tmp_path / "b")):
        picture(folder / "below/x.png")
        for _ in range(2):
            assert run(out, folder, form="parquet") == []
        assert {path.name for path in (out / "overlays").iterdir()} == {"x.jpg"}


def test_heic_without_its_extra_is_listed_with_the_way_out(tmp_path: Path) -> None:
    picture(tmp_path / "in/1.jpg")
    (tmp_path / "in/2.HEIC").write_bytes(HEIC_HEAD)
    (failure,) = run(tmp_path / "out", tmp_path / "in")
    assert failure.startswith(f"{tmp_path}/in/2.HEIC: ")
    assert "personlab[heif]" in failure or "not an image" in failure  # with the extra: its pixels are missing


def annotations(folder: Path, *images: dict[str, Any], person: int = 1) -> Path:
    content = {"images": list(images), "categories": [{"id": person, "name": "person"}]}
    path = folder / "annotations.json"
    path.write_text(json.dumps(content))
    return path


def test_ids_sizes_and_the_category_are_the_annotation_files(tmp_path: Path) -> None:
    """Images that are not annotated, or twice, or in another size, are listed with reasons."""
    listed = annotations(
        tmp_path,
        layouts.image(70, file_name="b.png", height=HEIGHT, width=WIDTH),
        layouts.image(80, file_name="val/a.png", height=HEIGHT, width=WIDTH),
        layouts.image(90, file_name="small.png", height=HEIGHT, width=WIDTH),
        person=0,
    )
    for name in ("val/a.png", "b.png", "b.jpg", "other.png"):
        picture(tmp_path / "in" / name)
    picture(tmp_path / "in/small.png", size=(20, 10))
    failures = run(tmp_path / "out", tmp_path / "in", form="coco", annotations=listed)
    assert [failure.removeprefix(f"{tmp_path}/in/") for failure in failures] == [
        f"b.jpg: may be b.png of {listed}, and so may {tmp_path}/in/b.png",
        f"other.png: is not among the images of {listed}",
        "small.png: is 20 x 10 pixels, the annotations say 80 x 60",
    ]
    images = json.loads((tmp_path / "out/images.json").read_text())
    assert [(image["id"], image["file_name"]) for image in images] == [(70, "b.png"), (80, "val/a.png")]
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert {(result["image_id"], result["category_id"]) for result in results} == {(70, 0), (80, 0)}


@pytest.mark.parametrize(("height", "width"), [(HEIGHT, WIDTH), (WIDTH, HEIGHT)], ids=["stored", "shown"])
def test_annotated_images_are_read_as_they_are_annotated(tmp_path: Path, height: int, width: int) -> None:
    """COCO annotates pixels as they are stored, some tools as EXIF has them shown."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "a.jpg", exif=exif)
    listed = annotations(tmp_path, layouts.image(7, file_name="a.jpg", height=height, width=width))
    assert run(tmp_path / "out", tmp_path / "a.jpg", annotations=listed) == []
    found = json.loads((tmp_path / "out/a.json").read_text())
    assert (found["height"], found["width"]) == (height, width)


@pytest.mark.parametrize("masks", [True, False])
def test_a_dataset_opens_in_annotation_tools(tmp_path: Path, masks: bool) -> None:
    """With images, categories and skeleton; annotated are the people who are drawn too."""
    for name in ("a/x.png", "b/x.png"):
        picture(tmp_path / "in" / name)
    run(tmp_path / "out", tmp_path / "in", form="coco-dataset", masks=masks)
    assert files(tmp_path / "out") == ["dataset.json", "overlays/x-2.jpg", "overlays/x.jpg"]
    dataset = COCO(str(tmp_path / "out/dataset.json"))
    assert [(image["id"], image["file_name"]) for image in dataset.dataset["images"]] == [
        *((1, "a/x.png"), (2, "b/x.png"))
    ]
    (category,) = dataset.dataset["categories"]
    assert (category["id"], category["name"], category["keypoints"]) == (1, "person", list(KEYPOINTS))
    assert sorted({end for edge in category["skeleton"] for end in edge}) == list(range(1, K + 1))
    person, other = dataset.loadAnns([1, 2])
    assert (person["image_id"], other["image_id"], len(dataset.anns)) == (1, 2, 2)
    assert (person["score"], person["iscrowd"], person["num_keypoints"]) == (0.9, 0, K)
    assert person["keypoints"][:6] == [16.0, 15.0, 2, 18.5, 16.88, 2]
    if not masks:
        assert "segmentation" not in person
        assert person["area"] == 40 * 30
        return
    assert person["area"] == 24 * 15
    assert person["segmentation"] == [[16.25, 15.25, 16.25, 29.75, 39.75, 29.75, 39.75, 15.25]]
    drawn = dataset.annToMask(person)
    assert drawn[15:30, 16:40].all()
    assert drawn.sum() == 24 * 15


def test_the_largest_polygon_comes_first() -> None:
    """Label Studio reads the first polygon alone."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    mask[2:6, 2:6] = mask[20:40, 20:40] = mask[50, 10:30] = 1
    rle = rle_tools.encode(mask)["counts"]
    keypoints = np.full((K, 2), 30, np.float32)
    scores = np.array([0.9] + [0.1] * (K - 1), np.float32)
    result = Result(1, "a.jpg", HEIGHT, WIDTH, [Detection(keypoints, scores, 0.5, rle)], skeleton=COCO_PERSON)
    (record,) = coco_dataset([result], skeleton=COCO_PERSON)["annotations"]
    assert [polygon[:2] for polygon in record["segmentation"]] == [
        [20.25, 20.25],
        [2.25, 2.25],
        [10.25, 50.25],
    ]
    assert (record["num_keypoints"], record["keypoints"][:6]) == (1, [30, 30, 2, 0, 0, 0])


def stems(*paths: str) -> list[str]:
    return [image.stem for image in plan_images(paths)]


def test_files_of_images_do_not_collide_even_where_case_does_not_count() -> None:
    names = stems("a/X.PNG", "a/x.jpg", "b/x.jpg", "b/é ü.webp", "x-2.jpg")
    assert names == ["X", "x-2", "x-3", "é ü", "x-2-2"]
    assert len({name.lower() for name in names}) == len(names)


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("a\nb.jpg", "a_b"),
        ("a;b|c.jpg", "a_b_c"),
        ("....jpg", "image"),
        (".. .x.jpg", "x"),
        ("漢" * 80 + ".jpg", "漢" * 50),
        ("con:.jpg", "con_"),
        ("faces.parquet#17", "faces_17"),
        ("no suffix", "no suffix"),
        (r"caf\xe9.jpg", "caf_xe9"),
    ],
)
def test_stems_are_valid_on_any_file_system(name: str, stem: str) -> None:
    assert stems(f"in/{name}") == [stem]


def test_rows_of_parquet_files_are_predicted(tmp_path: Path) -> None:
    cells = [picture(tmp_path / "x.png").read_bytes(), b"nothing", None]
    pq.write_table(pa.table({"image": pa.array(cells, pa.binary())}), tmp_path / "faces.parquet")
    failures = run(tmp_path / "out", tmp_path / "faces.parquet")
    assert [failure.partition(": ")[0] for failure in failures] == [
        *(f"{tmp_path}/faces.parquet#1", f"{tmp_path}/faces.parquet#2")
    ]
    assert files(tmp_path / "out") == ["faces_0.json", "overlays/faces_0.jpg"]
