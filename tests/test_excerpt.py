"""An excerpt of COCO, downloaded image by image from a server here in COCO's place."""

import io
import json
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from personlab import params
from personlab.data import download, excerpt
from personlab.data.download import Archive
from personlab.errors import UserError
from personlab.params import Acquire, Params
from personlab.stages import acquire, ingest
from personlab.tables.shards import row_groups
from tests.test_download import Server

TRAIN, VAL = (139, 785, 872), (9, 25)  # COCO's ids of images in its two splits
CATEGORIES = [{"id": 1, "name": "person", "keypoints": [f"point {n}" for n in range(17)], "skeleton": []}]


def jpeg(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def annotations(ids: tuple[int, ...]) -> bytes:
    content = {
        "categories": CATEGORIES,
        "images": [
            {"id": each, "file_name": f"{each:012}.jpg", "height": 48, "width": 64, "license": 1}
            for each in ids
        ],
        "annotations": [
            {
                "id": 10 * each + person,
                "image_id": each,
                "category_id": 1,
                "bbox": [4, 4, 30, 30],
                "area": 450.0,
                "iscrowd": 0,
                "keypoints": [10, 12, 2] * 17,
            }
            for each in ids
            for person in (0, 1)
        ],
    }
    return json.dumps(content).encode()


@pytest.fixture
def coco(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Serves the annotations of five images, and the images one by one."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for split, ids in (("train", TRAIN), ("val", VAL)):
            archive.writestr(f"annotations/person_keypoints_{split}2017.json", annotations(ids))
    content = packed.getvalue()
    described = Archive(
        "annotations.zip", "annotations", len(content), download.hashlib.md5(content).hexdigest()
    )
    monkeypatch.setattr(excerpt, "_ANNOTATIONS", (described,))
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)
    monkeypatch.chdir(tmp_path)
    with Server() as server:
        server.files = {"/annotations.zip": content}
        for split, ids in (("train", TRAIN), ("val", VAL)):
            server.files |= {f"/{split}2017/{each:012}.jpg": jpeg(each) for each in ids}
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def settings(server: Server, train: tuple[int, ...], val: tuple[int, ...]) -> Params:
    Path("ids.json").write_text(json.dumps({"train": train, "val": val}))
    return Params(acquire=Acquire(source="coco2017", download="coco", excerpt="ids.json", url=server.url))


def requests(server: Server) -> int:
    return len(server.ranges)


def packed(split: str) -> list[dict[str, Any]]:
    return [row for group in row_groups(Path(f"data/ingest/{split}")) for row in group.read().to_pylist()]


def test_only_the_images_of_the_excerpt_are_downloaded_and_only_once(coco: Server) -> None:
    chosen = settings(coco, train=(139, 25), val=(872,))  # across COCO's own splits
    acquire.run(chosen, Path())
    assert requests(coco) == 1 + 3
    acquire.run(chosen, Path())
    assert requests(coco) == 1 + 3
    photos = {path.relative_to("coco/photos").as_posix() for path in Path("coco/photos").rglob("*.jpg")}
    assert photos == {"train2017/000000000139.jpg", "train2017/000000000872.jpg", "val2017/000000000025.jpg"}
    ingest.run(chosen, Path())
    source = acquire.read_source(Path())
    assert {name: (split.images, split.people) for name, split in source.splits.items()} == {
        "train": (2, 4),
        "val": (1, 2),
    }
    assert {row["image_id"]: row["image"] for row in packed("train")} == {139: jpeg(139), 25: jpeg(25)}
    assert {row["image_id"]: row["image"] for row in packed("val")} == {872: jpeg(872)}


def test_an_excerpt_that_grows_downloads_what_is_missing(coco: Server) -> None:
    acquire.run(settings(coco, train=(139,), val=(9,)), Path())
    before = requests(coco)
    acquire.run(settings(coco, train=(139, 785), val=(9,)), Path())
    assert requests(coco) == before + 1


def test_images_of_a_complete_coco_are_used(coco: Server) -> None:
    folder = Path("coco/train2017")
    folder.mkdir(parents=True)
    for each in TRAIN:
        (folder / f"{each:012}.jpg").write_bytes(jpeg(each))
    acquire.run(settings(coco, train=(139,), val=(9,)), Path())
    assert requests(coco) == 1 + 1
    assert not Path("coco/photos/train2017").exists()


def test_a_photo_that_breaks_off_is_continued(coco: Server) -> None:
    chosen = settings(coco, train=(139,), val=(9,))
    coco.breaks = [None, 100, 100]  # the archive arrives, both photos break off
    acquire.run(chosen, Path())
    assert Path("coco/photos/train2017/000000000139.jpg").read_bytes() == jpeg(139)
    assert not [*Path("coco/photos").rglob("*.part*")]


def test_a_photo_that_the_server_lacks_ends_it_with_nothing_written(coco: Server) -> None:
    del coco.files["/train2017/000000000139.jpg"]
    with pytest.raises(UserError, match=r"/train2017/000000000139\.jpg: the server answers 404"):
        acquire.run(settings(coco, train=(139,), val=(9,)), Path())
    assert not Path("data/acquire").exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"train": [1, 139], "val": [9]}', "COCO 2017 has no images with these ids: 1$"),
        ('{"train": [139, 139], "val": [9]}', "more than once: 139"),
        ('{"train": [139], "val": [139]}', "more than once: 139"),
        ('{"train": [139]}', r"ids\.json: not an excerpt of COCO: val"),
        ("139, 9", r"ids\.json: not an excerpt of COCO"),
        (None, r"ids\.json: no such file"),
    ],
)
def test_excerpts_that_are_wrong(coco: Server, content: str | None, reason: str) -> None:
    chosen = settings(coco, train=(139,), val=(9,))
    Path("ids.json").unlink()
    if content is not None:
        Path("ids.json").write_text(content)
    with pytest.raises(UserError, match=reason):
        acquire.run(chosen, Path())


def test_an_excerpt_is_of_coco() -> None:
    with pytest.raises(
        ValueError, match="excerpt is for source coco2017, not for sample: set it to data/none"
    ):
        params.Acquire(source="sample", excerpt="ids.json")
