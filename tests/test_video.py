"""Videos in, annotated videos and a row for each frame out."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from personlab import tables
from personlab.data.transform import ImageArray
from personlab.errors import UserError
from personlab.inference import video
from personlab.inference.predict import Format, Output
from personlab.inference.video import Frame, Video, is_video
from personlab.people import Detection
from personlab.skeleton import COCO_PERSON
from personlab.utils.progress import progress
from tests.test_predict import FixedPredictor, files, picture

HEIGHT, WIDTH, FPS = 96, 128, 25.0


def clip(path: Path, frames: int = 12, codec: str = "mp4v") -> Path:
    """Noise, which moves to the right by 4 pixels a frame."""
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3)).astype(np.uint8)
    noise = noise.repeat(8, axis=0).repeat(8, axis=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*codec), FPS, (WIDTH, HEIGHT))
    for number in range(frames):
        writer.write(np.roll(noise, 4 * number, axis=1))
    writer.release()
    return path


def run(
    folder: Path,
    *places: Path | str,
    form: Format = "json",
    predict: Callable[[ImageArray], list[Detection]] | None = None,
    images: tuple[str, ...] = (),
) -> tuple[list[str], list[str]]:
    """Predict videos; returns the failures and the lines that are shown."""
    predictor: Any = FixedPredictor()
    if predict:
        predictor = type("Predictor", (), {"__call__": staticmethod(predict), "skeleton": COCO_PERSON})()
    lines = list[str]()
    failures = video.predict(
        predictor,
        list(map(str, places)),
        Output(folder, form, params_hash="abc", skeleton=COCO_PERSON),
        images=images,
        progress=progress,
        report=lines.append,
    )
    return failures, lines


def frames_of(path: Path) -> list[ImageArray]:
    capture, frames = cv2.VideoCapture(str(path)), []
    while (decoded := capture.read())[0]:
        frames.append(decoded[1])
    return frames


def records(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text())
    return found


def damaged(path: Path) -> Path:
    """A twentieth of the file, in its middle, is zeros."""
    content = bytearray(path.read_bytes())
    start, length = len(content) // 2, len(content) // 20
    content[start : start + length] = bytes(length)
    path.write_bytes(content)
    return path


# --- what is written ----------------------------------------------------------------------------------------


def test_a_row_for_each_frame_and_an_annotated_video(tmp_path: Path) -> None:
    path = clip(tmp_path / "in/walk.mp4")
    failures, lines = run(tmp_path / "out", path)
    assert failures == []
    assert files(tmp_path / "out") == ["overlays/walk.mp4", "walk.json"]
    rows = records(tmp_path / "out/walk.json")
    assert [row["id"] for row in rows] == list(range(12))
    assert [row["milliseconds"] for row in rows] == [40.0 * number for number in range(12)]
    assert {(row["file_name"], row["height"], row["width"]) for row in rows} == {(str(path), HEIGHT, WIDTH)}
    assert all([person["score"] for person in row["people"]] == [0.9, 0.1] for row in rows)
    assert lines[0].startswith(f"{path}: 12 frames, at most 1 person at a time, ")
    assert lines[0].endswith(f" frames/s, {tmp_path}/out/overlays/walk.mp4")

    overlay, original = frames_of(tmp_path / "out/overlays/walk.mp4"), frames_of(path)
    assert len(overlay) == 12
    assert cv2.VideoCapture(str(tmp_path / "out/overlays/walk.mp4")).get(cv2.CAP_PROP_FPS) == FPS
    for drawn, frame in zip(overlay, original, strict=True):
        difference = np.abs(drawn.astype(int) - frame)
        assert difference[-HEIGHT // 8 :].mean() < 12  # the codec's
        assert difference[HEIGHT // 4 : HEIGHT // 2, WIDTH // 5 : WIDTH // 2].mean() > 30  # the mask


def test_the_table_holds_what_the_json_file_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "_ROWS", 5)
    path = clip(tmp_path / "walk.mp4")
    run(tmp_path / "out", path)
    run(tmp_path / "out", path, form="parquet")
    assert files(tmp_path / "out") == ["overlays/walk.mp4", "walk.json", "walk.parquet"]
    table = tables.read_table(tmp_path / "out/walk.parquet", tables.FRAMES).to_pylist()
    rows = records(tmp_path / "out/walk.json")
    for name, kept in {"image_id": "id", "milliseconds": "milliseconds", "height": "height"}.items():
        assert [row[name] for row in table] == [row[kept] for row in rows]
    person = Detection.from_row(table[7]["people"][0])
    expected = FixedPredictor().person(np.zeros((HEIGHT, WIDTH, 3), np.uint8), 0.9)
    np.testing.assert_array_equal(person.keypoints, expected.keypoints)


def test_the_predictor_sees_rgb(tmp_path: Path) -> None:
    writer = cv2.VideoWriter(
        str(tmp_path / "red.mp4"), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"mp4v"), FPS, (64, 64)
    )
    writer.write(np.full((64, 64, 3), (0, 0, 255), np.uint8))
    writer.release()
    seen = list[ImageArray]()

    def predictor(image: ImageArray) -> list[Detection]:
        seen.append(image)
        return []

    run(tmp_path / "out", tmp_path / "red.mp4", predict=predictor)
    red, green, blue = seen[0].mean(axis=(0, 1))
    assert red > 230
    assert max(green, blue) < 25


def test_files_of_images_and_videos_have_their_own_names(tmp_path: Path) -> None:
    names = [clip(tmp_path / name) for name in ("one/a.mp4", "two/a.avi")]
    run(tmp_path / "out", *names, images=("a.jpg",))
    assert files(tmp_path / "out") == ["a-2.json", "a-3.json", "overlays/a-2.mp4", "overlays/a-3.mp4"]


def test_every_frame_of_a_film_appears_at_its_time(tmp_path: Path) -> None:
    """Of irregular frames, as phones record them: at 0, 40, 200 and 210 ms."""
    film = video._Film(tmp_path / "film.mp4", FPS)
    shades = {0.0: 0, 40.0: 80, 200.0: 160, 210.0: 240}
    for milliseconds, shade in shades.items():
        film.add(np.full((HEIGHT, WIDTH, 3), shade, np.uint8), milliseconds)
    film.finish()
    found = [frame.mean() for frame in frames_of(tmp_path / "film.mp4")]
    np.testing.assert_allclose(found, [0, 80, 80, 80, 80, 160, 240], atol=4)


# --- what cannot be read ------------------------------------------------------------------------------------


def test_damaged_frames_are_counted_and_the_others_keep_their_times(tmp_path: Path) -> None:
    path = damaged(clip(tmp_path / "walk.mp4", frames=60))
    failures, lines = run(tmp_path / "out", path)
    assert failures == []
    rows = records(tmp_path / "out/walk.json")
    times = [row["milliseconds"] for row in rows]
    lost = 60 - len(rows)
    assert 0 < lost < 20
    assert f"{len(rows)} frames, {lost} unreadable" in lines[0]
    assert [row["id"] for row in rows] == list(range(len(rows)))
    assert times[-1] == 40.0 * 59
    assert len(frames_of(tmp_path / "out/overlays/walk.mp4")) == 60


def test_a_file_that_ends_early_is_read_to_its_end(tmp_path: Path) -> None:
    path = clip(tmp_path / "walk.avi", frames=60)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    failures, lines = run(tmp_path / "out", path)
    assert failures == []
    rows = records(tmp_path / "out/walk.json")
    assert 20 < len(rows) < 40
    assert f"{len(rows)} frames, 60 announced" in lines[0]


def test_what_is_no_video_does_not_stop_the_others(tmp_path: Path) -> None:
    text = tmp_path / "text.mp4"
    text.write_text("nothing but text")
    empty = clip(tmp_path / "empty.avi", frames=0)
    failures, lines = run(
        tmp_path / "out", text, tmp_path / "none.mp4", "s3://bucket/a.mp4", empty, clip(tmp_path / "walk.mp4")
    )
    assert failures[:3] == [
        f"{text}: cannot be opened as a video: damaged, incomplete, or of an unknown format",
        f"{tmp_path}/none.mp4: no such file",
        "s3://bucket/a.mp4: videos are read from local disks only: download it first",
    ]
    assert failures[3].startswith(f"{empty}: ")
    assert len(failures) == 4
    assert len(lines) == 1
    assert files(tmp_path / "out") == ["overlays/walk.mp4", "walk.json"]


def test_an_interrupted_run_leaves_nothing(tmp_path: Path) -> None:
    seen = 0

    def predictor(image: ImageArray) -> list[Detection]:
        nonlocal seen
        seen += 1
        if seen == 8:
            raise KeyboardInterrupt
        return []

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "out", clip(tmp_path / "walk.mp4"), predict=predictor)
    assert files(tmp_path / "out") == []


def test_a_full_disk_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "film.mp4").symlink_to("/dev/full")
    film = video._Film(tmp_path / "film.mp4", FPS)
    film.add(np.zeros((HEIGHT, WIDTH, 3), np.uint8), 0.0)
    with pytest.raises(UserError, match="cannot be written; is the disk full"):
        film.finish()


def test_an_overlay_never_replaces_a_video(tmp_path: Path) -> None:
    path = clip(tmp_path / "out/overlays/walk.mp4")
    content = path.read_bytes()
    with pytest.raises(UserError, match="would replace this video"):
        run(tmp_path / "out", path)
    assert path.read_bytes() == content


@pytest.mark.parametrize("form", ["coco", "coco-dataset"])
def test_formats_of_images_are_refused(tmp_path: Path, form: Format) -> None:
    with pytest.raises(UserError, match="the format of videos is json or parquet"):
        run(tmp_path / "out", clip(tmp_path / "walk.mp4"), form=form)


# --- memory and cameras -------------------------------------------------------------------------------------


def test_few_frames_are_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = predicted = most = 0
    original = Video.frames

    def frames(self: Video, *arguments: Any) -> Iterator[Frame]:
        nonlocal read, most
        for frame in original(self, *arguments):
            read += 1
            most = max(most, read - predicted)
            yield frame

    def predictor(image: ImageArray) -> list[Detection]:
        nonlocal predicted
        predicted += 1
        return []

    monkeypatch.setattr(Video, "frames", frames)
    run(tmp_path / "out", clip(tmp_path / "walk.mp4", frames=200), predict=predictor)
    assert (read, predicted) == (200, 200)
    assert most <= video._AHEAD + 4


def test_a_camera_is_read_until_it_is_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file stands in for the camera."""
    path = str(clip(tmp_path / "walk.mp4", frames=200))
    monkeypatch.setattr(video, "_capture", lambda place: cv2.VideoCapture(path))
    monkeypatch.chdir(tmp_path)
    before = signal.getsignal(signal.SIGINT)
    seen = 0

    def predictor(image: ImageArray) -> list[Detection]:
        nonlocal seen
        seen += 1
        if seen == 8:
            os.kill(os.getpid(), signal.SIGINT)
        return []

    failures, lines = run(tmp_path / "out", "0", predict=predictor)
    assert failures == []
    assert files(tmp_path / "out") == ["camera-0.json", "overlays/camera-0.mp4"]
    rows = records(tmp_path / "out/camera-0.json")
    assert 8 <= len(rows) <= 8 + video._AHEAD + 4
    assert "announced" not in lines[0]
    times = [row["milliseconds"] for row in rows]
    assert times == sorted(times)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_camera_that_is_not_there(tmp_path: Path) -> None:
    assert run(tmp_path, "9876")[0] == ["9876: no camera has this number, or another program uses it"]


def test_files_and_folders_come_before_cameras(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_video("0")
    assert is_video("1")
    picture(Path("photo.png")).rename("0")
    Path("1").mkdir()
    assert not is_video("0")
    assert not is_video("1")
    assert is_video("A.MP4")
    Path("folder.mov").mkdir()
    assert not is_video("folder.mov")
    assert not is_video("photo.jpg")
