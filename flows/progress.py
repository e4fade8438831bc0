"""How far a stage is, as a bar in the UI that moves while the stage works."""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from uuid import UUID

import httpx
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.exceptions import PrefectException

from personlab.utils.process import OutputLine, Progress
from personlab.utils.progress import duration

EVERY = 5.0  # seconds at least between two updates


@dataclass
class ProgressBar:
    """One artifact for the running flow; it appears with the first line that says how far the stage is."""

    key: str
    clock: Callable[[], float] = time.monotonic
    artifact: UUID | None = None
    updated: float = float("-inf")
    pace: "Pace | None" = field(default=None)
    news: str = ""  # the last line that said more than how far the loop is

    def hear(self, said: OutputLine) -> None:
        """Update the bar, if the line says how far the stage is."""
        progress, now = said.progress, self.clock()
        if progress is None or not progress.total:
            return
        if self.pace is None or self.pace.label != progress.label:
            self.pace, self.news = Pace(progress.label, progress.done, now), ""
        self.news = news_in(said.text, progress) or self.news
        finished = progress.done >= progress.total
        if now - self.updated < EVERY and not finished:
            return
        self.updated = now
        # A server that is gone must not end a training that is not.
        with suppress(httpx.HTTPError, PrefectException):
            self._show(100 * progress.done / progress.total, described(progress, self.pace, now, self.news))

    def _show(self, percent: float, description: str) -> None:
        if self.artifact is None:
            made = create_progress_artifact(percent, key=self.key, description=description)
            assert isinstance(made, UUID)  # and no coroutine: stage flows are not async
            self.artifact = made
        else:
            update_progress_artifact(self.artifact, percent, description=description)


@dataclass(frozen=True)
class Pace:
    """Where a loop was when we first heard of it: one that goes on from a checkpoint does not start at 0."""

    label: str
    done: int
    since: float

    def seconds_left(self, progress: Progress, now: float) -> float | None:
        steps, seconds = progress.done - self.done, now - self.since
        if steps <= 0 or progress.total is None:
            return None
        return (progress.total - progress.done) * seconds / steps


def news_in(text: str, progress: Progress) -> str:
    """What a line says beside how far the loop is."""
    rest = text.removeprefix(f"{progress.label}: ")
    return "" if rest.startswith(f"{progress.done}/") else rest


def described(progress: Progress, pace: Pace, now: float, news: str) -> str:
    """E.g. "train: 150 of 2500, 12.3 min left; heatmap 0.0123, seg 0.1034"."""
    text = f"{progress.label}: {progress.done} of {progress.total}"
    left = pace.seconds_left(progress, now)
    if left is not None:
        text += f", {duration(left)} left"
    return f"{text}; {news}" if news else text
