"""What each worker reads, in which order, and that nothing depends on how often it was interrupted."""

import itertools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from personlab import tables
from personlab.data.feed import Group, Passage, feed, plan, row_groups
from personlab.errors import UserError
from personlab.params import Train
from tests.test_example import HEIGHT, WIDTH, person, row


def groups_of(sizes: Sequence[int]) -> list[Group]:
    return [Group(Path("part-00000.parquet"), index, rows) for index, rows in enumerate(sizes)]


def seen(passages: Sequence[Passage]) -> list[tuple[int, int, int]]:
    """Every row that is read: its epoch, the first row group it was shuffled with, its place there."""
    return [(p.epoch, p.groups[0].index, i) for p in passages for i in range(p.first, p.last)]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 700), min_size=3, max_size=9),
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 60),
    st.integers(0, 70),
)
def test_going_on_at_any_step_is_the_same_as_never_having_stopped(
    sizes: list[int], workers: int, each: int, steps: int, done: int
) -> None:
    train = Train(batch=workers * each, steps=steps, seed=5)
    if min(sizes) < each:
        return
    for rank in range(workers):
        whole = seen(list(plan(groups_of(sizes), train, rank=rank, workers=workers)))
        assert len(whole) == steps * each
        later = seen(list(plan(groups_of(sizes), train, rank=rank, workers=workers, done=min(done, steps))))
        assert later == whole[min(done, steps) * each :]


def test_workers_share_an_epoch_and_nobody_is_seen_twice() -> None:
    train = Train(batch=8, steps=12, seed=1)  # 96 rows: an epoch of four groups of 25 gives each worker 48
    hands = [list(plan(groups_of([25] * 4), train, rank=rank, workers=2)) for rank in range(2)]
    assert all(sum(p.last - p.first for p in hand) == 48 for hand in hands)
    groups = [group.index for hand in hands for p in hand if p.epoch == 0 for group in p.groups]
    assert sorted(groups) == [0, 1, 2, 3]
    assert max(Counter(itertools.chain(*(seen(hand) for hand in hands))).values()) == 1


def test_epochs_and_seeds_deal_differently() -> None:
    def order(seed: int) -> list[tuple[int, ...]]:
        train = Train(batch=1, steps=60, seed=seed)
        return [tuple(g.index for g in p.groups) for p in plan(groups_of([2] * 10), train)]

    assert order(0) == order(0)
    assert len(set(order(0))) == 3  # three epochs of twenty
    assert order(0) != order(1)


@pytest.mark.parametrize(("sizes", "workers"), [([], 1), ([3], 1), ([90], 2)])
def test_too_little_to_go_round(sizes: list[int], workers: int) -> None:
    with pytest.raises(UserError, match=r"lower train\.batch"):
        next(plan(groups_of(sizes), Train(batch=4, steps=5), workers=workers))


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two parts of seven images each, in row groups of three."""
    image = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    for part in range(2):
        ids = range(7 * part, 7 * part + 7)
        rows = [{**row(image, person(image_id)), "image_id": image_id} for image_id in ids]
        table = pa.Table.from_pylist(rows, schema=tables.SHARD)
        tables.write_table(table, tmp_path / f"part-{part:05}.parquet", params_hash="x", row_group_size=3)
    return tmp_path


def test_examples_come_in_the_planned_order_whatever_the_threads(shards: Path) -> None:
    assert [group.rows for group in row_groups(shards)] == [3, 3, 1, 3, 3, 1]
    train = Train(crop=65, stride=8, batch=4, steps=7, seed=2)

    def batches(threads: int, done: int = 0) -> list[list[tuple[int, torch.Tensor]]]:
        found = feed(shards, train, rank=0, workers=1, done=done, threads=threads)
        return [[(e.image_id, e.people.keypoints) for e in batch] for batch in found]

    alone, many, later = batches(1), batches(3), batches(1, done=4)
    assert [len(batch) for batch in alone] == [4] * 7
    assert len({image_id for batch in alone[:3] for image_id, _ in batch}) == 12  # an epoch: 14 images
    for one, other in itertools.chain(zip(alone, many, strict=True), zip(alone[4:], later, strict=True)):
        for (id_one, xy_one), (id_other, xy_other) in zip(one, other, strict=True):
            assert id_one == id_other
            assert torch.equal(xy_one, xy_other)
