"""What each worker reads, in which order, and that nothing depends on how often it was interrupted."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from personlab import tables
from personlab.data.loader import ReadChunk, image_groups, load_batches, plan
from personlab.errors import UserError
from personlab.params import Train
from personlab.tables.shards import RowGroup, row_groups
from tests.test_example import HEIGHT, WIDTH, person, row

Row = tuple[int, int, int]  # epoch, row group, row in it


def groups_of(sizes: Sequence[int]) -> list[RowGroup]:
    return [RowGroup(Path("part-00000.parquet"), index, rows) for index, rows in enumerate(sizes)]


def seen(chunks: Iterable[ReadChunk]) -> list[Row]:
    """Every row that is read, in order."""
    found = list[Row]()
    for chunk in chunks:
        rows = [(chunk.epoch, group.index, i) for group in chunk.groups for i in range(group.rows)]
        found += [rows[i] for i in chunk.rows]
    return found


def planned(groups: Sequence[RowGroup], train: Train, **changes: int) -> Iterator[ReadChunk]:
    return plan(groups, batch=train.batch, steps=train.steps, seed=train.seed, **changes)


def batches(sizes: Sequence[int], train: Train, workers: int, done: int = 0) -> list[list[Row]]:
    """What all workers together see at each step, worker after worker."""
    share = train.batch // workers
    hands = [
        seen(planned(groups_of(sizes), train, rank=r, workers=workers, done=done)) for r in range(workers)
    ]
    assert {len(hand) for hand in hands} == {share * (train.steps - done)}
    steps = range(0, len(hands[0]), share)
    return [[row for hand in hands for row in hand[at : at + share]] for at in steps]


SIZES = st.lists(st.integers(1, 700), min_size=1, max_size=9)


@settings(max_examples=60, deadline=None)
@given(SIZES, st.integers(1, 3), st.integers(1, 4), st.integers(1, 60), st.integers(0, 60))
def test_going_on_at_any_step_is_the_same_as_never_having_stopped(
    sizes: list[int], workers: int, share: int, steps: int, done: int
) -> None:
    train = Train(batch=workers * share, steps=steps, seed=5)
    done = min(done, steps)
    assert batches(sizes, train, workers, done) == batches(sizes, train, workers)[done:]


@settings(max_examples=30, deadline=None)
@given(SIZES, st.integers(1, 4), st.integers(0, 3))
def test_every_step_sees_the_same_images_however_many_workers(
    sizes: list[int], share: int, seed: int
) -> None:
    train = Train(batch=6 * share, steps=40, seed=seed)
    alone = batches(sizes, train, 1)
    assert all(batches(sizes, train, workers) == alone for workers in (2, 3))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.integers(1, 3), st.integers(0, 3))
@example([64] * 40, 3, 0)  # two windows
def test_every_image_is_seen_once_an_epoch(sizes: list[int], share: int, seed: int) -> None:
    images = sum(sizes)
    for workers in (1, 2, 3):
        train = Train(batch=workers * share, steps=-(-3 * images // (workers * share)), seed=seed)
        rows = [row for batch in batches(sizes, train, workers) for row in batch][: 3 * images]
        expected = {(epoch, g, i) for epoch in range(3) for g, size in enumerate(sizes) for i in range(size)}
        assert len(rows) == len(expected)
        assert set(rows) == expected
        epochs = [epoch for epoch, _, _ in rows]
        assert epochs == sorted(epochs)  # one after the other: only batches at the border hold two


def test_workers_read_what_they_need() -> None:
    """Of forty row groups, in windows of sixteen, and at most one more at either end of a worker's share."""
    train = Train(batch=8, steps=2560 // 8)
    chunks = [list(planned(groups_of([64] * 40), train, rank=rank, workers=4)) for rank in range(4)]
    assert [len(hand) for hand in chunks] == [3] * 4
    assert max(len(chunk.groups) for hand in chunks for chunk in hand) <= 16 / 4 + 1
    assert sum(len(chunk.groups) for hand in chunks for chunk in hand) <= 40 + 3 * 3


def test_epochs_and_seeds_are_shuffled_differently() -> None:
    def order(seed: int) -> list[list[tuple[int, int]]]:
        train = Train(batch=1, steps=300, seed=seed)
        rows = [(group, row) for _, group, row in seen(planned(groups_of([10] * 10), train))]
        return [rows[:100], rows[100:200], rows[200:]]

    assert order(0) == order(0)
    first, second, third = order(0)
    assert first != second != third != first
    assert sorted(first) != first
    assert order(0) != order(1)


def test_neighbours_do_not_stay_neighbours() -> None:
    """Rows of one row group are spread over the whole of their window."""
    train = Train(batch=8, steps=1280 // 8)
    order = seen(planned(groups_of([64] * 20), train))
    at = [place for place, (_, group, _) in enumerate(order) if group == order[0][1]]
    assert max(at) - min(at) > 900


def test_nothing_to_train_on(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no images to train on"):
        image_groups(tmp_path)


def test_fewer_images_than_a_batch_come_again() -> None:
    assert [len(set(batch)) for batch in batches([2], Train(batch=4, steps=3), 2)] == [4] * 3


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """images/ and targets/: two parts of seven images each, in row groups of three."""
    image = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    for part in range(2):
        ids = range(7 * part, 7 * part + 7)
        rows = [{**row(image, person(image_id)), "image_id": image_id} for image_id in ids]
        for folder, schema in (("images", tables.IMAGES), ("targets", tables.TARGETS)):
            path = tmp_path / folder / f"part-{part:05}.parquet"
            table = pa.Table.from_pylist(rows, schema=schema)
            tables.write_table(table, path, params_hash="x", row_group_size=3)
    return tmp_path


def test_examples_come_in_the_planned_order_whatever_the_threads_and_workers(shards: Path) -> None:
    assert [group.rows for group in row_groups(shards / "images")] == [3, 3, 1, 3, 3, 1]
    train = Train(crop=65, stride=8, batch=4, steps=7, seed=2)

    def images(
        threads: int, done: int = 0, workers: int = 1, overlap: bool = True
    ) -> list[tuple[int, torch.Tensor]]:
        hands = [
            list(
                load_batches(
                    shards / "images",
                    shards / "targets",
                    train,
                    rank=rank,
                    workers=workers,
                    done=done,
                    threads=threads,
                    overlap=overlap,
                )
            )
            for rank in range(workers)
        ]
        assert [len(share) for share in hands[0]] == [4 // workers] * (7 - done)
        steps = zip(*hands, strict=True)
        return [(e.image_id, e.people.keypoints) for step in steps for share in step for e in share]

    alone = images(threads=1)
    assert sorted(image_id for image_id, _ in alone[:14]) == list(range(14))  # an epoch
    for others, expected in (
        (images(threads=3), alone),
        (images(threads=1, overlap=False), alone),
        (images(threads=3, done=4, workers=2, overlap=False), alone[16:]),
        (images(threads=1, done=4), alone[16:]),
        (images(threads=1, workers=2), alone),
    ):
        assert [image_id for image_id, _ in others] == [image_id for image_id, _ in expected]
        for (_, found), (_, keypoints) in zip(others, expected, strict=True):
            assert torch.equal(found, keypoints)


def test_targets_of_other_images_are_refused(shards: Path) -> None:
    first, second = (shards / "targets" / f"part-{part:05}.parquet" for part in range(2))
    first.write_bytes(second.read_bytes())
    train = Train(crop=65, stride=8, batch=4, steps=7)
    with pytest.raises(UserError, match=r"part-00000\.parquet: not of the images in"):
        list(
            load_batches(
                shards / "images",
                shards / "targets",
                train,
                rank=0,
                workers=1,
                done=0,
                threads=1,
                overlap=False,
            )
        )
