"""Refinement: closed forms on linear fields, gradients, the slow reference, and what must not matter."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from personlab.codec.encode import encode
from personlab.codec.fields import Fields, cell_positions
from personlab.codec.refine import refine, sample
from personlab.skeleton import COCO_PERSON
from tests.coco_person import EDGES, E, K
from tests.reference import codec as reference
from tests.reference.scenes import figure, image, mirrored, random_fields, scene

encode, refine = partial(encode, skeleton=COCO_PERSON), partial(refine, skeleton=COCO_PERSON)
STRIDES = st.sampled_from([8, 16, 32])


def blank(height: int = 7, width: int = 9, stride: int = 8) -> Fields:
    """Fields of zeros; 7 x 9 cells at stride 8 are 65 x 49 pixels."""
    zeros = random_fields(0, rows=height, columns=width, stride=stride, spread=0.0)
    return zeros.replace(heatmap=torch.zeros_like(zeros.heatmap), seg=torch.zeros_like(zeros.seg))


def towards(point: tuple[float, float], fields: Fields) -> Tensor:
    """y - x at every cell: 2 x H x W."""
    position = cell_positions(*fields.seg.shape[1:], fields.stride)
    return torch.tensor(point).view(2, 1, 1) - position


# closed forms


def test_sample_is_bilinear_in_pixels() -> None:
    field = torch.tensor([[[[0.0, 8.0], [16.0, 24.0]]]])
    xy = torch.tensor([[0.0, 0.0], [8.0, 8.0], [4.0, 4.0], [2.0, 6.0]]).T.view(1, 2, 1, 4)
    assert sample(field, xy, 8).flatten().tolist() == pytest.approx([0, 24, 12, 2 + 12], abs=1e-5)


def test_sample_outside_is_the_border() -> None:
    field = torch.tensor([[[[0.0, 8.0], [16.0, 24.0]]]])
    xy = torch.tensor([[-100.0, 0.0], [100.0, -5.0], [4.0, 1e6], [9.0, 9.0]]).T.view(1, 2, 1, 4)
    assert sample(field, xy, 8).flatten().tolist() == pytest.approx([0, 8, 20, 24], abs=1e-5)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 3), (3, 1)])
def test_sample_of_a_single_row_or_column(height: int, width: int) -> None:
    field = torch.arange(float(height * width)).view(1, 1, height, width)
    xy = cell_positions(height, width, 8)[None]
    assert torch.allclose(sample(field, xy, 8), field)


@pytest.mark.parametrize("edge", range(E))
def test_mid_is_corrected_by_the_short_offsets_of_the_target(edge: int) -> None:
    """An offset that is 5 px off lands on the target's disk, whose short-range offset says so (eq. 2)."""
    fields, (source, target) = blank(), EDGES[edge]
    y_source, y_target = (10.0, 12.0), (41.0, 30.0)
    fields.short[0, source] = towards(y_source, fields)
    fields.short[0, target] = towards(y_target, fields)
    fields.mid[0, edge] = towards(y_target, fields) + torch.tensor([3.0, -4.0]).view(2, 1, 1)
    refined = refine(fields, mid_steps=1, long_steps=0).mid[0, edge]
    assert torch.allclose(refined, towards(y_target, fields), atol=1e-4)


def test_short_offsets_that_halve_the_error_do_so_at_every_step() -> None:
    fields = blank()
    y, error = (30.0, 25.0), torch.tensor([4.0, 4.0]).view(2, 1, 1)
    fields.short[0, :] = towards(y, fields) / 2
    fields.mid[0, :] = towards(y, fields) + error
    for steps in range(4):
        refined = refine(fields, mid_steps=steps, long_steps=0).mid[0]
        assert torch.allclose(refined, towards(y, fields) + error / 2**steps, atol=1e-4)


