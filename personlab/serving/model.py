"""The model that is served: one prediction at a time, and a bounded queue."""

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from personlab import viz
from personlab.data import images
from personlab.inference.predict import draw_still
from personlab.inference.results import Result
from personlab.predictor import Predictor

log = logging.getLogger("personlab")


class BusyError(Exception):
    """The queue is full."""


@dataclass(frozen=True)
class Answer:
    """A prediction.

    Attributes:
        seconds: of decoding and prediction, without waiting and drawing.
        picture: JPEG of the image with its people drawn, if asked for.
    """

    result: Result
    seconds: float
    picture: bytes | None


@dataclass
class Served:
    """A model whose weights may be replaced while it is served.

    Predictions are made one after the other in a thread of their own: one prediction takes all processors.

    Attributes:
        find: the weights to serve now, for example those that a champion's link points to.
        load: the predictor of weights.
        queue: predictions that may wait or be made at a time; more are refused.
        most_pixels: larger images are refused before they are decoded.
    """

    find: Callable[[], Path]
    load: Callable[[Path], Predictor]
    queue: int = 16
    most_pixels: int = 40_000_000
    _weights: Path | None = None
    _predictor: Predictor | None = None
    _waiting: int = 0
    _thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))

    async def predict(self, content: bytes, *, draw: bool = False) -> Answer:
        """The people in an image file; with `draw` also a picture of them.

        Raises:
            BusyError: the queue is full.
            UserError: the content is no image that can be read, or has too many pixels.
        """
        if self._waiting >= self.queue:
            raise BusyError
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._thread, self._predict, content, draw
            )
        finally:
            self._waiting -= 1

    def predictor(self) -> Predictor:
        """The predictor of the weights to serve now; loads them if they are others than before."""
        weights = self.find().resolve()
        if self._predictor is None or weights != self._weights:
            self._predictor, self._weights = self.load(weights), weights
            log.info("serving %s", weights)
        return self._predictor

    def _predict(self, content: bytes, draw: bool) -> Answer:
        start = time.monotonic()
        predictor = self.predictor()
        image = images.decode(content, most_pixels=self.most_pixels)
        height, width = image.shape[:2]
        result = Result(1, "image", height, width, predictor(image), predictor.skeleton)
        seconds = time.monotonic() - start
        return Answer(result, seconds, viz.jpeg(draw_still(image, result)) if draw else None)
