"""Training examples from the shards: which worker sees what in which order, read, decoded and augmented.

All workers together see one sequence of images, which depends on the seed alone: epoch after epoch, every
image once in each. Step t takes the t-th `batch` images of it, and every worker its share of each step. So
the number of workers changes nothing, and neither does being interrupted.

Threads decode and augment: beside a training step on another device, in turn with one on the same processors
(docs/scaling.md has the figures). Ray Data could do it in other processes, at twice the processor time and
without what is promised here (docs/reliability.md).
"""

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from personlab.data.augment import augmented
from personlab.data.example import Example
from personlab.errors import UserError
from personlab.params import Train
from personlab.utils.prefetch import prefetch

# Images and batches that are shuffled among each other, at least. They are held in memory as JPEGs.
_SHUFFLED: Final = 1024
_SHUFFLED_BATCHES: Final = 32

_Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Group:
    """A row group of a shard."""

    part: Path
    index: int
    rows: int


@dataclass(frozen=True)
class ReadChunk:
    """Row groups that are read together, and which of their rows are wanted, in this order."""

    epoch: int
    groups: tuple[Group, ...]
    rows: tuple[int, ...]  # counted through all of the groups


def row_groups(shards: Path) -> list[Group]:
    """The row groups of all parts, in order."""
    return [
        Group(part, index, meta.row_group(index).num_rows)
        for part in sorted(shards.glob("part-*.parquet"))
        for meta in [pq.read_metadata(part)]
        for index in range(meta.num_row_groups)
    ]


def plan(
    shards: Sequence[Group], train: Train, *, rank: int = 0, workers: int = 1, done: int = 0
) -> Iterator[ReadChunk]:
    """What one of `workers` reads from step `done` on to the last.

    Raises:
        UserError: there are no images.
    """
    images = sum(group.rows for group in shards)
    if not images:
        raise UserError("there are no images to train on; see data/ingest/rejects.parquet, or use other data")
    share = train.batch // workers
    first, last = done * train.batch, train.steps * train.batch
    for epoch in itertools.count(first // images):
        start = epoch * images  # in the sequence of all images that are seen
        for number, window in enumerate(_windows(shards, train, epoch)):
            at = start + np.arange(sum(group.rows for group in window))
            place = at % train.batch  # in its batch
            wanted = (place // share == rank) & (first <= at) & (at < last)
            if wanted.any():
                rng = np.random.default_rng((train.seed, epoch, number))
                yield _read_chunk(epoch, window, shuffle_by_slot(place, rng)[wanted])
            start += len(at)
        if start >= last:
            return


def _windows(shards: Sequence[Group], train: Train, epoch: int) -> Iterator[list[Group]]:
    """An epoch's row groups in their order, cut where enough of them are together."""
    enough = max(_SHUFFLED, _SHUFFLED_BATCHES * train.batch)
    window = list[Group]()
    for index in np.random.default_rng((train.seed, epoch)).permutation(len(shards)):
        window.append(shards[index])
        if sum(group.rows for group in window) >= enough:
            yield window
            window = []
    if window:
        yield window


def shuffle_by_slot(place: _Ints, rng: np.random.Generator) -> _Ints:
    """Which of a window's rows comes when.

    place: of what comes when, in its batch. The same place always takes from the same run of neighbouring
    rows, in random order: so a worker, who has some of the places, needs only some of the row groups.
    """
    rows = np.empty_like(place)
    rows[np.lexsort((rng.random(len(place)), place))] = np.arange(len(place))
    return rows


def _read_chunk(epoch: int, window: Sequence[Group], rows: _Ints) -> ReadChunk:
    """Without the row groups that none of the rows is in."""
    ends = np.cumsum([group.rows for group in window])
    groups = np.searchsorted(ends, rows, side="right")
    needed = np.unique(groups)
    sizes = [window[index].rows for index in needed]
    moved = np.zeros(len(window), np.int64)
    moved[needed] = (ends[needed] - sizes) - (np.cumsum(sizes) - sizes)
    return ReadChunk(epoch, tuple(window[i] for i in needed), tuple((rows - moved[groups]).tolist()))


def load_batches(
    shards: Path, train: Train, *, rank: int, workers: int, done: int, threads: int, overlap: bool
) -> Iterator[list[Example]]:
    """One worker's share of every batch, from step `done` to the last, prepared by `threads`.

    overlap: prepare examples ahead, beside the step, as is right where that computes on another device. Else
    each batch is prepared when it is asked for: a step's threads wait for the slowest of them, and one that
    has to share its processor with an augmentation holds up all others for longer than that takes.

    Raises:
        UserError: as `plan`.
    """
    share = train.batch // workers
    chunks = plan(row_groups(shards), train, rank=rank, workers=workers, done=done)
    read = prefetch(_read, chunks, threads=1, depth=1)  # the next one while this one is augmented
    rows = ((row, window, chunk.epoch) for chunk, window in read for row in chunk.rows)

    def example(item: tuple[int, pa.Table, int]) -> Example:
        row, window, epoch = item
        return augmented(window.slice(row, 1).to_pylist()[0], train, epoch=epoch)

    if overlap:
        examples = prefetch(example, rows, threads=threads, depth=2 * share + threads)
        while batch := list(itertools.islice(examples, share)):
            yield batch
        return
    with ThreadPoolExecutor(threads) as pool:
        while asked := list(itertools.islice(rows, share)):
            yield list(pool.map(example, asked))


def _read(chunk: ReadChunk) -> tuple[ReadChunk, pa.Table]:
    groups = (pq.ParquetFile(group.part).read_row_group(group.index) for group in chunk.groups)
    return chunk, pa.concat_tables(groups)
