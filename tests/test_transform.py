"""Views: pixels, points and masks must move alike."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personlab.data.transform import PADDING, ImageArray, Transform, fit
from personlab.people import BoolArray, FloatArray

HEIGHT, WIDTH = 61, 83

VIEWS = {
    "as it is": Transform(1.0, (0.0, 0.0), 65, 89),
    "larger": Transform(2.5, (0.0, 0.0), 161, 217),
    "a little larger": Transform(1.3, (3.7, -8.2), 81, 113),
    "a little smaller": Transform(0.93, (0.0, 0.0), 57, 81),
    "half": Transform(0.5, (4.25, 2.5), 41, 49),
    "tiny": Transform(0.21, (0.0, 0.0), 17, 25),
    "shifted outside": Transform(1.0, (-20.3, 15.6), 65, 65),
    "mirrored": Transform(1.0, (0.0, 0.0), 65, 89, mirror_width=WIDTH),
    "mirrored, larger and shifted": Transform(1.7, (-30.5, 4.2), 97, 113, mirror_width=WIDTH),
    "mirrored and smaller": Transform(0.6, (2.0, 3.0), 41, 57, mirror_width=WIDTH),
}


def views() -> st.SearchStrategy[Transform]:
    return st.builds(
        Transform,
        scale=st.floats(0.2, 4.0),
        shift=st.tuples(st.floats(-30, 30), st.floats(-30, 30)),
        height=st.sampled_from([17, 33]),
        width=st.sampled_from([17, 41]),
        mirror_width=st.sampled_from([0, WIDTH]),
    )


def dot(x: int, y: int, radius: int) -> ImageArray:
    """A white square around (x, y) on black."""
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    image[y - radius : y + radius + 1, x - radius : x + radius + 1] = 255
    return image


# pixels and points


def shown(transform: Transform) -> list[tuple[int, int]]:
    """Places of the image of which the transform shows so much around that a dot there is wholly visible."""
    reach = (_radius(transform) + 2) * transform.scale + 2
    far = np.array([transform.width, transform.height]) - 1 - reach
    places = [(x, y) for y in range(6, HEIGHT - 6, 8) for x in range(6, WIDTH - 6, 8)]
    return [
        p
        for p in places
        if (reach < (at := transform.points(np.array(p, np.float32)))).all() and (at < far).all()
    ]


def _radius(transform: Transform) -> int:
    return int(np.ceil(1 / transform.scale))


@pytest.mark.parametrize("name", VIEWS)
def test_a_dot_is_found_at_its_point(name: str) -> None:
    """The centre of what a dot adds to the image is its point, to a quarter of a pixel: sampling a sharp dot
    on a coarser lattice moves its centre by that much at worst."""
    transform = VIEWS[name]
    places = shown(transform)
    assert places
    dark = transform.image(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).astype(float)
    y, x = np.mgrid[: transform.height, : transform.width]
    for place in places:
        light = (transform.image(dot(*place, _radius(transform))) - dark).sum(-1)
        centre = np.array([(light * x).sum(), (light * y).sum()]) / light.sum()
        np.testing.assert_allclose(centre, transform.points(np.array(place, np.float32)), atol=0.25)


def test_unscaled_pixels_are_the_pixels() -> None:
    image = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    seen = VIEWS["as it is"].image(image)
    assert seen.shape == (65, 89, 3)
    assert (seen[:HEIGHT, :WIDTH] == image).all()
    assert (seen[HEIGHT:] == PADDING).all()
    assert (seen[:, WIDTH:] == PADDING).all()
    mirrored = VIEWS["mirrored"].image(image)
    assert (mirrored[:HEIGHT, :WIDTH] == image[:, ::-1]).all()


@pytest.mark.parametrize("scale", [0.25, 0.5, 1.0, 2.0, 4.0])
def test_the_first_pixel_stays_the_first_pixel(scale: float) -> None:
    """No half-pixel shifts: pixel (0, 0) is (0, 0) at every scale, and so is every whole step from it."""
    transform = Transform(scale, (0.0, 0.0), 33, 33)
    assert transform.points(np.zeros(2, np.float32)).tolist() == [0, 0]
    ramp = np.repeat(np.arange(HEIGHT, dtype=np.uint8)[:, None] * 4, WIDTH, axis=1)
    seen = transform.image(np.stack([ramp] * 3, -1))[..., 0].astype(float)
    rows = np.arange(4, 9) if scale < 1 else np.arange(33)
    np.testing.assert_allclose(seen[rows, 3], rows / scale * 4, atol=1.0)


@pytest.mark.parametrize("scale", [0.1, 0.3, 0.7, 0.999999999])
def test_shrinking_does_not_alias(scale: float) -> None:
    """A one-pixel checkerboard becomes grey, not a coarser pattern, and flat colours stay as they are."""
    board = (np.indices((400, 400)).sum(0) % 2 * 255).astype(np.uint8)
    transform = Transform(scale, (0.0, 0.0), int(400 * scale) - 1, int(400 * scale) - 1)
    seen = transform.image(np.stack([board] * 3, -1))[2:-2, 2:-2, 0].astype(float)
    flat = transform.image(np.full((400, 400, 3), 77, np.uint8))
    assert (flat == 77).all()
    if scale < 0.5:
        assert seen.std() < 30 < board.std()
        assert seen.mean() == pytest.approx(127.5, abs=3)


def test_beyond_the_image_is_padding() -> None:
    transform = Transform(1.0, (500.0, 0.0), 33, 33)
    assert (transform.image(np.zeros((HEIGHT, WIDTH, 3), np.uint8)) == PADDING).all()


# points


@settings(max_examples=50, deadline=None)
@given(views(), st.floats(-50, 150), st.floats(-50, 150))
def test_there_and_back(transform: Transform, x: float, y: float) -> None:
    point = np.array([[x, y]], np.float32)
    np.testing.assert_allclose(transform.inverse_points(transform.points(point)), point, atol=1e-3)


@settings(max_examples=50, deadline=None)
@given(views())
def test_points_keep_their_shape_and_distances(transform: Transform) -> None:
    points = np.random.default_rng(0).uniform(0, 80, (2, 5, 2)).astype(np.float32)
    seen = transform.points(points)
    assert seen.shape == points.shape
    assert seen.dtype == np.float32
    before = np.linalg.norm(points[0] - points[1], axis=-1)
    np.testing.assert_allclose(
        np.linalg.norm(seen[0] - seen[1], axis=-1), transform.scale * before, rtol=1e-4, atol=1e-3
    )


def test_a_mirror_swaps_the_first_and_the_last_column() -> None:
    transform = Transform(2.0, (1.0, -3.0), 33, 33, mirror_width=WIDTH)
    corners = np.array([[0, 0], [WIDTH - 1, HEIGHT - 1]], np.float32)
    assert transform.points(corners).tolist() == [
        [2.0 * (WIDTH - 1) + 1, -3.0],
        [1.0, 2.0 * (HEIGHT - 1) - 3],
    ]


# masks


def covered_share(transform: Transform, mask: BoolArray, stride: int) -> FloatArray:
    """For every cell: the share of its part of the image that lies on set pixels, pixel by pixel."""
    rows, columns = (transform.height - 1) // stride + 1, (transform.width - 1) // stride + 1
    result = np.zeros((rows, columns), np.float32)
    reach = min(stride, 8) / 2
    for row, column in np.ndindex(rows, columns):
        centre = np.array([column, row]) * stride
        corners = np.stack([centre - reach, centre + reach])
        box = transform.inverse_points(corners)
        (left, top), (right, bottom) = box.min(0), box.max(0)
        covered = inside = 0.0
        for y, x in np.ndindex(*mask.shape):
            wide = min(right, x + 0.5) - max(left, x - 0.5)
            high = min(bottom, y + 0.5) - max(top, y - 0.5)
            if wide > 0 and high > 0:
                inside += wide * high
                covered += wide * high * mask[y, x]
        result[row, column] = covered / inside if inside > 1e-3 else 0.0
    return result


@pytest.mark.parametrize("name", sorted(VIEWS))
@pytest.mark.parametrize("stride", [8])
def test_coverage_is_the_share_of_pixels(name: str, stride: int) -> None:
    mask = np.random.default_rng(0).random((HEIGHT, WIDTH)) < 0.5
    expected = covered_share(VIEWS[name], mask, stride)
    np.testing.assert_allclose(VIEWS[name].coverage(mask[None], stride)[0], expected, atol=2e-3)


def test_coverage_of_several_people_and_of_none() -> None:
    rng = np.random.default_rng(0)
    masks = rng.random((3, HEIGHT, WIDTH)) < 0.5
    transform = VIEWS["mirrored and smaller"]
    together = transform.coverage(masks, 8)
    assert together.shape == (3, 6, 8)
    for mask, alone in zip(masks, together, strict=True):
        np.testing.assert_array_equal(transform.coverage(mask[None], 8)[0], alone)
    assert transform.coverage(masks[:0], 8).shape == (0, 6, 8)


def test_a_coarse_grid_has_the_coverage_of_the_fine_one_at_its_own_cells() -> None:
    mask = np.random.default_rng(0).random((1, HEIGHT, WIDTH)) < 0.5
    transform = Transform(1.5, (3.0, -5.0), 65, 97)
    np.testing.assert_array_equal(transform.coverage(mask, 16), transform.coverage(mask, 8)[:, ::2, ::2])
    np.testing.assert_array_equal(transform.coverage(mask, 32), transform.coverage(mask, 8)[:, ::4, ::4])


def test_a_full_mask_covers_the_image_and_nothing_outside() -> None:
    seen = Transform(1.0, (16.0, 0.0), 65, 129).coverage(np.ones((1, HEIGHT, WIDTH), bool), 8)[0]
    x = np.arange(0, 129, 8) - 16
    touched = (x + 4 > -0.5) & (x - 4 < WIDTH - 0.5)
    np.testing.assert_allclose(seen[0], touched, atol=1e-6)


def test_the_half_line_of_the_coverage_is_the_border_of_the_mask() -> None:
    """A straight border anywhere inside a cell lies (nearly) where the interpolated coverage is one half."""
    for border in range(24, 32):
        mask = np.zeros((1, 61, 81), bool)
        mask[:, :, border:] = True  # its border is at border - 0.5
        row = Transform(1.0, (0.0, 0.0), 65, 81).coverage(mask, 8)[0, 3]
        at = np.interp(0.5, row, np.arange(len(row)) * 8.0)
        assert abs(at - (border - 0.5)) < 0.75  # a sampled cell can be 4 pixels off


# fit


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 3000), st.integers(1, 3000), st.sampled_from([65, 401, 801, 1401]))
def test_fit_makes_the_longest_side_the_side(height: int, width: int, side: int) -> None:
    scale, high, wide = fit(height, width, side)
    if max(height, width) > 1:
        assert max(high, wide) == side
    assert abs((height - 1) * scale + 1 - high) <= 0.5
    assert abs((width - 1) * scale + 1 - wide) <= 0.5
    assert min(high, wide) >= 1
