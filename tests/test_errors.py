"""Kinds of errors in closed-form cases, and what mending them does to AP."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as rle
from pycocotools.coco import COCO

from personlab.metrics import errors
from personlab.metrics.coco import Matches, Task, match
from personlab.metrics.errors import KINDS, NONE, Analysis, Errors, keypoint_kinds, pixel_kinds
from personlab.people import Detection
from personlab.skeleton import Skeleton
from tests.coco_person import FLIP, KAPPAS, KEYPOINTS, K
from tests.reference import errors as reference
from tests.test_metrics import encoded, found, ground_truth, person, real, row, shard_rows

GOOD, JITTER, INVERSION, SWAP, MISS = range(5)
__all__ = ["real"]  # a fixture

LEFT_WRIST, RIGHT_WRIST = KEYPOINTS.index("left_wrist"), KEYPOINTS.index("right_wrist")
AREA = 10_000.0


def quiet(items: Iterable[Any], **options: Any) -> Any:
    return items


def analysis(truth: COCO, detections: dict[int, list[Detection]], task: Task, budget: int = 20) -> Analysis:
    return Analysis.of(match(truth, detections, task, budget), detections)


# --- keypoints ----------------------------------------------------------------------------------------------


def spread() -> np.ndarray:
    """Two people whose keypoints are far from each other: 2 x K x 3."""
    x, y = np.meshgrid(1000.0 * np.arange(K), [0.0, 1000.0])
    return np.stack((x, y, np.full_like(x, 2)), axis=-1)


def kinds(detected: np.ndarray, people: np.ndarray, flip: Any = FLIP) -> np.ndarray:
    areas = np.full(len(people), AREA)
    return keypoint_kinds(detected, people, areas, 0, np.asarray(KAPPAS), flip)


def distance(similarity: float, k: int) -> float:
    """Distance at which keypoint k has a similarity of exp(-d^2 / (2 area kappa^2))."""
    return float(np.sqrt(-2 * AREA * KAPPAS[k] ** 2 * np.log(similarity)))


@pytest.mark.parametrize(
    ("similarity", "kind"), [(1, GOOD), (0.86, GOOD), (0.84, JITTER), (0.51, JITTER), (0.49, MISS)]
)
def test_the_distance_to_the_own_place_tells_good_from_jitter_from_miss(similarity: float, kind: int) -> None:
    people = spread()
    detected = people[0, :, :2].copy()
    detected[:, 1] -= [distance(similarity, k) for k in range(K)]
    assert (kinds(detected, people) == kind).all()


def test_left_and_right_exchanged_is_an_inversion() -> None:
    people = spread()
    detected = people[0, FLIP, :2]
    expected = np.where(np.asarray(FLIP) == np.arange(K), GOOD, INVERSION)
    np.testing.assert_array_equal(kinds(detected, people), expected)
    assert set(kinds(detected, people, flip=None)) == {GOOD, MISS}


def test_another_persons_keypoint_is_a_swap_of_the_same_kind_or_mirrored() -> None:
    people = spread()
    assert (kinds(people[1, :, :2], people) == SWAP).all()
    assert (kinds(people[1, FLIP, :2], people) == SWAP).all()
    assert (kinds(people[1, np.roll(np.arange(K), 5), :2], people) == MISS).sum() > K / 2


def test_between_mirror_and_other_person_the_nearer_counts() -> None:
    people = spread()
    people[1, LEFT_WRIST, :2] = people[0, RIGHT_WRIST, :2] + [distance(0.9, LEFT_WRIST), 0]
    detected = people[0, :, :2].copy()
    detected[LEFT_WRIST] = people[0, RIGHT_WRIST, :2]
    assert kinds(detected, people)[LEFT_WRIST] == INVERSION
    detected[LEFT_WRIST] = people[1, LEFT_WRIST, :2]
    assert kinds(detected, people)[LEFT_WRIST] == SWAP


def test_unlabelled_keypoints_are_not_judged_and_attract_nothing() -> None:
    people = spread()
    people[0, RIGHT_WRIST, 2] = people[1, :, 2] = 0
    assert kinds(people[0, FLIP, :2], people)[RIGHT_WRIST] == NONE
    assert kinds(people[0, FLIP, :2], people)[LEFT_WRIST] == MISS
    assert set(kinds(people[1, :, :2], people)) == {MISS, NONE}


@pytest.mark.parametrize("flip", [FLIP, None])
def test_kinds_are_those_of_the_slow_reference(flip: Any) -> None:
    """Random people whose keypoints lie close together, so that every kind occurs."""
    generator = np.random.default_rng(0)
    counts = dict.fromkeys([*KINDS["keypoints"], "none"], 0)
    for count in (1, 2, 3, 4) * 10:
        people = np.dstack((generator.uniform(0, 60, (count, K, 2)), generator.integers(0, 3, (count, K))))
        detected = generator.uniform(0, 60, (K, 2))
        areas, person = generator.uniform(1000, 4000, count), int(generator.integers(count))
        found = keypoint_kinds(detected, people, areas, person, np.asarray(KAPPAS), flip)
        for k, kind in enumerate(found):
            name = [*KINDS["keypoints"], "none"][kind]
            counts[name] += 1
            assert name == reference.keypoint_kind(k, detected, people, areas, person, KAPPAS, flip)
    assert min(count for kind, count in counts.items() if flip or kind != "inversion") > 0


def test_any_keypoints_can_be_analysed_without_mirror_pairs_too() -> None:
    skeleton = Skeleton("leaf", ("tip", "base"), ((0, 1),), flip=None, sigmas=(0.05, 0.1))
    who = person(keypoints=[60, 50, 100, 150], visibility=[2, 2])
    detection = Detection(np.float32([[100, 150], [60, 50]]), np.ones(2, np.float32), 0.9, who["mask"])
    other = person(2, keypoints=[200, 50, 240, 150], visibility=[2, 2], x=190)
    truth = ground_truth([row(1, who, other)], skeleton=skeleton)
    assert analysis(truth, {1: [detection]}, "keypoints").counts.matched == 0  # OKS 0
    half = Detection(np.float32([[60, 50], [240, 150]]), np.ones(2, np.float32), 0.9, who["mask"])
    shares = analysis(truth, {1: [half]}, "keypoints").by_keypoint()
    assert (shares["tip"].of["good"], shares["base"].of["swap"]) == (1, 1)


def moved(who: dict, **places: tuple[float, float]) -> Detection:
    """The person found, with some keypoints elsewhere."""
    detection = found(who)
    for name, place in places.items():
        detection.keypoints[KEYPOINTS.index(name)] = place
    return detection


def test_shares_are_of_annotated_keypoints_by_keypoint_and_by_size() -> None:
    small, large = person(), person(x=200, w=120, h=200, visibility=[0] + [2] * (K - 1))
    truth = ground_truth([row(1, small, large)])
    detections = {1: [moved(small, left_wrist=(0, 290), nose=(399, 0)), found(large)]}
    result = Errors.of(match(truth, detections, "keypoints"), detections, quiet)
    assert result.sizes["all"].number == 2 * K - 1
    assert result.sizes["all"].of["miss"] == pytest.approx(2 / (2 * K - 1))
    assert result.sizes["medium"].of["miss"] == pytest.approx(2 / K)
    assert result.sizes["large"].of["good"] == 1
    assert result.keypoints["nose"] == errors.Shares(dict.fromkeys(KINDS["keypoints"], 0.0) | {"miss": 1}, 1)
    assert result.keypoints["left_wrist"].of["miss"] == 0.5
    for shares in (*result.sizes.values(), *result.keypoints.values()):
        assert sum(shares.of.values()) == pytest.approx(1)


def test_mending_one_kind_moves_its_keypoints_only() -> None:
    who = person()
    hip = np.reshape(who["keypoints"], (K, 2))[KEYPOINTS.index("right_hip")]
    detection = moved(who, left_wrist=(0, 290), left_hip=tuple(hip))
    result = analysis(ground_truth([row(1, who)]), {1: [detection]}, "keypoints")
    (mended,) = result.mended("inversion")[1]
    np.testing.assert_array_equal(mended.keypoints, moved(who, left_wrist=(0, 290)).keypoints)
    (mended,) = result.mended("miss")[1]
    np.testing.assert_array_equal(mended.keypoints, moved(who, left_hip=tuple(hip)).keypoints)
    (mended,) = result.mended("jitter")[1]
    np.testing.assert_array_equal(mended.keypoints, detection.keypoints)


# --- masks --------------------------------------------------------------------------------------------------


def test_every_pixel_of_either_mask_has_one_kind() -> None:
    everything = np.array(np.meshgrid(*[[False, True]] * 5, indexing="ij")).reshape(5, -1)
    detected, annotated, others_annotated, others_detected, unmatched = everything
    found = pixel_kinds(
        detected,
        annotated,
        others_annotated=others_annotated,
        others_detected=others_detected,
        unmatched=unmatched,
    )
    names = np.array([*KINDS["segm"], "none"])[found]
    for name, d, a, oa, od, u in zip(names, *everything, strict=True):
        if d:
            expected = "correct" if a else f"taken_from_{'others' if oa else 'background'}"
        else:
            lost = "others" if od else "unmatched" if u else "background"
            expected = f"lost_to_{lost}" if a else "none"
        assert name == expected


def rectangle(x: int, y: int, w: int, h: int) -> dict:
    return person(x=x, y=y, w=w, h=h)


def test_shares_of_pixels_are_those_of_rectangles() -> None:
    """Of a person of 100 x 100, the left 60 columns are found, and 20 x 100 outside of it.

    Of the other 40 columns another person's detection has 10 and an unmatched one 10. Of the pixels outside,
    a quarter is another person's.
    """
    who, other = rectangle(100, 100, 100, 100), rectangle(80, 100, 5, 100)
    detections = [
        found(who, 0.9, mask=encoded(80, 100, 80, 100)),
        found(who, 0.7, mask=encoded(170, 100, 10, 100)),  # IoU 0.1 with `who`, who is matched: a duplicate
    ]
    neighbour = rectangle(200, 100, 20, 100)
    detections.append(found(neighbour, 0.8, mask=encoded(190, 100, 30, 100)))
    truth = ground_truth([row(1, who, other, neighbour)])
    result = analysis(truth, {1: detections}, "segm")
    (pair, _) = result.pairs
    union = 12_000
    expected = {
        "correct": 6000,
        "taken_from_background": 1500,
        "taken_from_others": 500,
        "lost_to_background": 2000,
        "lost_to_unmatched": 1000,
        "lost_to_others": 1000,
    }
    assert dict(zip(KINDS["segm"], pair.amounts[0], strict=True)) == pytest.approx(
        {kind: pixels / union for kind, pixels in expected.items()}
    )
    assert (result.counts.matched, result.counts.duplicates, result.counts.missed_people) == (2, 1, 1)
    for kind in KINDS["segm"][1:]:
        mended = {"size": [300, 400], "counts": result.mended(kind)[1][0].rle}
        own = {"size": [300, 400], "counts": who["mask"]}
        union_left = union - (expected[kind] if kind.startswith("taken") else 0)
        correct = expected["correct"] + (expected[kind] if kind.startswith("lost") else 0)
        assert rle.iou([mended], [own], [0])[0, 0] == pytest.approx(correct / union_left)


# --- detections ---------------------------------------------------------------------------------------------


def test_detections_are_counted_once() -> None:
    who, missed = person(), person(x=200)
    crowd = person(x=300, y=10, w=90, h=60, crowd=True, visibility=[0] * K)
    inside, elsewhere = person(x=320, y=20, w=40, h=40), person(x=10, y=200, w=40, h=40)
    detections = [found(who, 0.9), found(who, 0.8, shift=(2, 0)), found(inside, 0.7), found(elsewhere, 0.6)]
    for task in ("keypoints", "segm"):
        counts = analysis(ground_truth([row(1, who, missed, crowd)]), {1: detections}, task).counts
        assert counts == errors.Counts(
            matched=1, duplicates=1, false_positives=1, ignored=1, missed_people=1
        ), task


def test_each_error_of_detections_is_mended_alone() -> None:
    who, missed = person(), person(x=200)
    elsewhere = person(x=10, y=200, w=40, h=40)
    people = [found(elsewhere, 0.95), found(who, 0.8, shift=(4, 0)), found(who, 0.7)]
    result = analysis(ground_truth([row(1, who, missed)]), {1: people}, "keypoints")
    mended = {error: result.mended(error)[1] for error in errors.DETECTION_ERRORS}
    assert [each.score for each in mended["wrong_scores"]] == pytest.approx([0, 0, 1])
    assert mended["duplicates"] == people[:2]
    assert mended["false_positives"] == people[1:]
    added, *others = mended["missed_people"]
    assert others == people
    np.testing.assert_array_equal(added.keypoints.ravel(), np.float32(missed["keypoints"]))
    assert added.score > 0.95


def test_a_budget_leaves_out_the_last_detections() -> None:
    who, other = person(), person(x=200)
    people = [found(other, 0.1), found(who, 0.9)]
    result = analysis(ground_truth([row(1, who, other)]), {1: people}, "segm", budget=1)
    assert result.detections == {1: people[1:]}
    assert result.counts.missed_people == 1


@pytest.mark.parametrize("task", ["keypoints", "segm"])
def test_nothing_at_all_has_no_shares(task: Task) -> None:
    for rows in ([row(1)], [row(1, person())]):
        detections: dict[int, list[Detection]] = {}
        result = Errors.of(match(ground_truth(rows), detections, task), detections, quiet)
        assert np.isnan([*result.sizes["all"].of.values()]).all()
        assert result.sizes["all"].number == result.counts.matched == 0
        assert result.counts.missed_people == len(rows[0]["people"])
        assert list(result.mended) == [*KINDS[task][1:], *errors.DETECTION_ERRORS]


# --- on real annotations ------------------------------------------------------------------------------------


@pytest.mark.testdata
@pytest.mark.parametrize("task", ["keypoints", "segm"])
def test_mending_everything_gives_an_ap_of_one(real: tuple[COCO, Any], task: Task) -> None:
    rows = shard_rows(real[0])[:40]
    images = {each["image_id"] for each in rows}
    truth, detections = ground_truth(rows), {i: people for i, people in real[1].items() if i in images}
    order = (*KINDS[task][1:], *errors.DETECTION_ERRORS)
    aps = [match(truth, detections, task).columns()["AP"]]
    for error in order:
        step = analysis(truth, detections, task)
        detections = step.mended(error)
        aps.append(step.score(detections).columns()["AP"])
    assert aps[-1] == pytest.approx(1)
    assert aps[0] < 0.9
    assert analysis(truth, detections, task).of_size("all").of[KINDS[task][0]] == pytest.approx(1)


@pytest.mark.testdata
@pytest.mark.parametrize("task", ["keypoints", "segm"])
def test_shares_of_disturbed_people_sum_to_one_and_mending_does_no_harm(
    real: tuple[COCO, Any], task: Task
) -> None:
    truth, detections = ground_truth(shard_rows(real[0])), real[1]
    matches: Matches = match(truth, detections, task)
    result = Errors.of(matches, detections, quiet)
    for shares in (*result.sizes.values(), *result.keypoints.values()):
        assert sum(shares.of.values()) == pytest.approx(1)
    assert result.columns == matches.columns()
    for columns in result.mended.values():
        assert columns["AP"] >= result.columns["AP"] - 1e-9
    assert max(columns["AP"] for columns in result.mended.values()) > result.columns["AP"] + 0.05
    people = sum(not each["iscrowd"] for each in matches.evaluator.cocoGt.anns.values() if not each["ignore"])
    assert result.counts.matched + result.counts.missed_people == people
