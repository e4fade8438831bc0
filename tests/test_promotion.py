"""The rule of promotion: what counts as better, as worse, and as chance."""

from pathlib import Path

import pytest

from personlab.metrics.coco import ground_truth
from personlab.registry import promotion
from personlab.registry.promotion import Comparison, Predictions, Verdict
from personlab.skeleton import COCO_PERSON
from personlab.tables import shards
from tests import rehearsal

BETTER, WORSE, SAME, HIGHER = (0.1, 0.05, 0.15), (-0.1, -0.15, -0.05), (0.0, 0.0, 0.0), (0.01, -0.02, 0.03)
NO_PEOPLE = (float("nan"),) * 3


def compared(task: promotion.Task, change: tuple[float, float, float]) -> Comparison:
    value, low, high = change
    return Comparison(task, champion=0.5, candidate=0.5 + value, low=low, high=high)


@pytest.mark.parametrize(
    ("keypoints", "segm", "rule", "promoted", "why"),
    [
        (BETTER, SAME, "better", True, "keypoints got better"),
        (SAME, BETTER, "better", True, "segmentation got better"),
        (BETTER, WORSE, "better", False, "segmentation got worse"),
        (WORSE, WORSE, "better", False, "keypoints and segmentation got worse"),
        (HIGHER, HIGHER, "better", False, "nothing got better beyond chance"),
        (HIGHER, SAME, "not-worse", True, "AP of keypoints is higher"),
        (SAME, SAME, "not-worse", False, "no AP is higher"),
        (BETTER, WORSE, "not-worse", False, "segmentation got worse"),
        (WORSE, WORSE, "always", True, "the rule says always"),
        (BETTER, BETTER, "never", False, "the rule says never"),
        (BETTER, NO_PEOPLE, "better", True, "keypoints got better"),
        (NO_PEOPLE, NO_PEOPLE, "not-worse", False, "no AP is higher"),
    ],
)
def test_the_rule(keypoints, segm, rule, promoted: bool, why: str) -> None:
    verdict = promotion.decide((compared("keypoints", keypoints), compared("segm", segm)), rule)
    assert verdict.promoted is promoted
    assert why in verdict.why


def test_a_verdict_reads_well() -> None:
    verdict = promotion.decide((compared("keypoints", BETTER), compared("segm", NO_PEOPLE)), "better")
    assert str(verdict).splitlines() == [
        "promoted: keypoints got better, nothing got worse",
        "  Keypoints: AP 0.500 -> 0.600, +0.100 (95%: +0.050 to +0.150), better",
        "  Segmentation: no annotated people",
    ]
    same = Verdict(False, "it is the champion, version 3", unchanged=True)
    assert str(same) == "unchanged: it is the champion, version 3"


@pytest.fixture(scope="module")
def val(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("val")
    rehearsal.write_shards(folder / "val", "images", first=1)
    rehearsal.write_shards(folder / "people", "people", first=1)
    return folder


def predictions(folder: Path, blur: float) -> Predictions:
    place = folder / f"blur-{blur}"
    if not place.exists():
        rehearsal.write_predictions(place, blur, first=1)
    images = shards.annotated(folder / "val", folder / "people")
    return Predictions(shards.detections(place, images, folder / "val"), max_people=20)


def compare(folder: Path, champion: float, candidate: float) -> tuple[Comparison, ...]:
    truth = ground_truth(shards.annotated(folder / "val", folder / "people").values(), skeleton=COCO_PERSON)
    return promotion.compare(truth, predictions(folder, champion), predictions(folder, candidate))


def test_a_sharper_model_is_better_and_a_blurred_one_worse(val: Path) -> None:
    assert all(each.better for each in compare(val, champion=2.0, candidate=0.0))
    assert all(each.worse for each in compare(val, champion=0.0, candidate=2.0))


def test_a_model_is_as_good_as_itself_exactly(val: Path) -> None:
    for each in compare(val, champion=1.0, candidate=1.0):
        assert each.champion == each.candidate
        assert (each.low, each.high) == (0, 0)
        assert not each.better
        assert not each.worse


def test_the_comparison_is_paired(val: Path) -> None:
    """A small difference in every image is seen, though the images differ among themselves by far more."""
    from personlab.metrics.bootstrap import interval, resampled_ap
    from personlab.metrics.coco import match

    truth = ground_truth(shards.annotated(val / "val", val / "people").values(), skeleton=COCO_PERSON)
    alone = resampled_ap(match(truth, predictions(val, 1.0).people, "keypoints"), samples=300)
    low, high = interval(alone)
    (keypoints, _) = compare(val, champion=1.0, candidate=0.9)
    assert keypoints.better
    assert keypoints.candidate - keypoints.champion < high - low
