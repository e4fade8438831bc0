"""Grouping: seeds, tracing and acceptance by hand, the slow reference, and what must not matter."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from personlab.codec import hough as voting
from personlab.codec.encode import encode
from personlab.codec.fields import Fields
from personlab.codec.group import find_people, presence
from personlab.codec.hough import HoughMap, Seeds
from personlab.codec.pyramid import Frame, Level
from personlab.skeleton import COCO_PERSON
from tests.coco_person import EDGES, K
from tests.reference import codec as reference
from tests.reference.scenes import adversarial, figure, predicted, random_fields, scene
from tests.test_hough import Votes, accumulate
from tests.test_score import at, random_poses

encode, find_people = partial(encode, skeleton=COCO_PERSON), partial(find_people, skeleton=COCO_PERSON)
RADIUS, NMS_RADIUS, THRESHOLD = 32.0, 10.0, 0.01


def score_map(*peaks: tuple[int, int, int, float], rows: int = 8, columns: int = 9) -> HoughMap:
    """A map that is zero but for (kind, row, column, score)."""
    score = torch.zeros(K, rows, columns)
    for kind, row, column, value in peaks:
        score[kind, row, column] = value
    return HoughMap(score=score, bin=2.0)


def seeds_at(*places: tuple[float, float, int]) -> Seeds:
    """Seeds at (x, y) of a kind, given best first."""
    table = torch.tensor(places).view(-1, 3)
    return Seeds(table[:, :2], table[:, 2].long(), torch.linspace(1, 0.5, len(table)))


def find_seeds(hough: HoughMap, *, threshold: float) -> Seeds:
    return voting.find_seeds(hough, np.flatnonzero(hough.score.numpy() > threshold))


def level_of(fields: Fields) -> tuple[list[Level], Frame]:
    """Fields as the one level of an image as large as they are, and its frame."""
    height, width = ((n - 1) * fields.stride + 1 for n in fields.seg.shape[1:])
    return [Level(fields, 1.0)], Frame.common([Level(fields, 1.0)], height, width)


def voted(fields: Fields, bin: float = 2.0) -> Seeds:
    """The seeds of fields, as voting finds them."""
    return voting.vote(*level_of(fields), radius=RADIUS, bin=bin, threshold=THRESHOLD)[1]


def traced(fields: Fields, seeds: Seeds, *, steps: int) -> Tensor:
    """The poses of all seeds, which are different ones, in fields of one level, in its own pixels."""
    keypoints = find_people(*level_of(fields), seeds, trace_refinements=steps, nms_radius=0.0, most=1000)
    assert len(keypoints) == len(seeds.xy)
    return keypoints


def found(fields: Fields, *, bin: float = 2.0, steps: int = 2) -> Tensor:
    """Keypoints of the people found, best first: N x K x 2."""
    seeds, options = voted(fields, bin), {"trace_refinements": steps, "nms_radius": NMS_RADIUS, "most": 200}
    return find_people(*level_of(fields), seeds, **options)


# seeds by hand


def test_a_point_mass_is_found_where_it_is() -> None:
    fields = predicted(scene([figure(60.3, 25.2, 85.0)], height=129, width=129, stride=8), radius=32, noise=0)
    seeds = voted(fields)
    assert sorted(seeds.kind.tolist()) == list(range(K))
    assert torch.allclose(seeds.xy, figure(60.3, 25.2, 85.0)[seeds.kind], atol=1e-3)


def test_seeds_come_best_first_and_above_the_threshold() -> None:
    seeds = find_seeds(score_map((0, 2, 2, 0.3), (5, 2, 2, 0.9), (0, 6, 6, 0.01)), threshold=0.01)
    assert seeds.kind.tolist() == [5, 0]
    assert seeds.score.tolist() == pytest.approx([0.9, 0.3])
    assert seeds.xy.tolist() == [[4.0, 4.0], [4.0, 4.0]]


@pytest.mark.parametrize("phase", [0.0, 0.5, 1.0, 1.7])
def test_a_keypoint_scores_the_same_wherever_it_falls_between_bins(phase: float) -> None:
    """A single bin would hold all of its votes or as little as a quarter of them."""
    votes = Votes(torch.tensor([[10 + phase, 12 + phase]]), torch.tensor([3]), torch.tensor([0.8]))
    seeds = find_seeds(accumulate(votes, height=33, width=33, bin=2.0), threshold=0.01)
    assert seeds.score.tolist() == pytest.approx([0.8])
    assert torch.allclose(seeds.xy, votes.xy, atol=1e-4)


def test_only_maxima_among_eight_neighbours() -> None:
    seeds = find_seeds(score_map((0, 2, 2, 0.9), (0, 3, 3, 0.8), (0, 2, 4, 0.7)), threshold=0.01)
    assert len(seeds.score) == 1
    # at the centroid of its 3 x 3 bins, of which (2, 4) is none
    assert seeds.xy[0].tolist() == pytest.approx([2 * (2 + 0.8 / 1.7), 2 * (2 + 0.8 / 1.7)])


def test_equal_neighbours_are_one_maximum() -> None:
    for other in ((2, 3), (3, 1), (3, 2), (3, 3)):
        seeds = find_seeds(score_map((0, 2, 2, 0.5), (0, *other, 0.5)), threshold=0.01)
        assert len(seeds.score) == 1
        assert seeds.xy[0].tolist() == pytest.approx([other[1] + 2.0, other[0] + 2.0])


def test_seeds_on_the_border_of_the_map() -> None:
    seeds = find_seeds(score_map((0, 0, 0, 0.5), (0, 7, 8, 0.4)), threshold=0.01)
    assert seeds.xy.tolist() == [[0.0, 0.0], [16.0, 14.0]]


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_constant_maps(value: float) -> None:
    """Zero everywhere has no maximum; one everywhere has the first bin of each type."""
    seeds = find_seeds(HoughMap(score=torch.full((K, 6, 5), value), bin=2.0), threshold=0.01)
    assert len(seeds.kind) == (K if value else 0)


# tracing by hand


@pytest.mark.parametrize("kind", range(K))
def test_any_keypoint_finds_all_others(kind: int) -> None:
    pose = figure(60.3, 25.2, 85.0)
    case = scene([pose], height=129, width=129, stride=8)
    fields = encode(case.people, stride=8, radius=RADIUS).fields
    for steps in (0, 2):
        keypoints = traced(fields, seeds_at((*pose[kind].tolist(), kind)), steps=steps)
        assert torch.allclose(keypoints[0], pose, atol=1e-3)


def test_short_offsets_correct_wrong_mid_offsets() -> None:
    """Every mid-range offset is (3, -4) px off, and every step of equation 2 makes up for all of it."""
    pose = figure(60.3, 25.2, 85.0)
    fields = encode(scene([pose], height=129, width=129, stride=8).people, stride=8, radius=RADIUS).fields
    wrong = fields.replace(mid=fields.mid + torch.tensor([3.0, -4.0]).view(2, 1, 1))
    seed = seeds_at((*pose[0].tolist(), 0))
    assert torch.allclose(traced(wrong, seed, steps=1)[0], pose, atol=1e-3)
    unrefined = traced(wrong, seed, steps=0)[0]
    assert torch.allclose(unrefined[1], pose[1] + torch.tensor([3.0, -4.0]), atol=1e-3)


def test_tracing_out_of_the_map_is_no_error() -> None:
    fields = random_fields(0, rows=4, columns=5, stride=8, spread=1000.0)
    keypoints = traced(fields, seeds_at((0.0, 0.0, 0), (32.0, 24.0, 16)), steps=2)
    assert torch.isfinite(keypoints).all()


def test_no_seeds() -> None:
    fields = random_fields(0, rows=4, columns=5, stride=8, spread=10.0)
    assert traced(fields, seeds_at(), steps=2).shape == (0, K, 2)


# acceptance by hand


def accepted(*seeds: tuple[float, float, int], most: int = 200, eye: float = 0.0) -> list[float]:
    """Where the first keypoints of the accepted poses are.

    Offsets are zero: the keypoints of a pose are all at its seed, but for the left eye, which the nose's
    offset puts `eye` pixels to the right.
    """
    fields = random_fields(0, rows=4, columns=5, stride=8, spread=0.0)
    fields.mid[0, EDGES.index((0, 1)), 0] = eye
    options = {"trace_refinements": 0, "nms_radius": 10.0, "most": most}
    keypoints = find_people(*level_of(fields), seeds_at(*seeds), **options)
    return [round(x, 3) for x in keypoints[:, 0, 0].tolist()]


def test_a_seed_within_the_radius_is_rejected_the_rim_included() -> None:
    xs = (0.0, 10.0, 10.1, 20.05, 20.2)
    assert accepted(*((x, 0.0, 0) for x in xs)) == [0.0, 10.1, 20.2]


def test_only_the_same_keypoint_rejects() -> None:
    assert len(accepted((0, 0, 0), (0, 0, 1), eye=100.0)) == 2
    assert len(accepted((0, 0, 0), (0, 0, 2), eye=100.0)) == 1


def test_a_rejected_seed_rejects_no_other() -> None:
    xs = (0.0, 9.0, 18.0)
    assert accepted(*((x, 0.0, 0) for x in xs)) == [0.0, 18.0]


# the slow reference


def reference_groups(fields: Fields, *, bin: float, steps: int, on_grid: bool) -> list[np.ndarray]:
    height, width = ((n - 1) * fields.stride + 1 for n in fields.seg.shape[1:])
    heatmap, short, mid = (t[0].double().numpy() for t in (fields.heatmap, fields.short, fields.mid))
    score = reference.hough(
        heatmap, short, stride=fields.stride, radius=RADIUS, height=height, width=width, bin=bin
    )
    if on_grid:
        mid, steps = reference.refine_mid(mid, short, stride=fields.stride, steps=steps), 0
    candidates = reference.seeds(score, bin=bin, threshold=THRESHOLD)
    levels = [reference.Level(heatmap, short, mid, fields.stride)]
    return reference.group(levels, candidates, steps=steps, nms_radius=NMS_RADIUS)


@pytest.mark.parametrize("name", ["one person", "on the border", "half outside", "1000 px tall"])
def test_single_precision_is_enough(name: str) -> None:
    """To 1e-2 px where people do not overlap: float32 holds 1e-4 px of a place 1000 px away."""
    fields = predicted(adversarial()[name], radius=RADIUS)
    bin = 8.0 if fields.seg.shape[1] > 30 else 2.0
    expected = reference_groups(fields, bin=bin, steps=2, on_grid=False)
    np.testing.assert_allclose(found(fields, bin=bin).numpy(), np.stack(expected), rtol=0, atol=1e-2)


@pytest.mark.parametrize("name", ["one person", "on the border", "touching, 3 px apart"])
def test_refining_at_a_place_is_refining_the_map_and_sampling_it(name: str) -> None:
    """The paper refines the whole map, then samples it at y_k; tracing refines at y_k itself. With targets
    for fields both end at the same place, to 0.05 px where two people share a cell and 1e-3 px elsewhere."""
    fields = predicted(adversarial()[name], radius=RADIUS, noise=0.0)
    expected = reference_groups(fields, bin=2.0, steps=2, on_grid=True)
    poses = found(fields)
    assert len(poses) == len(expected)
    tolerance = 0.05 if name.startswith("touching") else 1e-3
    np.testing.assert_allclose(poses.numpy(), np.stack(expected), rtol=0, atol=tolerance)


# what must not matter


def test_no_more_than_asked_for_and_the_best() -> None:
    xs = (0.0, 100.0, 200.0)
    assert accepted(*((x, 0.0, 0) for x in xs), most=2) == [0.0, 100.0]


# presence


def present(fields: Fields, keypoints: Tensor, *, height: float, width: float) -> Tensor:
    """In an image whose last row and column are `height` and `width`."""
    return presence([Level(fields, 1.0)], Frame(1.0, height + 1, width + 1), keypoints)


def test_presence_is_the_heatmap_at_the_keypoint() -> None:
    fields = random_fields(0, rows=5, columns=5, stride=8, spread=0.0)
    for k in range(K):
        fields.heatmap[0, k] = torch.linspace(0, 0.4, 5) * (k / K) + torch.linspace(0, 0.4, 5)[:, None]
    found = present(fields, at(12.0, 20.0), height=32, width=32)[0]
    assert found.tolist() == pytest.approx([0.15 * k / K + 0.25 for k in range(K)], abs=1e-6)


@pytest.mark.parametrize(
    ("x", "y", "is_present"),
    [(0.0, 0.0, 1), (32.0, 30.0, 1), (33.0, 10.0, 0), (10.0, 31.0, 0), (-1.0, 5.0, 0), (5.0, -1.0, 0)],
)
def test_nothing_is_present_outside_the_image(x: float, y: float, is_present: int) -> None:
    fields = random_fields(0, rows=5, columns=5, stride=8, spread=0.0)
    fields = fields.replace(heatmap=torch.ones_like(fields.heatmap))
    found = present(fields, at(x, y), height=30, width=32)
    assert found.tolist() == [[is_present] * K]


def test_rounding_does_not_put_a_border_keypoint_outside() -> None:
    """A keypoint on the outermost pixel is traced to within float32 of it, on either side."""
    fields = random_fields(0, rows=5, columns=5, stride=8, spread=0.0)
    fields = fields.replace(heatmap=torch.ones_like(fields.heatmap))
    for x, y in ((-1e-4, 5.0), (5.0, -1e-4), (32.0 + 1e-4, 5.0), (5.0, 30.0 + 1e-4)):
        assert (present(fields, at(x, y), height=30, width=32) == 1).all()


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31))
def test_presence_matches_the_reference(seed: int) -> None:
    keypoints, _, _ = random_poses(seed, 5, side=60.0)
    fields = random_fields(seed, rows=6, columns=7, stride=8, spread=0.0)
    found = present(fields, keypoints, height=38, width=45)
    for j in range(5):
        expected = reference.presence(
            fields.heatmap[0].double().numpy(), keypoints[j].double().numpy(), stride=8, height=39, width=46
        )
        np.testing.assert_allclose(found[j].numpy(), expected, rtol=0, atol=1e-4)
