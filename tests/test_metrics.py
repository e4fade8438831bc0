import io
import json
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from personlab.metrics import bootstrap, oks
from personlab.metrics.coco import Matches, Scores, evaluate, ground_truth, match
from personlab.people import Detection
from personlab.skeleton import COCO_PERSON
from tests.coco_person import KAPPAS, KEYPOINTS, K

ground_truth = partial(ground_truth, skeleton=COCO_PERSON)
HEIGHT, WIDTH = 300, 400


def encoded(x: int, y: int, w: int, h: int) -> bytes:
    """The mask of a rectangle in an image of HEIGHT x WIDTH."""
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8, order="F")
    mask[y : y + h, x : x + w] = 1
    return rle.encode(mask)["counts"]


def person(number=1, x=50, y=40, w=60, h=120, **changes) -> dict:
    """A person whose keypoints lie on a lattice in its box, and whose mask is the box."""
    points = np.array([(x + w * (k % 4 + 0.5) / 4, y + h * (k // 4 + 0.5) / 5) for k in range(K)])
    return {
        "person_id": number,
        "keypoints": points.ravel().tolist(),
        "visibility": [2] * K,
        "confidence": [1.0] * K,
        "imputed": False,
        "box": [x, y, w, h],
        "area": float(w * h),
        "crowd": False,
        "mask": encoded(x, y, w, h),
        **changes,
    }


def row(image_id: int, *people: dict) -> dict:
    return {"image_id": image_id, "height": HEIGHT, "width": WIDTH, "people": list(people)}


def found(who: dict, score=0.9, shift=(0.0, 0.0), mask: bytes | None = None) -> Detection:
    """The detection of a person, its keypoints shifted."""
    points = np.array(who["keypoints"], dtype=np.float32).reshape(K, 2) + np.float32(shift)
    return Detection(points, np.ones(K, dtype=np.float32), score, mask or who["mask"])


def test_perfect_detections_score_one():
    people = person(w=20, h=30, visibility=[0] * K), person(x=150), person(x=250, w=120, h=200)
    scores = evaluate(ground_truth([row(1, *people), row(2)]), {1: [found(each) for each in people]})
    assert " ".join(scores.keypoints) == "AP AP50 AP75 APM APL AR AR50 AR75 ARM ARL"
    assert " ".join(scores.segm) == "AP AP50 AP75 APS APM APL AR1 AR10 AR20 ARS ARM ARL"
    assert scores.keypoints == pytest.approx(dict.fromkeys(scores.keypoints, 1.0))
    assert scores.segm == pytest.approx({**dict.fromkeys(scores.segm, 1.0), "AR1": 1 / 3})


def test_columns_without_annotated_people_are_nan():
    scores = evaluate(ground_truth([row(1, person())]), {})
    assert scores.keypoints["AP"] == scores.segm["AP"] == scores.keypoints["APM"] == 0
    assert np.isnan([scores.keypoints["APL"], scores.keypoints["ARL"], scores.segm["APS"]]).all()


@pytest.mark.parametrize("detections", [{}, {1: []}])
def test_no_detections_score_zero(detections):
    scores = evaluate(ground_truth([row(1, person()), row(2)]), detections)
    assert scores.keypoints["AP"] == scores.keypoints["AR"] == scores.segm["AP"] == scores.segm["AR20"] == 0


def test_a_known_shift_gives_the_closed_form_oks():
    who = person()
    matches = match(ground_truth([row(1, who)]), {1: [found(who, shift=(3, -4))]}, "keypoints")
    expected = np.exp(-25 / (2 * who["area"] * np.square(KAPPAS)))
    means, counts = oks.per_keypoint(matches)
    np.testing.assert_allclose(means, expected, rtol=1e-4)
    assert (counts == 1).all()
    passed = np.mean(expected.mean() >= np.arange(0.5, 1, 0.05))
    assert 0 < passed < 1
    assert matches.columns()["AP"] == pytest.approx(passed)


def test_oks_per_keypoint_counts_annotated_keypoints_only():
    who = person(visibility=[0] + [2] * (K - 1))
    means, counts = oks.per_keypoint(match(ground_truth([row(1, who)]), {1: [found(who)]}, "keypoints"))
    assert np.isnan(means[0])
    assert counts[0] == 0
    np.testing.assert_allclose(means[1:], 1)


def test_imputed_keypoints_are_no_ground_truth():
    imputed, annotated = person(imputed=True), person(x=200)
    truth = ground_truth([row(1, imputed, annotated)])
    assert [a["num_keypoints"] for a in truth.dataset["annotations"]] == [0, K]
    assert evaluate(truth, {1: [found(annotated)]}).keypoints["AR"] == 1


def test_only_the_best_detections_count():
    who = person()
    elsewhere = [
        found(person(x=300, y=150), score=0.5 + 0.01 * i, mask=encoded(300, 150, 60, 120)) for i in range(20)
    ]
    truth = ground_truth([row(1, who)])
    first, last = ({1: [*elsewhere, found(who, score=score)]} for score in (0.9, 0.1))
    assert evaluate(truth, first).keypoints["AP"] == pytest.approx(1)
    beyond = evaluate(truth, last)
    assert beyond.keypoints["AP"] == beyond.segm["AP"] == 0
    assert evaluate(truth, last, max_people=21).segm["AR21"] == 1


def test_a_budget_below_ten_is_kept():
    who = person()
    elsewhere = [found(person(x=300, y=150), score=0.5 + 0.01 * i) for i in range(5)]
    matches = match(ground_truth([row(1, who)]), {1: [*elsewhere, found(who, score=0.1)]}, "segm", budget=5)
    assert matches.columns()["AP"] == 0
    assert matches.columns()["AR10"] == 1
    assert matches.per_image == {1: 0.0}


def test_detections_of_crowds_are_ignored():
    who, crowd = person(), person(x=200, w=150, h=200, crowd=True, visibility=[0] * K)
    inside = person(x=220, y=60)
    detections = {1: [found(inside, 0.99), found(inside, 0.98), found(who, 0.5)]}
    scores = evaluate(ground_truth([row(1, who, crowd)]), detections)
    assert scores.keypoints["AP"] == scores.segm["AP"] == pytest.approx(1)


def test_false_positives_on_images_without_people_count():
    who = person()
    truth = ground_truth([row(1, who), row(2)])
    clean = evaluate(truth, {1: [found(who, 0.5)]})
    alarmed = evaluate(truth, {1: [found(who, 0.5)], 2: [found(who, 0.9)]})
    assert clean.keypoints["AP"] == clean.segm["AP"] == pytest.approx(1)
    assert alarmed.keypoints["AP"] == alarmed.segm["AP"] == pytest.approx(0.5)


def test_detections_of_unknown_images_and_bad_scores_are_refused():
    truth = ground_truth([row(1, person())])
    with pytest.raises(ValueError, match=r"\[7\]"):
        evaluate(truth, {7: [found(person())]})
    with pytest.raises(ValueError, match=r"image 1: .* nan"):
        evaluate(truth, {1: [found(person(), score=float("nan"))]})


def test_per_image_quality_orders_images():
    who, other = person(), person(x=200)
    rows = [row(1, who), row(2, who, other), row(3), row(4), row(5, who)]
    detections = {1: [found(who)], 2: [found(who)], 4: [found(who, 0.7)]}
    detections[5] = [found(other, 0.8), found(who, 0.4)]
    quality = match(ground_truth(rows), detections, "keypoints").per_image
    assert np.isnan([quality.pop(3), quality.pop(4)]).all()  # there is nobody to find
    assert quality == pytest.approx({1: 1.0, 2: 0.5, 5: 0.5})


def test_best_threshold_separates_people_from_false_positives():
    who = person()
    rows = [row(i, who) for i in range(1, 5)] + [row(i) for i in range(5, 20)]
    detections = {r["image_id"]: [found(who, score=0.6 if r["people"] else 0.2)] for r in rows}
    truth = ground_truth(rows)
    assert match(truth, detections, "keypoints").best_threshold() == pytest.approx(0.6)
    assert match(truth, {}, "keypoints").best_threshold() == float("inf")


def test_curve_is_that_of_a_hand_made_ranking():
    who, other = person(), person(x=200)
    detections = {1: [found(who, 0.9), found(person(x=320, y=170), 0.8), found(other, 0.7)]}
    recall, precision = match(ground_truth([row(1, who, other)]), detections, "keypoints").curve(0.5)
    np.testing.assert_allclose(recall, np.linspace(0, 1, 101))
    np.testing.assert_allclose(precision, np.where(recall <= 0.5, 1, 2 / 3))


# --- against pycocotools itself, on real annotations -------------------------------------------------------


def jittered(truth: COCO) -> dict[int, list[Detection]]:
    """Every annotated person with its keypoints disturbed and its mask shifted, and some false positives."""
    generator = np.random.default_rng(3)
    detections: dict[int, list[Detection]] = {}
    for annotation in truth.dataset["annotations"]:
        image = truth.imgs[annotation["image_id"]]
        points = np.array(annotation["keypoints"], dtype=float).reshape(K, 3)[:, :2]
        spread = generator.choice([0.01, 0.03, 0.1]) * np.sqrt(annotation["area"])
        mask = np.roll(truth.annToMask(annotation), generator.integers(-8, 8, size=2), axis=(0, 1))
        detection = Detection(
            keypoints=(points + generator.normal(0, spread, points.shape)).astype(np.float32),
            keypoint_scores=np.ones(K, dtype=np.float32),
            score=float(generator.uniform()),
            rle=rle.encode(np.asfortranarray(mask))["counts"],
        )
        where = generator.choice(truth.getImgIds()) if generator.uniform() < 0.2 else annotation["image_id"]
        if (truth.imgs[where]["height"], truth.imgs[where]["width"]) == (image["height"], image["width"]):
            detections.setdefault(int(where), []).append(detection)
    return detections


def shard_rows(truth: COCO) -> list[dict]:
    return [
        {
            "image_id": number,
            "height": image["height"],
            "width": image["width"],
            "people": [
                {
                    "keypoints": np.delete(a["keypoints"], slice(2, None, 3)).tolist(),
                    "visibility": a["keypoints"][2::3],
                    "imputed": False,
                    "box": a["bbox"],
                    "area": a["area"],
                    "crowd": bool(a["iscrowd"]),
                    "mask": truth.annToRLE(a)["counts"],
                }
                for a in truth.imgToAnns[number]
            ],
        }
        for number, image in truth.imgs.items()
    ]


@pytest.fixture(scope="module")
def real(coco_mini: Path) -> tuple[COCO, dict[int, list[Detection]]]:
    with redirect_stdout(io.StringIO()):
        truth = COCO(coco_mini / "annotations" / "person_keypoints_val2017.json")
    return truth, jittered(truth)


def official(truth: COCO, detections: dict[int, list[Detection]], task: str) -> np.ndarray:
    """What pycocotools' own summary says of results that went through a COCO result file."""
    results = []
    for number, people in detections.items():
        image = truth.imgs[number]
        for d in people:
            result = {"image_id": number, "category_id": 1, "score": d.score}
            if task == "keypoints":
                result["keypoints"] = [float(v) for x, y in d.keypoints for v in (x, y, 1)]
            else:
                size = [image["height"], image["width"]]
                result["segmentation"] = {"size": size, "counts": d.rle.decode()}
            results.append(result)
    with redirect_stdout(io.StringIO()):
        evaluator = COCOeval(truth, truth.loadRes(json.loads(json.dumps(results))), task)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator.stats


@pytest.mark.testdata
def test_agrees_with_pycocotools_on_real_images(real):
    truth, detections = real
    ours: Scores = evaluate(ground_truth(shard_rows(truth)), detections, max_people=100)
    for task, columns in (("keypoints", ours.keypoints), ("segm", ours.segm)):
        stats = official(truth, detections, task)
        assert 0.1 < stats[0] < 0.9
        np.testing.assert_allclose(list(columns.values()), stats, atol=1e-9)


@pytest.mark.testdata
@pytest.mark.parametrize("task", ["keypoints", "segm"])
def test_equal_weights_bootstrap_to_the_ap_itself(real, task):
    truth, detections = real
    matches: Matches = match(ground_truth(shard_rows(truth)), detections, task)
    columns = matches.columns()
    sizes = {"AP": "all", "APS": "small", "APM": "medium", "APL": "large"}
    for column in sizes.keys() & columns.keys():
        ranking = bootstrap.Ranking.of(matches, sizes[column])
        for weight in (1.0, 3.0):
            weights = np.full(len(ranking.people), weight)
            assert ranking.average_precision(weights) == pytest.approx(columns[column])
    resampled = bootstrap.resampled_ap(matches, samples=200)
    low, high = bootstrap.interval(resampled)
    assert low < columns["AP"] < high
    np.testing.assert_array_equal(resampled, bootstrap.resampled_ap(matches, samples=200))


@pytest.mark.testdata
def test_a_weighted_image_counts_like_its_copies(real):
    truth, detections = real
    rows = shard_rows(truth)
    weights = np.random.default_rng(0).integers(0, 3, size=len(rows))
    rows = sorted(rows, key=lambda r: r["image_id"])
    copies = [
        (r, r["image_id"] + copy * 10**7) for r, n in zip(rows, weights, strict=True) for copy in range(n)
    ]
    repeated = match(
        ground_truth([{**r, "image_id": number} for r, number in copies]),
        {number: detections.get(r["image_id"], []) for r, number in copies},
        "keypoints",
    )
    once = bootstrap.Ranking.of(match(ground_truth(rows), detections, "keypoints"))
    assert once.average_precision(weights.astype(float)) == pytest.approx(repeated.columns()["AP"])


def test_interval_holds_the_middle():
    assert bootstrap.interval(np.arange(101.0), coverage=0.9) == pytest.approx((5, 95))
    assert np.isnan(bootstrap.interval(np.full(3, np.nan))).all()


def test_keypoints_are_named_in_the_ground_truth():
    assert ground_truth([row(1)]).dataset["categories"][0]["keypoints"] == KEYPOINTS


def test_people_without_masks_are_neither_found_nor_missed():
    """Of four people two have masks; the detections are perfect."""
    people = [person(k + 1, x=10 + 80 * k) for k in range(4)]
    detections = {1: [found(each) for each in people]}
    for each in people[:2]:
        each["mask"] = b""
    truth = ground_truth([row(1, *people)])
    scores = evaluate(truth, detections)
    assert scores.keypoints["AP"] == scores.segm["AP"] == pytest.approx(1)
    assert match(truth, detections, "segm").partners(1) == {k: k for k in range(4)}
