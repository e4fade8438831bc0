"""The losses: closed forms, a slow reference, and what must not matter."""

import math
from dataclasses import replace
from operator import itemgetter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from personlab import params
from personlab.codec.fields import Fields, Targets
from personlab.codec.refine import refine
from personlab.model.losses import Losses, Objective, losses, positions
from personlab.skeleton import COCO_PERSON
from tests.coco_person import FLIP, E, K
from tests.reference import losses as reference
from tests.reference.scenes import EDGE_FLIP, mirrored

SHAPES = {"heatmap": (K,), "short": (K, 2), "mid": (E, 2), "seg": (), "long": (K, 2)}
NAMES = ("heatmap", "seg", "short", "mid", "long")
EQUAL = params.LossWeights(**dict.fromkeys(NAMES, 1.0))


def random_fields(generator: torch.Generator, batch: int, height: int, width: int, scale: float) -> Fields:
    return Fields(
        **{
            name: scale * torch.randn(batch, *shape, height, width, generator=generator)
            for name, shape in SHAPES.items()
        },
        stride=8,
    )


def random_case(seed: int, batch: int = 2, height: int = 3, width: int = 4) -> tuple[Fields, Targets]:
    generator = torch.Generator().manual_seed(seed)

    def some(*shape: int, share: float) -> Tensor:
        return torch.rand(batch, *shape, height, width, generator=generator) < share

    wanted = random_fields(generator, batch, height, width, 20.0)
    targets = Targets(
        fields=wanted.replace(heatmap=some(K, share=0.3).float(), seg=some(share=0.5).float()),
        heatmap_valid=some(K, share=0.7),
        mid_valid=some(E, share=0.3),
        seg_valid=some(share=0.7),
        long_valid=some(K, share=0.3),
    )
    return random_fields(generator, batch, height, width, 4.0), targets


def nowhere(targets: Targets) -> Targets:
    """The same targets, defined nowhere."""
    return replace(
        targets,
        fields=targets.fields.replace(heatmap=torch.zeros_like(targets.fields.heatmap)),
        heatmap_valid=torch.zeros_like(targets.heatmap_valid),
        mid_valid=torch.zeros_like(targets.mid_valid),
        seg_valid=torch.zeros_like(targets.seg_valid),
        long_valid=torch.zeros_like(targets.long_valid),
    )


def values(found: Losses) -> dict[str, float]:
    return {name: float(getattr(found, name).detach()) for name in NAMES}


def with_gradients(fields: Fields) -> Fields:
    return fields.map(lambda tensor: tensor.clone().requires_grad_())


@settings(max_examples=15, deadline=None)
@given(
    st.integers(0, 2**31),
    st.integers(1, 2),
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from([1.0, 32.0]),
    st.sampled_from([1.0, 2.5]),
)
def test_reference(seed: int, batch: int, height: int, width: int, radius: float, pos_weight: float) -> None:
    fields, targets = random_case(seed, batch, height, width)
    shares = torch.rand(targets.fields.seg.shape, generator=torch.Generator().manual_seed(seed))
    targets = replace(targets, fields=targets.fields.replace(seg=shares))
    expected = reference.losses(fields, targets, radius=radius, pos_weight=pos_weight)
    found = losses(fields, targets, radius=radius, pos_weight=pos_weight)
    assert values(found) == pytest.approx(expected, rel=1e-4, abs=1e-6)


@settings(max_examples=15, deadline=None)
@given(st.floats(0.05, 0.95), st.floats(0.2, 5.0))
def test_pos_weight_multiplies_the_odds_of_the_best_probability(share: float, pos_weight: float) -> None:
    """A cell that is a person in some of many images costs least at share / (1 - share) * pos_weight."""
    fields, targets = random_case(0)
    targets = replace(targets, fields=targets.fields.replace(seg=torch.full_like(fields.seg, share)))
    logit = torch.full_like(fields.seg, math.log(pos_weight * share / (1 - share))).requires_grad_()
    losses(fields.replace(seg=logit), targets, radius=32.0, pos_weight=pos_weight).seg.backward()
    assert logit.grad is not None
    assert logit.grad.abs().max() < 1e-6


