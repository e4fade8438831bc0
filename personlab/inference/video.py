"""Predict videos and cameras frame by frame, in bounded memory.

One thread reads ahead, a few predict a frame each, and another draws and writes; a few frames are held at a
time. The network takes single frames: on a CPU, batches are slower.
"""

import json
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from threading import Event
from typing import Any, Final, TypeVar

import cv2

from personlab import tables
from personlab.data.transform import ImageArray
from personlab.errors import UserError
from personlab.inference import results
from personlab.inference.predict import Output, draw, people_count, unique_stems
from personlab.inference.results import Result
from personlab.predictor import MOST_AT_A_TIME, Predictor, side_by_side
from personlab.utils.files import atomic_file
from personlab.utils.prefetch import prefetch
from personlab.utils.progress import Tracker

log = logging.getLogger("personlab")

T = TypeVar("T")

SUFFIXES: Final = frozenset(
    {".3gp", ".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv", ".webm", ".wmv"}
)
_CODEC: Final = "mp4v"  # OpenCV's wheels cannot write H.264, and VP9 takes 50 times as long
_RATES: Final = (1.0, 120.0)  # frames per second of what is written
_USUAL_RATE: Final = 30.0  # where none or an impossible one is stated
_LONGEST_GAP: Final = 10.0  # seconds for which a frame is repeated at most
_AHEAD: Final = 4  # frames that are read, and frames to be written, that wait
_ATTEMPTS: Final = 100  # at consecutive frames: a file continues after damaged ones
_ROWS: Final = 64  # per row group


def is_video(place: str) -> bool:
    """Whether a place is a video, by its suffix, or the number of a camera, unless a file has that name."""
    path = Path(place)
    return _is_camera(place) or (path.suffix.lower() in SUFFIXES and not path.is_dir())


def _is_camera(place: str) -> bool:
    return place.isdecimal() and not Path(place).exists()


def predict(
    predictor: Predictor,
    places: Sequence[str],
    output: Output,
    *,
    images: Sequence[str],
    progress: Tracker,
    report: Callable[[str], None],
) -> list[str]:
    """Predict the people of every frame of videos and cameras.

    Writes overlays/<stem>.mp4, and a row for each frame to <stem>.json (results.frame_record) or
    <stem>.parquet (tables.FRAMES). Cameras are read until Ctrl-C.

    Args:
        images: paths of the images whose results are in the same folder.
        report: takes a line about each video.

    Returns:
        The videos that could not be read, with the reason, as text. They do not stop the others.

    Raises:
        UserError: `output.form` is another; the folder cannot be written to; or an overlay would replace a
            video.
    """
    if places and output.form not in ("json", "parquet"):
        raise UserError(f"{places[0]}: the format of videos is json or parquet, not {output.form}")
    names = [f"camera-{place}" if _is_camera(place) else place for place in places]
    stems = list(unique_stems([*images, *names]))[len(images) :]
    failures = list[str]()
    for place, stem in zip(places, stems, strict=True):
        overlay = output.folder / "overlays" / f"{stem}.mp4"
        if overlay.exists() and Path(place).exists() and overlay.samefile(place):
            raise UserError(f"{overlay}: an overlay would replace this video; choose another --out")
        try:
            video = Video(place)
            report(f"{place}: {_predict(predictor, video, output, stem, overlay, progress)}, {overlay}")
        except UnreadableError as error:
            failures.append(f"{place}: {error}")
        except OSError as error:
            name = error.filename or output.folder
            raise UserError(f"{name}: cannot be written ({error.strerror})") from None
    return failures


def _predict(
    predictor: Predictor, video: "Video", output: Output, stem: str, overlay: Path, progress: Tracker
) -> str:
    """Predict and write a video; returns what there is to say about it."""

    def people_of(frame: Frame) -> tuple[Frame, Result]:
        height, width = frame.image.shape[:2]
        people = predictor(frame.image)
        return frame, Result(
            frame.number, video.place, height, width, people, predictor.skeleton, min_score=output.min_score
        )

    def write(predicted: tuple[Frame, Result]) -> int:
        frame, result = predicted
        film.add(draw(frame.image, result), frame.milliseconds)
        add_row(result, frame.milliseconds)
        return len(result.shown)

    started, frames, most = time.monotonic(), 0, 0
    with (
        _until_interrupted(video.place) if video.camera else nullcontext(Event()) as stop,
        atomic_file(overlay, suffix=".mp4") as partial,
        _rows(output, stem) as add_row,
        side_by_side(video.announced or MOST_AT_A_TIME) as threads,
    ):
        film = _Film(partial, video.fps)
        predicted = prefetch(people_of, _ahead(video.frames(stop)), threads=threads, depth=threads)
        with closing(prefetch(write, predicted, threads=1, depth=_AHEAD)) as written:
            for shown in progress(written, total=video.announced, label=f"predict {video.place}"):
                frames, most = frames + 1, max(most, shown)
        if not frames:
            raise UnreadableError("has no frame that can be read")
        film.finish()
    rate = frames / (time.monotonic() - started)
    lost = f", {video.unreadable} unreadable" if video.unreadable else ""
    if video.announced and abs(video.announced - frames - video.unreadable) > 1:
        lost += f", {video.announced} announced"
    return f"{frames} frames{lost}, at most {people_count(most)} at a time, {rate:.1f} frames/s"


