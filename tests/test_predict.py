"""Many pictures in, one folder out."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle_tools

from personlab import tables
from personlab.data.transform import ImageArray
from personlab.errors import UserError
from personlab.inference.pictures import find
from personlab.inference.predict import Format, Output, Unread, predict
from personlab.people import Detection
from personlab.skeleton import KEYPOINTS, K
from personlab.utils.progress import progress

HEIGHT, WIDTH = 60, 80


@dataclass(frozen=True)
class Seer:
    """A predictor that sees the same person, sure, and another, unsure, in every picture."""

    masks: bool = True

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


def run(folder: Path, *wanted: Path, form: Format = "json", masks: bool = True) -> list[Unread]:
    output = Output(folder, form, params_hash="abc")
    return predict(Seer(masks), find(map(str, wanted)), output, progress=progress)  # type: ignore[arg-type]


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


def test_coco_results_say_whose_they_are(tmp_path: Path) -> None:
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
    expected = Seer().person(np.zeros((HEIGHT, WIDTH, 3), np.uint8), 0.9)
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


def test_unsure_people_are_not_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = picture(tmp_path / "a.png")
    monkeypatch.setattr(Seer, "__call__", lambda self, image: [self.person(image, 0.1)])
    run(tmp_path / "out", path)
    overlay = np.asarray(Image.open(tmp_path / "out/overlays/a.jpg")).astype(int)
    assert abs(overlay - 90).max() <= 2


def test_what_cannot_be_read_is_returned_and_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = tmp_path / "text.jpg"
    text.write_text("nothing but text")
    with caplog.at_level(logging.INFO):
        unread = run(tmp_path / "out", tmp_path / "none.jpg", text, picture(tmp_path / "z.png"), form="coco")
    assert [(item.path.name, item.reason) for item in unread] == [
        ("none.jpg", "no such file"),
        ("text.jpg", "is not an image of any format that can be read here"),
    ]
    assert [image["id"] for image in json.loads((tmp_path / "out/images.json").read_text())] == [3]
    assert "3 pictures in = 1 predicted + 2 not read, 1 people" in caplog.text


def test_the_same_name_in_two_folders_is_two_pictures(tmp_path: Path) -> None:
    a, b = picture(tmp_path / "a/x.png"), picture(tmp_path / "b/x.jpg", size=(30, 20))
    run(tmp_path / "out", a, b)
    assert files(tmp_path / "out") == ["overlays/x-2.jpg", "overlays/x.jpg", "x-2.json", "x.json"]
    assert json.loads((tmp_path / "out/x-2.json").read_text())["file_name"] == str(b)


def test_an_overlay_never_replaces_a_picture(tmp_path: Path) -> None:
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


def test_the_same_pictures_give_the_same_bytes(tmp_path: Path) -> None:
    path = picture(tmp_path / "x.png")
    for out in ("one", "two"):
        run(tmp_path / out, path, form="parquet")
    for name in files(tmp_path / "one"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