def test_the_objective_weighs_positive_targets() -> None:
    fields, targets = random_case(4)
    objective = Objective.of(params.Model(refine=False), params.Train(pos_weight=2.5), COCO_PERSON)
    assert values(objective(fields, targets)) == values(losses(fields, targets, radius=32.0, pos_weight=2.5))


def test_undecided_logits_cost_log_2() -> None:
    fields, targets = random_case(0)
    zeros = fields.replace(heatmap=torch.zeros_like(fields.heatmap), seg=torch.zeros_like(fields.seg))
    found = losses(zeros, targets, radius=32.0)
    assert float(found.heatmap) == pytest.approx(math.log(2))
    assert float(found.seg) == pytest.approx(math.log(2))


def test_an_offset_wrong_by_the_radius_in_x_and_y_costs_2() -> None:
    _, targets = random_case(0)
    fields = targets.fields
    off = fields.replace(**{name: fields.tensors()[name] + 32.0 for name in ("short", "mid", "long")})
    found = losses(off, targets, radius=32.0)
    assert [float(found.short), float(found.mid), float(found.long)] == pytest.approx([2, 2, 2])


def test_perfect_fields_cost_nothing() -> None:
    _, targets = random_case(0)
    perfect = targets.fields.replace(
        heatmap=2000 * targets.fields.heatmap - 1000, seg=2000 * targets.fields.seg - 1000
    )
    assert values(losses(perfect, targets, radius=32.0)) == dict.fromkeys(NAMES, 0.0)


@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf])
def test_what_stands_at_undefined_positions_does_not_matter(garbage: float) -> None:
    fields, targets = random_case(1)
    known = {
        "heatmap": targets.heatmap_valid,
        "seg": targets.seg_valid,
        "short": targets.short_valid[:, :, None],
        "mid": targets.mid_valid[:, :, None],
        "long": targets.long_valid[:, :, None],
    }

    def spoilt(given: Fields, names: tuple[str, ...]) -> Fields:
        return given.replace(**{n: given.tensors()[n].where(known[n], garbage) for n in names})

    # Where the short-range offsets are defined is told by the heatmap target, so that one is always a number.
    bad_targets = replace(targets, fields=spoilt(targets.fields, ("seg", "short", "mid", "long")))
    bad = with_gradients(spoilt(fields, NAMES))
    clean = with_gradients(fields)
    found, expected = losses(bad, bad_targets, radius=32.0), losses(clean, targets, radius=32.0)
    assert values(found) == values(expected)
    found.total(EQUAL).backward()
    expected.total(EQUAL).backward()
    for name, tensor in bad.tensors().items():
        assert torch.equal(tensor.grad, clean.tensors()[name].grad)
        assert not tensor.grad.masked_select(~known[name]).any()
        assert tensor.grad.any()


def test_nothing_defined_is_exactly_0_with_gradient_0() -> None:
    fields, targets = random_case(2)
    fields = with_gradients(fields)
    objective = Objective(radius=32.0, weights=params.LossWeights(), steps=2, skeleton=COCO_PERSON)
    found = objective(fields, nowhere(targets))
    assert values(found) == dict.fromkeys(NAMES, 0.0)
    found.total(objective.weights).backward()
    for tensor in fields.tensors().values():
        assert torch.equal(tensor.grad, torch.zeros_like(tensor))


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31))
def test_mirrored_fields_and_targets_cost_the_same(seed: int) -> None:
    fields, targets = random_case(seed)
    flipped = Targets(
        fields=mirrored(targets.fields),
        heatmap_valid=targets.heatmap_valid.flip(-1)[:, list(FLIP)],
        mid_valid=targets.mid_valid.flip(-1)[:, EDGE_FLIP],
        seg_valid=targets.seg_valid.flip(-1),
        long_valid=targets.long_valid.flip(-1)[:, list(FLIP)],
    )
    found = losses(mirrored(fields), flipped, radius=32.0)
    assert values(found) == pytest.approx(values(losses(fields, targets, radius=32.0)), rel=1e-5)