def _ahead(items: Iterator[T]) -> Iterator[T]:
    """The items, taken from their iterator by a thread."""
    for item in prefetch(lambda _: next(items, None), count(), threads=1, depth=_AHEAD):
        if item is None:
            return
        yield item


@contextmanager
def _until_interrupted(camera: str) -> Iterator[Event]:
    """Ctrl-C sets the event, once for the time of the block."""
    log.info("camera %s: Ctrl-C ends it", camera)
    stop = Event()
    usual = signal.signal(signal.SIGINT, lambda *_: stop.set())
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, usual)


@contextmanager
def _rows(output: Output, stem: str) -> Iterator[Callable[[Result, float], None]]:
    """Yield a function that writes the row of a frame: its people and its time in milliseconds."""
    if output.form == "parquet":
        path = output.folder / f"{stem}.parquet"
        with tables.table_writer(path, tables.FRAMES, output.params_hash, row_group_size=_ROWS) as add:
            yield lambda result, at: add(results.frame_row(result, at))
        return
    with atomic_file(output.folder / f"{stem}.json") as partial, partial.open("w") as file:
        before = "[\n"

        def write(result: Result, at: float) -> None:
            nonlocal before
            file.write(before + json.dumps(results.frame_record(result, at), allow_nan=False))
            before = ",\n"

        yield write
        file.write("\n]\n")


# --- reading ------------------------------------------------------------------------------------------------


class UnreadableError(UserError):
    """A video cannot be read; the message is the reason."""


@dataclass(frozen=True)
class Frame:
    number: int  # among those that can be read, from 0
    milliseconds: float  # since the first one: the file's time stamp, or the clock's for a camera
    image: ImageArray


class Video:
    """An open video file or camera.

    Attributes:
        fps: frames per second that it states, if they can be.
        announced: number of frames that the file states, sometimes an estimate.
        unreadable: number of frames so far that could not be decoded, before one that could.

    Raises:
        UnreadableError: it cannot be opened.
    """

    def __init__(self, place: str) -> None:
        self.place, self.camera = place, _is_camera(place)
        self._capture = _capture(place)
        if not self._capture.isOpened():
            raise UnreadableError(
                "no camera has this number, or another program uses it"
                if self.camera
                else "cannot be opened as a video: damaged, incomplete, or of an unknown format"
            )
        fps, frames = (self._capture.get(name) for name in (cv2.CAP_PROP_FPS, cv2.CAP_PROP_FRAME_COUNT))
        self.fps: float = fps if _RATES[0] <= fps <= _RATES[1] else _USUAL_RATE
        self.announced = int(frames) if frames > 0 and not self.camera else None
        self.unreadable = 0

    def frames(self, stop: Event) -> Iterator[Frame]:
        """The frames that can be read, until the end or until `stop` is set."""
        number, failed, started = 0, 0, time.monotonic()
        while failed < _ATTEMPTS and not stop.is_set():
            decoded, pixels = self._capture.read()
            if not decoded:
                failed += 1
                continue
            self.unreadable, failed = self.unreadable + failed, 0
            clock = 1e3 * (time.monotonic() - started)
            at = clock if self.camera else self._capture.get(cv2.CAP_PROP_POS_MSEC)
            yield Frame(number, at, cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB))
            number += 1


def _capture(place: str) -> Any:
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)  # the reasons are in our errors
    if _is_camera(place):
        return cv2.VideoCapture(int(place))
    if "://" in place:
        raise UnreadableError("videos are read from local disks only: download it first")
    if not Path(place).exists():
        raise UnreadableError("no such file")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # else a line for each damaged packet
    return cv2.VideoCapture(place, cv2.CAP_FFMPEG)


# --- writing ------------------------------------------------------------------------------------------------


class _Film:
    """A video file with a constant frame rate, in which each frame appears at its time.

    Every frame is written once, and once more for each period until the next one.
    """

    def __init__(self, path: Path, fps: float) -> None:
        self._path, self._fps = path, fps
        self._writer: Any = None
        self._size = (0, 0)
        self._last: Any = None
        self._written = 0

    def add(self, image: ImageArray, milliseconds: float) -> None:
        if self._writer is None:
            self._size = image.shape[1], image.shape[0]
            codec = cv2.VideoWriter.fourcc(*_CODEC)
            self._writer = cv2.VideoWriter(str(self._path), cv2.CAP_FFMPEG, codec, self._fps, self._size)
        gap = round(milliseconds / 1e3 * self._fps) - self._written
        for _ in range(min(gap, round(_LONGEST_GAP * self._fps)) if self._written else 0):
            self._write(self._last)
        self._last = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        self._write(self._last)

    def _write(self, pixels: Any) -> None:
        self._writer.write(pixels)
        self._written += 1

    def finish(self) -> None:
        """Complete the file.

        Raises:
            UserError: it lacks frames; OpenCV does not say when it cannot write.
        """
        self._writer.release()
        if cv2.VideoCapture(str(self._path), cv2.CAP_FFMPEG).get(cv2.CAP_PROP_FRAME_COUNT) != self._written:
            raise UserError(f"{self._path.parent}: the video cannot be written; is the disk full?")
