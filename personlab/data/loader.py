"""Load training batches from image and target shards: read, decode and augment, in a reproducible order.

All workers together see one sequence of images that depends on the seed alone: epoch after epoch, every image
once per epoch. Step t takes the t-th `batch` images of the sequence, and every worker its share of them. The
number of workers and interruptions therefore change nothing.

Threads decode and augment: while the network computes on a GPU, or between its steps on a CPU, where both
would compete for the same cores (docs/notes/scaling.md). Ray Data could do it in other processes, at twice
the processor time and without this order (docs/notes/reliability.md).
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

from personlab.data.augment import augmented
from personlab.data.example import Example
from personlab.errors import UserError
from personlab.params import Train
from personlab.tables.shards import RowGroup, row_groups, with_people
from personlab.utils.prefetch import prefetch

# Least number of rows and of batches that are shuffled among each other. Their image files are held in
# memory.
_SHUFFLED_ROWS: Final = 1024
_SHUFFLED_BATCHES: Final = 32

_Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ReadChunk:
    """Row groups to read together, and the rows wanted of them, in order."""

    epoch: int
    groups: tuple[RowGroup, ...]
    rows: tuple[int, ...]  # indices into the concatenation of the groups


def plan(
    groups: Sequence[RowGroup],
    *,
    batch: int,
    steps: int,
    seed: int,
    rank: int = 0,
    workers: int = 1,
    done: int = 0,
) -> Iterator[ReadChunk]:
    """What the worker `rank` of `workers` reads for the steps after `done`, in order.

    Args:
        groups: all row groups; at least one row.
        batch: rows per step, over all workers.
    """
    rows = sum(group.rows for group in groups)
    share = batch // workers
    first, last = done * batch, steps * batch
    for epoch in itertools.count(first // rows):
        start = epoch * rows  # position in the sequence of all rows
        for number, window in enumerate(_windows(groups, batch, seed, epoch)):
            position = start + np.arange(sum(group.rows for group in window))
            slot = position % batch
            wanted = (slot // share == rank) & (first <= position) & (position < last)
            if wanted.any():
                rng = np.random.default_rng((seed, epoch, number))
                yield _read_chunk(epoch, window, shuffle_by_slot(slot, rng)[wanted])
            start += len(position)
        if start >= last:
            return


def _windows(groups: Sequence[RowGroup], batch: int, seed: int, epoch: int) -> Iterator[list[RowGroup]]:
    """The row groups in random order, cut into runs of enough rows to shuffle."""
    enough = max(_SHUFFLED_ROWS, _SHUFFLED_BATCHES * batch)
    window = list[RowGroup]()
    for index in np.random.default_rng((seed, epoch)).permutation(len(groups)):
        window.append(groups[index])
        if sum(group.rows for group in window) >= enough:
            yield window
            window = []
    if window:
        yield window


def shuffle_by_slot(slot: _Ints, rng: np.random.Generator) -> _Ints:
    """A random order of a window's rows: N positions -> N rows.

    A slot (place in the batch) takes its rows from one run of neighbouring rows. A worker has only some of
    the slots, so it needs only some of the row groups.
    """
    rows = np.empty_like(slot)
    rows[np.lexsort((rng.random(len(slot)), slot))] = np.arange(len(slot))
    return rows


def _read_chunk(epoch: int, window: Sequence[RowGroup], rows: _Ints) -> ReadChunk:
    """Drop the row groups that hold none of the rows."""
    ends = np.cumsum([group.rows for group in window])
    groups = np.searchsorted(ends, rows, side="right")
    needed = np.unique(groups)
    sizes = [window[index].rows for index in needed]
    moved = np.zeros(len(window), np.int64)
    moved[needed] = (ends[needed] - sizes) - (np.cumsum(sizes) - sizes)
    return ReadChunk(epoch, tuple(window[i] for i in needed), tuple((rows - moved[groups]).tolist()))


def image_groups(images: Path) -> list[RowGroup]:
    """The row groups of the image shards to train on.

    Raises:
        UserError: there are no images.
    """
    groups = row_groups(images)
    if not sum(group.rows for group in groups):
        raise UserError(
            f"{images}: there are no images to train on; see data/ingest/rejects.parquet, or use other data"
        )
    return groups


def load_batches(
    images: Path,
    targets: Path,
    train: Train,
    *,
    rank: int,
    workers: int,
    done: int,
    threads: int,
    overlap: bool,
) -> Iterator[list[Example]]:
    """One worker's share of every batch after step `done`.

    Args:
        images, targets: folders of the shards.
        threads: how many decode and augment.
        overlap: prepare examples ahead, while the network computes on another device. Otherwise a batch is
            prepared when it is asked for: the threads of a step on the CPU wait for the slowest of them, and
            one that shares its core with an augmentation delays all.

    Raises:
        UserError: as `image_groups`; an image cannot be decoded.
    """
    share = train.batch // workers
    chunks = plan(
        image_groups(images),
        batch=train.batch,
        steps=train.steps,
        seed=train.seed,
        rank=rank,
        workers=workers,
        done=done,
    )

    def read(chunk: ReadChunk) -> tuple[ReadChunk, pa.Table]:
        return chunk, pa.concat_tables([with_people(group, targets) for group in chunk.groups])

    tables = prefetch(read, chunks, threads=1, depth=1)
    rows = ((row, table, chunk.epoch) for chunk, table in tables for row in chunk.rows)

    def example(item: tuple[int, pa.Table, int]) -> Example:
        row, table, epoch = item
        return augmented(table.slice(row, 1).to_pylist()[0], train, epoch=epoch)

    if overlap:
        examples = prefetch(example, rows, threads=threads, depth=2 * share + threads)
        while batch := list(itertools.islice(examples, share)):
            yield batch
        return
    with ThreadPoolExecutor(threads) as pool:
        while items := list(itertools.islice(rows, share)):
            yield list(pool.map(example, items))