def test_radius_is_the_unit_of_the_offsets_alone() -> None:
    fields, targets = random_case(3)
    one, two = losses(fields, targets, radius=10.0), losses(fields, targets, radius=20.0)
    for name in ("short", "mid", "long"):
        assert float(getattr(one, name)) == pytest.approx(2 * float(getattr(two, name)))
    assert (float(one.heatmap), float(one.seg)) == (float(two.heatmap), float(two.seg))


def test_total_weighs_heatmap_seg_short_mid_long() -> None:
    scalars = Losses(*(torch.tensor(float(10**power)) for power in range(5)))
    assert float(scalars.total(params.LossWeights())) == pytest.approx(4 + 20 + 100 + 250 + 1250)


def half(targets: Targets, images: slice) -> Targets:
    """Some images of a batch."""
    fields, *valid = vars(targets).values()
    return Targets(fields.map(itemgetter(images)), *(mask[images] for mask in valid))


def test_positions_are_those_that_are_averaged_over() -> None:
    fields, targets = random_case(6)
    counted = positions(targets).tolist()
    masks = ("heatmap_valid", "seg_valid", "short_valid", "mid_valid", "long_valid")
    assert counted == [int(getattr(targets, name).sum()) for name in masks]
    given = losses(fields, targets, radius=32.0, counts=positions(targets))
    assert values(given) == values(losses(fields, targets, radius=32.0))
    assert positions(nowhere(targets)).tolist() == [0] * 5


def test_parts_of_a_batch_make_up_its_loss_however_uneven_they_are() -> None:
    fields, targets = random_case(7, batch=3)
    counts = positions(targets)
    parts = [
        losses(
            fields.map(itemgetter(images)),
            half(targets, images),
            radius=32.0,
            counts=counts,
        )
        for images in (slice(0, 1), slice(1, 3))
    ]
    summed = {name: sum(values(part)[name] for part in parts) for name in NAMES}
    assert summed == pytest.approx(values(losses(fields, targets, radius=32.0)), rel=1e-5)


def test_the_objective_judges_refined_offsets() -> None:
    fields, targets = random_case(4)
    fields = with_gradients(fields)
    objective = Objective.of(params.Model(radius=20.0), params.Train(), skeleton=COCO_PERSON)
    found = objective(fields, targets)
    refined = refine(fields, mid_steps=2, long_steps=2, skeleton=COCO_PERSON)
    assert values(found) == values(losses(refined, targets, radius=20.0))
    # The errors of mid- and long-range offsets reach the short-range branch too.
    (found.mid + found.long).backward()
    assert fields.short.grad.any()


def test_the_objective_without_refinement_judges_raw_offsets() -> None:
    fields, targets = random_case(4)
    objective = Objective.of(params.Model(refine=False), params.Train(), skeleton=COCO_PERSON)
    assert values(objective(fields, targets)) == values(losses(fields, targets, radius=32.0))


def test_float32_whatever_comes_in() -> None:
    fields, targets = random_case(5)
    rounded = fields.map(Tensor.bfloat16)
    objective = Objective.of(params.Model(), params.Train(), skeleton=COCO_PERSON)
    expected = values(objective(rounded.float(), targets))
    with torch.autocast("cpu", torch.bfloat16):
        found = objective(rounded, targets)
    assert values(found) == expected
    assert all(loss.dtype == torch.float32 for loss in vars(found).values())


def test_without_fields_for_masks_the_poses_cost_the_same() -> None:
    fields, targets = random_case(4)
    poses_only = fields.replace(seg=fields.seg[:, :0, :0], long=fields.long[..., :0, :0])
    objective = Objective.of(params.Model(), params.Train(), skeleton=COCO_PERSON)
    found, expected = values(objective(poses_only, targets)), values(objective(fields, targets))
    assert found == expected | {"seg": 0, "long": 0}
