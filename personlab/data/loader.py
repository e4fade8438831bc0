"""Load training batches from image and target shards: read, decode and augment, in a reproducible order.

The order is one sequence of images that depends on the seed only and holds every image once per epoch. Step t
takes the t-th `batch` images, and each worker its share of them. It does not depend on the number of workers
or on interruptions.

Threads decode and augment: while the network computes if it is on a GPU; between its steps if it is on a CPU,
where both would compete for the same cores (docs/notes/scaling.md). Ray Data would use other processes, at
twice the CPU time and without this order (docs/notes/reliability.md).
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
from personlab.skeleton import Skeleton
from personlab.tables.shards import RowGroup, row_groups, with_people
from personlab.utils.prefetch import prefetch

# Row groups are shuffled in windows of at least this many rows and batches, whose image files are in memory.
_WINDOW_ROWS: Final = 1024
_WINDOW_BATCHES: Final = 32

_Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ReadChunk:
    """Row groups to read together, and the order in which to use some of their rows."""

    epoch: int
    groups: tuple[int, ...]  # indices of row groups
    rows: tuple[int, ...]  # indices into the concatenation of these groups


def plan(
    sizes: Sequence[int],
    *,
    batch: int,
    steps: int,
    seed: int,
    rank: int = 0,
    workers: int = 1,
    done: int = 0,
) -> Iterator[ReadChunk]:
    """The chunks that one worker reads for the steps after `done`, in order.

    Args:
        sizes: rows of each row group; at least one in all.
        batch: rows per step, over all workers.
    """
    rows = sum(sizes)
    share = batch // workers
    first, last = done * batch, steps * batch
    for epoch in itertools.count(first // rows):
        start = epoch * rows  # position in the sequence
        for number, window in enumerate(_windows(sizes, batch, seed, epoch)):
            position = start + np.arange(sum(sizes[group] for group in window))
            slot = position % batch
            selected = (slot // share == rank) & (first <= position) & (position < last)
            if selected.any():
                rng = np.random.default_rng((seed, epoch, number))
                yield _read_chunk(epoch, window, sizes, shuffle_by_slot(slot, rng)[selected])
            start += len(position)
        if start >= last:
            return


def _windows(sizes: Sequence[int], batch: int, seed: int, epoch: int) -> Iterator[list[int]]:
    """The row groups in random order, in windows to shuffle."""
    least = max(_WINDOW_ROWS, _WINDOW_BATCHES * batch)
    window = list[int]()
    for group in np.random.default_rng((seed, epoch)).permutation(len(sizes)).tolist():
        window.append(group)
        if sum(sizes[group] for group in window) >= least:
            yield window
            window = []
    if window:
        yield window


def shuffle_by_slot(slot: _Ints, rng: np.random.Generator) -> _Ints:
    """A random order of the rows of a window, given each position's slot in its batch: N -> N.

    A slot takes its rows from a run of neighbouring rows. A worker has only some of the slots, so it reads
    only some of the row groups.
    """
    rows = np.empty_like(slot)
    rows[np.lexsort((rng.random(len(slot)), slot))] = np.arange(len(slot))
    return rows


def _read_chunk(epoch: int, window: Sequence[int], sizes: Sequence[int], rows: _Ints) -> ReadChunk:
    """The chunk of some rows of a window, without the row groups that hold none of them."""
    counts = np.array([sizes[group] for group in window])
    ends = counts.cumsum()
    group = np.searchsorted(ends, rows, side="right")  # of each row
    needed = np.unique(group)
    dropped = np.zeros(len(window), np.int64)  # rows before each needed group that are not read
    dropped[needed] = ends[needed] - counts[needed].cumsum()
    return ReadChunk(epoch, tuple(window[i] for i in needed), tuple((rows - dropped[group]).tolist()))


def image_groups(images: Path) -> list[RowGroup]:
    """The row groups of the image shards to train on.

    Raises:
        UserError: there are no images.
    """
    groups = row_groups(images)
    if not sum(group.rows for group in groups):
        raise UserError(
            f"{images}: no images to train on; see data/ingest/rejects.parquet, or use other data "
            "(acquire.source)"
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
    skeleton: Skeleton,
) -> Iterator[list[Example]]:
    """One worker's share of every batch after step `done`.

    Args:
        images, targets: folders of the shards.
        threads: number of threads that decode and augment.
        overlap: prepare examples while the network computes on another device. Otherwise each batch is
            prepared on demand: a training step on the CPU is as slow as its slowest thread, which an
            augmentation on the same core would delay.

    Raises:
        UserError: there are no images, an image cannot be decoded, or the targets are those of other images.
    """
    share = train.batch // workers
    groups = image_groups(images)
    chunks = plan(
        [group.rows for group in groups],
        batch=train.batch,
        steps=train.steps,
        seed=train.seed,
        rank=rank,
        workers=workers,
        done=done,
    )

    def read(chunk: ReadChunk) -> tuple[ReadChunk, pa.Table]:
        return chunk, pa.concat_tables([with_people(groups[i], targets) for i in chunk.groups])

    tables = prefetch(read, chunks, threads=1, depth=1)
    rows = ((row, table, chunk.epoch) for chunk, table in tables for row in chunk.rows)

    def example(item: tuple[int, pa.Table, int]) -> Example:
        row, table, epoch = item
        return augmented(table.slice(row, 1).to_pylist()[0], train, epoch=epoch, skeleton=skeleton)

    if overlap:
        examples = prefetch(example, rows, threads=threads, depth=2 * share + threads)
        while batch := list(itertools.islice(examples, share)):
            yield batch
        return
    with ThreadPoolExecutor(threads) as pool:
        while items := list(itertools.islice(rows, share)):
            yield list(pool.map(example, items))
