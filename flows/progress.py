"""The progress of a command as a bar in the Prefect UI."""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from uuid import UUID

import httpx
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.exceptions import PrefectException

from personlab.utils.process import OutputLine

UPDATE_SECONDS = 5.0  # at least, between two updates


@dataclass
class ProgressBar:
    """A progress artifact of the running flow. It appears with the first line that reports progress.

    Its text is what `personlab.utils.progress` logged last, with the count of the last line, and the last
    other line of the loop: "train: 150/2500, 2.1/s, 19 min left; heatmap 0.0123, seg 0.1034".
    """

    key: str
    clock: Callable[[], float] = time.monotonic
    artifact: UUID | None = None
    updated: float = float("-inf")
    label: str = ""
    rate: str = ""  # ", 2.1/s, 19 min left"
    news: str = ""  # "heatmap 0.0123, seg 0.1034"

    def on_line(self, line: OutputLine) -> None:
        """Update the bar if the line reports progress."""
        progress, now = line.progress, self.clock()
        if progress is None or not progress.total:
            return
        if progress.label != self.label:
            self.label, self.rate, self.news = progress.label, "", ""
        text = line.text.removeprefix(f"{progress.label}: ")
        count = f"{progress.done}/{progress.total}"
        if text.startswith(count):
            self.rate = text.removeprefix(count)
        else:
            self.news = text
        finished = progress.done >= progress.total
        if now - self.updated < UPDATE_SECONDS and not finished:
            return
        self.updated = now
        shown = count if finished else count + self.rate
        # A server that does not answer must not end a training.
        with suppress(httpx.HTTPError, PrefectException):
            self._show(
                100 * progress.done / progress.total,
                f"{self.label}: {'; '.join(filter(None, (shown, self.news)))}",
            )

    def _show(self, percent: float, description: str) -> None:
        if self.artifact is None:
            created = create_progress_artifact(percent, key=self.key, description=description)
            assert isinstance(created, UUID)  # a coroutine in async flows only
            self.artifact = created
        else:
            update_progress_artifact(self.artifact, percent, description=description)
