"""Training examples from the shards: which worker sees what in which order, read, decoded and augmented.

The plan and the examples depend on the seed, the epoch and the worker's rank alone, however often a run was
interrupted. Row groups are read as a whole and their rows shuffled among each other: a good shuffle for the
price of reading forward. Threads decode and augment beside the training step; Ray Data could do it in other
processes, but on a small machine its executor alone takes more than half of a processor.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from personlab.ahead import ahead
from personlab.data.augment import augmented
from personlab.data.example import Example
from personlab.errors import UserError
from personlab.params import Train

_SHUFFLED: Final = 1024  # images, at least, among which the next one is drawn


@dataclass(frozen=True)
class Group:
    """A row group of a shard."""

    part: Path
    index: int
    rows: int


@dataclass(frozen=True)
class Passage:
    """Row groups that are read together, and which of their shuffled rows are wanted: first <= i < last."""

    epoch: int
    groups: tuple[Group, ...]
    first: int
    last: int


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
) -> Iterator[Passage]:
    """What one of `workers` reads from step `done` on to the last.

    Every epoch deals the row groups out anew. All workers take equally many whole batches of their hand; the
    rest, less than what the hands differ by and a batch, is not seen in that epoch.

    Raises:
        UserError: there are fewer row groups than workers, or too few images for a batch.
    """
    size = train.batch // workers
    skipped, wanted, passed = done * size, train.steps * size, 0
    for epoch in itertools.count():
        order = np.random.default_rng((train.seed, epoch)).permutation(len(shards))
        hands = [[shards[i] for i in order[worker::workers]] for worker in range(workers)]
        rows = min(sum(group.rows for group in hand) for hand in hands) // size * size
        if not rows:
            raise UserError(
                f"{sum(group.rows for group in shards)} images in {len(shards)} row groups do not give each "
                f"of {workers} workers a batch of {size}: lower train.batch, train.workers or "
                "targets.row_group"
            )
        for window in _windows(hands[rank]):
            taken = min(sum(group.rows for group in window), rows, wanted - passed)
            first = max(0, skipped - passed)
            if first < taken:
                yield Passage(epoch, tuple(window), first, taken)
            passed, rows = passed + taken, rows - taken
        if passed >= wanted:
            return


def feed(
    shards: Path, train: Train, *, rank: int, workers: int, done: int, threads: int
) -> Iterator[list[Example]]:
    """One worker's share of every batch, from step `done` to the last, prepared ahead in `threads`.

    Raises:
        UserError: as `plan`.
    """
    size = train.batch // workers
    passages = plan(row_groups(shards), train, rank=rank, workers=workers, done=done)
    rows = ((row, passage.epoch) for passage in passages for row in _shuffled(passage, train.seed))
    examples = ahead(
        lambda each: augmented(each[0], train, epoch=each[1]), rows, threads=threads, depth=2 * size + threads
    )
    while batch := list(itertools.islice(examples, size)):
        yield batch


def _shuffled(passage: Passage, seed: int) -> Iterator[dict[str, Any]]:
    table = pa.concat_tables(pq.ParquetFile(g.part).read_row_group(g.index) for g in passage.groups)
    # The first image stands for the passage: no two of an epoch begin with the same.
    rng = np.random.default_rng((seed, passage.epoch, table["image_id"][0].as_py()))
    for index in rng.permutation(len(table))[passage.first : passage.last]:
        yield table.slice(index, 1).to_pylist()[0]


def _windows(hand: Sequence[Group]) -> Iterator[list[Group]]:
    """Row groups in runs of at least `_SHUFFLED` rows, but for the last."""
    window = list[Group]()
    for group in hand:
        window.append(group)
        if sum(each.rows for each in window) >= _SHUFFLED:
            yield window
            window = []
    if window:
        yield window