def test_long_is_refined_by_itself_and_then_by_short() -> None:
    """L(x) = a (y - x) leaves (1 - a) of the way: after two steps by itself (each squares what is left) and
    two by S(x) = b (y - x), (1 - a)^4 (1 - b)^2 is left (eq. 5)."""
    fields, y, a, b = blank(), (30.0, 25.0), 0.5, 0.25
    fields.long[0, :] = a * towards(y, fields)
    fields.short[0, :] = b * towards(y, fields)
    alone = refine(fields.replace(short=torch.zeros_like(fields.short)), mid_steps=0, long_steps=2).long[0]
    assert torch.allclose(alone, (1 - (1 - a) ** 4) * towards(y, fields), atol=1e-4)
    both = refine(fields, mid_steps=0, long_steps=2).long[0]
    assert torch.allclose(both, (1 - (1 - a) ** 4 * (1 - b) ** 2) * towards(y, fields), atol=1e-4)


def test_pointing_outside_the_map_is_no_error() -> None:
    """Beyond the map the short-range offsets are those of its border."""
    fields = blank()
    fields.short[0, :] = towards((30.0, 25.0), fields)
    fields.mid[0, :] = torch.tensor([1000.0, -1000.0]).view(2, 1, 1)
    refined = refine(fields, mid_steps=1, long_steps=0).mid[0]
    corner = fields.short[0, 0, :, 0, -1]
    assert torch.allclose(
        refined, (torch.tensor([1000.0, -1000.0]) + corner).view(1, 2, 1, 1).expand_as(refined)
    )


def test_right_offsets_stay_right() -> None:
    """Every defined mid-range target ends on a keypoint, where the short-range target is zero."""
    targets = encode(
        scene([figure(60.3, 25.2, 85.0)], height=129, width=129, stride=8).people, stride=8, radius=32.0
    )
    before = targets.fields.mid.movedim(2, -1)[targets.mid_valid]
    after = refine(targets.fields).mid.movedim(2, -1)[targets.mid_valid]
    assert len(before) > 100
    assert torch.allclose(after, before, atol=1e-3)


def test_right_long_offsets_stay_right() -> None:
    fields = blank()
    fields.long[0, :] = towards((30.3, 25.2), fields)
    fields.short[0, :] = towards((30.3, 25.2), fields)
    assert torch.allclose(refine(fields).long, fields.long, atol=1e-3)


def test_no_steps_change_nothing() -> None:
    fields = random_fields(1, rows=4, columns=5, stride=16, spread=30.0)
    same = refine(fields, mid_steps=0, long_steps=0)
    for name, tensor in fields.tensors().items():
        assert torch.equal(same.tensors()[name], tensor), name


def test_the_other_fields_are_untouched() -> None:
    fields = random_fields(1, rows=4, columns=5, stride=16, spread=30.0)
    refined = refine(fields)
    for name in ("heatmap", "short", "seg"):
        assert torch.equal(refined.tensors()[name], fields.tensors()[name]), name


# gradients


def test_sample_gradients() -> None:
    """Against finite differences in double precision, at places inside one cell each."""
    g = torch.Generator().manual_seed(0)
    field = torch.randn(2, 3, 4, 5, generator=g, dtype=torch.double, requires_grad=True)
    cell = torch.randint(0, 3, (2, 2, 2, 3), generator=g)
    xy = (8 * (cell + 0.2 + 0.6 * torch.rand(2, 2, 2, 3, generator=g, dtype=torch.double))).requires_grad_()
    assert torch.autograd.gradcheck(lambda f, p: sample(f, p, 8), (field, xy))


def test_gradient_along_the_mid_branch() -> None:
    """M' = M + S(x + M) with S(x) = g (c - x) has dM'/dM = 1 - g, and (1 - g)^2 after two steps."""
    fields, slope = blank(), 0.25
    fields.short[0, :] = slope * towards((30.0, 25.0), fields)
    mid = towards((30.5, 25.5), fields).expand(1, E, 2, -1, -1).clone().requires_grad_()
    refine(fields.replace(mid=mid), mid_steps=2, long_steps=0).mid.sum().backward()
    assert torch.allclose(mid.grad, torch.full_like(mid, (1 - slope) ** 2), atol=1e-4)


