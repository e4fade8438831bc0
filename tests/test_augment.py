"""Random transforms: their limits, their distribution, and that they are reproducible."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from personlab.data.augment import augmented, person_transform, random_transform
from personlab.data.transform import Transform
from personlab.params import Train
from personlab.skeleton import COCO_PERSON
from tests.coco_person import K
from tests.test_example import HEIGHT, WIDTH, person, row

TRAIN = Train(crop=65, stride=8, seed=3)
SIZES = st.integers(8, 700)


def draw(
    seed: int, height: int, width: int, *, least: float = 0.5, most: float = 1.5, crop: int = 65
) -> Transform:
    rng = np.random.default_rng(seed)
    return random_transform(rng, height=height, width=width, crop=crop, scales=(least, most))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**31), SIZES, SIZES)
def test_a_small_box_stays_inside_and_a_large_one_holds_everything(
    seed: int, height: int, width: int
) -> None:
    transform = draw(seed, height, width)
    assert (transform.height, transform.width) == (65, 65)
    assert transform.mirror_width in (0, width)
    corners = np.array([[0, 0], [64, 64]], np.float32)
    box = np.sort(transform.inverse_points(corners).astype(float), axis=0)  # in image pixels, mirrored or not
    slack = 1e-3 * max(height, width)
    for (low, high), size in zip(box.T, (width, height), strict=True):
        inside = low >= -slack and high <= size - 1 + slack
        holds_all = low <= slack and high >= size - 1 - slack
        assert inside or holds_all


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**31), SIZES, SIZES, st.sampled_from([(0.5, 1.5), (1.0, 1.0), (0.7, 0.8)]))
def test_the_box_is_the_image_times_the_scale(
    seed: int, height: int, width: int, limits: tuple[float, float]
) -> None:
    """The longest side of the image becomes crop / scale; its shape is kept."""
    least, most = limits
    transform = draw(seed, height, width, least=least, most=most)
    side = 64 / transform.scale + 1
    assert least - 1e-6 <= side / max(height, width) <= most + 1e-6


def test_one_pixel_is_no_error() -> None:
    assert np.isfinite(draw(0, 1, 1).matrix()).all()


def test_views_are_spread_over_all_that_is_allowed() -> None:
    """Of 600 transforms about half are mirrored, scales fill their range, and boxes move both ways."""
    rng = np.random.default_rng(0)
    transforms = [
        random_transform(rng, height=300, width=400, crop=65, scales=(0.5, 1.5)) for _ in range(600)
    ]
    assert 0.43 < np.mean([transform.mirror_width > 0 for transform in transforms]) < 0.57
    sides = np.array([64 / transform.scale + 1 for transform in transforms]) / 400
    assert np.histogram(sides, bins=5, range=(0.5, 1.5))[0].min() > 80
    left = np.array([-transform.shift[0] / transform.scale for transform in transforms])
    free = 400 - sides * 400
    share = left / free  # 0 at one end of what is allowed, 1 at the other
    assert np.histogram(share, bins=5, range=(0, 1))[0].min() > 80


def test_the_same_epoch_is_the_same_view() -> None:
    image = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    shard_row = row(image, person())
    first = augmented(shard_row, TRAIN, epoch=5, skeleton=COCO_PERSON)
    augmented(shard_row, TRAIN, epoch=6, skeleton=COCO_PERSON)  # whatever is drawn in between
    again = augmented(shard_row, TRAIN, epoch=5, skeleton=COCO_PERSON)
    assert torch.equal(first.image, again.image)
    assert torch.equal(first.people.keypoints, again.people.keypoints)
    assert torch.equal(first.people.masks, again.people.masks)
    assert first.image.shape == (3, 65, 65)
    assert first.people.masks.shape == (1, 9, 9)


def test_epochs_seeds_and_images_differ() -> None:
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    shard_row = row(image, person())
    other_row = {**shard_row, "image_id": 43}
    other_seed = Train(crop=65, stride=8, seed=4)
    drawn = [
        augmented(shard_row, TRAIN, epoch=0, skeleton=COCO_PERSON),
        augmented(shard_row, TRAIN, epoch=1, skeleton=COCO_PERSON),
        augmented(other_row, TRAIN, epoch=0, skeleton=COCO_PERSON),
        augmented(shard_row, other_seed, epoch=0, skeleton=COCO_PERSON),
    ]
    places = {tuple(found.people.keypoints[0, 0].tolist()) for found in drawn}
    assert len(places) == len(drawn)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_people_keep_their_shape(epoch: int) -> None:
    """Distances between a person's keypoints are all scaled alike, mirrored or not."""
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    found = (
        augmented(row(image, person()), TRAIN, epoch=epoch, skeleton=COCO_PERSON).people.keypoints[0].double()
    )
    before = torch.from_numpy(person().keypoints).double()
    ratio = torch.pdist(found).sum() / torch.pdist(before).sum()
    assert 64 / 1.5 / WIDTH <= float(ratio) <= 64 / (0.5 * WIDTH - 1) + 1e-6
    nose_to_shoulders = [float((found[0] - found[k]).norm() / (before[0] - before[k]).norm()) for k in (5, 6)]
    np.testing.assert_allclose(nose_to_shoulders, float(ratio), rtol=1e-3)


def box_in_crop(transform: Transform, box: tuple[float, float, float, float]) -> np.ndarray:
    """Left, top, right and bottom of a box in the transform, outermost pixel centres."""
    corners = np.array([box[:2], (box[0] + box[2] - 1, box[1] + box[3] - 1)], np.float32)
    return np.sort(transform.points(corners).astype(float), axis=0)


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, 2**31),
    st.tuples(*(st.floats(0, 300) for _ in range(2)), *(st.floats(4, 300) for _ in range(2))),
    st.sampled_from([(30, 60), (50, 140), (200, 400)]),
)
def test_a_person_is_shown_at_the_size_asked_for_inside_or_around_the_crop(
    seed: int, box: tuple[float, float, float, float], sizes: tuple[float, float]
) -> None:
    transform = person_transform(np.random.default_rng(seed), box, width=640, crop=129, sizes=sizes)
    size = transform.scale * max(box[2], box[3])
    assert size <= sizes[1] + 1e-3
    assert size >= sizes[0] - 1e-3 or abs(transform.scale - 2) < 1e-6  # magnified no further than twice
    low, high = box_in_crop(transform, box)
    slack = 0.01 * max(1, size)
    for first, last in zip(low, high, strict=True):
        inside = first >= -slack and last <= 128 + slack
        around = first <= slack and last >= 128 - slack
        assert inside or around


def test_most_crops_are_around_people_with_person_sizes() -> None:
    """Nine in ten crops show a person with keypoints at the size."""
    train = Train(crop=65, stride=8, min_scale=1.4, max_scale=1.5, person_sizes=(60, 64))
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    unlabelled = person(2, visibility=np.zeros(K, np.int8), box=(0.0, 0.0, 5.0, 5.0))
    shard_row = row(image, unlabelled, person())
    found = [
        augmented(shard_row, train, epoch=epoch, skeleton=COCO_PERSON).people.keypoints[1].double()
        for epoch in range(200)
    ]
    before = torch.from_numpy(person().keypoints).double()
    ratios = torch.stack([torch.pdist(each).sum() for each in found]) / torch.pdist(before).sum()
    around = (ratios >= 60 / 75 - 1e-3) & (ratios <= 64 / 75 + 1e-3)
    assert 0.8 < float(around.double().mean()) < 0.98
    assert float(ratios[~around].max()) < 0.6
