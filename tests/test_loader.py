"""The order of training images: independent of the number of workers, of threads and of interruptions."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from personlab import tables
from personlab.data.example import Example
from personlab.data.loader import ReadChunk, image_groups, load_batches, plan
from personlab.errors import UserError
from personlab.params import Train
from personlab.skeleton import COCO_PERSON
from personlab.tables.shards import row_groups
from tests.test_example import HEIGHT, WIDTH, person, row

Row = tuple[int, int, int]  # epoch, row group, row in it


def planned(sizes: Sequence[int], train: Train, **changes: int) -> Iterator[ReadChunk]:
    return plan(sizes, batch=train.batch, steps=train.steps, seed=train.seed, **changes)


def order(sizes: Sequence[int], train: Train, **changes: int) -> list[Row]:
    """Every row that is used, in order."""
    used = list[Row]()
    for chunk in planned(sizes, train, **changes):
        rows = [(chunk.epoch, group, i) for group in chunk.groups for i in range(sizes[group])]
        used += [rows[i] for i in chunk.rows]
    return used


def batches(sizes: Sequence[int], train: Train, workers: int, done: int = 0) -> list[list[Row]]:
    """The rows of each step, worker after worker."""
    share = train.batch // workers
    orders = [order(sizes, train, rank=rank, workers=workers, done=done) for rank in range(workers)]
    assert {len(rows) for rows in orders} == {share * (train.steps - done)}
    starts = range(0, len(orders[0]), share)
    return [[row for rows in orders for row in rows[start : start + share]] for start in starts]


SIZES = st.lists(st.integers(1, 700), min_size=1, max_size=9)


@settings(max_examples=60, deadline=None)
@given(SIZES, st.integers(1, 3), st.integers(1, 4), st.integers(1, 60), st.integers(0, 60))
def test_a_resumed_run_sees_the_same_batches(
    sizes: list[int], workers: int, share: int, steps: int, done: int
) -> None:
    train = Train(batch=workers * share, steps=steps, seed=5)
    done = min(done, steps)
    assert batches(sizes, train, workers, done) == batches(sizes, train, workers)[done:]


@settings(max_examples=30, deadline=None)
@given(SIZES, st.integers(1, 4), st.integers(0, 3))
def test_batches_do_not_depend_on_the_number_of_workers(sizes: list[int], share: int, seed: int) -> None:
    train = Train(batch=6 * share, steps=40, seed=seed)
    alone = batches(sizes, train, 1)
    assert all(batches(sizes, train, workers) == alone for workers in (2, 3))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.integers(1, 3), st.integers(0, 3))
@example([64] * 40, 3, 0)  # two windows
def test_an_epoch_has_every_image_once(sizes: list[int], share: int, seed: int) -> None:
    images = sum(sizes)
    for workers in (1, 2, 3):
        train = Train(batch=workers * share, steps=-(-3 * images // (workers * share)), seed=seed)
        rows = [row for batch in batches(sizes, train, workers) for row in batch][: 3 * images]
        expected = {(epoch, g, i) for epoch in range(3) for g, size in enumerate(sizes) for i in range(size)}
        assert len(rows) == len(expected)
        assert set(rows) == expected
        epochs = [epoch for epoch, _, _ in rows]
        assert epochs == sorted(epochs)


def test_a_worker_reads_only_the_row_groups_of_its_share() -> None:
    """Forty row groups, in windows of sixteen: a quarter of each, and one more where shares meet."""
    train = Train(batch=8, steps=2560 // 8)
    chunks = [list(planned([64] * 40, train, rank=rank, workers=4)) for rank in range(4)]
    assert [len(each) for each in chunks] == [3] * 4
    assert max(len(chunk.groups) for each in chunks for chunk in each) <= 16 / 4 + 1
    assert sum(len(chunk.groups) for each in chunks for chunk in each) <= 40 + 3 * 3


def test_epochs_and_seeds_are_shuffled_differently() -> None:
    def epochs(seed: int) -> list[list[tuple[int, int]]]:
        rows = [(group, row) for _, group, row in order([10] * 10, Train(batch=1, steps=300, seed=seed))]
        return [rows[:100], rows[100:200], rows[200:]]

    assert epochs(0) == epochs(0)
    first, second, third = epochs(0)
    assert first != second != third != first
    assert sorted(first) != first
    assert epochs(0) != epochs(1)


def test_rows_of_a_row_group_are_spread_over_their_window() -> None:
    rows = order([64] * 20, Train(batch=8, steps=1280 // 8))
    places = [place for place, (_, group, _) in enumerate(rows) if group == rows[0][1]]
    assert max(places) - min(places) > 900


def test_no_images_to_train_on(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no images to train on"):
        image_groups(tmp_path)


def test_fewer_images_than_a_batch_are_repeated() -> None:
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


def load(shards: Path, train: Train, **changes: Any) -> list[list[Example]]:
    options: dict[str, Any] = {"rank": 0, "workers": 1, "done": 0, "threads": 1, "overlap": True} | changes
    return list(load_batches(shards / "images", shards / "targets", train, **options, skeleton=COCO_PERSON))


def test_examples_do_not_depend_on_threads_workers_or_interruptions(shards: Path) -> None:
    assert [group.rows for group in row_groups(shards / "images")] == [3, 3, 1, 3, 3, 1]
    train = Train(crop=65, stride=8, batch=4, steps=7, seed=2)

    def images(workers: int = 1, **changes: Any) -> list[tuple[int, torch.Tensor]]:
        shares = [load(shards, train, rank=rank, workers=workers, **changes) for rank in range(workers)]
        assert [len(share) for share in shares[0]] == [4 // workers] * (7 - changes.get("done", 0))
        steps = zip(*shares, strict=True)
        return [(e.image_id, e.people.keypoints) for step in steps for share in step for e in share]

    alone = images()
    assert sorted(image_id for image_id, _ in alone[:14]) == list(range(14))  # an epoch
    for others, expected in (
        (images(threads=3), alone),
        (images(overlap=False), alone),
        (images(threads=3, done=4, workers=2, overlap=False), alone[16:]),
        (images(done=4), alone[16:]),
        (images(workers=2), alone),
    ):
        assert [image_id for image_id, _ in others] == [image_id for image_id, _ in expected]
        for (_, found), (_, keypoints) in zip(others, expected, strict=True):
            assert torch.equal(found, keypoints)


def test_targets_of_other_images_are_refused(shards: Path) -> None:
    first, second = (shards / "targets" / f"part-{part:05}.parquet" for part in range(2))
    first.write_bytes(second.read_bytes())
    with pytest.raises(UserError, match=r"part-00000\.parquet: not the targets of the images in"):
        load(shards, Train(crop=65, stride=8, batch=4, steps=7), overlap=False)