def test_gradient_along_the_short_branch() -> None:
    """Each sample spreads its gradient over the four cells around it, by its bilinear shares."""
    fields, edge = blank(), 0
    target = EDGES[edge][1]
    short = fields.short.clone().requires_grad_()
    fields.mid[0, edge, :, 0, 0] = torch.tensor([8 * 2 + 2.0, 8 * 3 + 4.0])  # 1/4 and 1/2 into cell (3, 2)
    refined = refine(fields.replace(short=short), mid_steps=1, long_steps=0)
    refined.mid[0, edge, 0, 0, 0].backward()
    expected = torch.zeros_like(short)
    expected[0, target, 0, 3:5, 2:4] = torch.tensor([[0.375, 0.125], [0.375, 0.125]])
    assert torch.allclose(short.grad, expected, atol=1e-5)


def test_gradient_along_the_long_branch() -> None:
    """With L = a (y - x), L' = L + L(x + L): the cell itself and the cells sampled both get their due."""
    fields = blank()
    long = (0.5 * towards((30.0, 25.0), fields)).expand(1, K, 2, -1, -1).clone().requires_grad_()
    short = fields.short.clone().requires_grad_()
    refine(fields.replace(long=long, short=short), mid_steps=0, long_steps=1).long.sum().backward()
    # Summed over all cells: 1 for L itself, -a through where it points, 1 for the shares it samples.
    assert float(long.grad[0, 0, 0].mean()) == pytest.approx(1 - 0.5 + 1, abs=1e-3)
    assert float(short.grad[0, 0, 0].mean()) == pytest.approx(1.0, abs=1e-3)


# the slow reference

# grid_sample works in float32 on positions normalised to [-1, 1]: about 1e-6 of a cell is lost at each step,
# where these fields change by up to 200 px from cell to cell.
TOLERANCE = 2e-2


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**31), STRIDES, st.integers(1, 4), st.integers(1, 5), st.integers(0, 2))
def test_reference(seed: int, stride: int, rows: int, columns: int, steps: int) -> None:
    fields = random_fields(seed, rows=rows, columns=columns, stride=stride, spread=20.0)
    refined = refine(fields, mid_steps=steps, long_steps=steps)
    mid, short, long = (t[0].double().numpy() for t in (fields.mid, fields.short, fields.long))
    np.testing.assert_allclose(
        refined.mid[0].numpy(),
        reference.refine_mid(mid, short, stride=stride, steps=steps),
        rtol=0,
        atol=TOLERANCE,
    )
    np.testing.assert_allclose(
        refined.long[0].numpy(),
        reference.refine_long(long, short, stride=stride, steps=steps),
        rtol=0,
        atol=TOLERANCE,
    )


# what must not matter


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 3), STRIDES)
def test_batch_is_its_images(seed: int, batch: int, stride: int) -> None:
    fields = random_fields(seed, rows=4, columns=5, stride=stride, spread=20.0, batch=batch)
    together = refine(fields)
    for index in range(batch):
        for name, tensor in refine(image(fields, index)).tensors().items():
            assert torch.equal(image(together, index).tensors()[name], tensor), name


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31), STRIDES)
def test_mirroring_commutes_with_refinement(seed: int, stride: int) -> None:
    fields = random_fields(seed, rows=4, columns=5, stride=stride, spread=20.0)
    expected, found = mirrored(refine(fields)).tensors(), refine(mirrored(fields)).tensors()
    for name in expected:
        assert torch.allclose(found[name], expected[name], atol=TOLERANCE), name


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31))
def test_scaling_everything_scales_the_offsets(seed: int) -> None:
    """Twice the stride and twice the offsets are the same picture, twice the size."""
    small = random_fields(seed, rows=4, columns=5, stride=8, spread=20.0)
    large = random_fields(seed, rows=4, columns=5, stride=16, spread=40.0)
    assert torch.allclose(refine(large).mid, 2 * refine(small).mid, atol=TOLERANCE)
    assert torch.allclose(refine(large).long, 2 * refine(small).long, atol=TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_refined_in_single(dtype: torch.dtype) -> None:
    fields = random_fields(3, rows=4, columns=5, stride=8, spread=20.0)
    half = fields.map(lambda tensor: tensor.to(dtype))
    refined = refine(half)
    assert refined.mid.dtype == refined.long.dtype == torch.float32
    assert torch.equal(refined.mid, refine(half.float()).mid)
