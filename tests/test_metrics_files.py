"""COCO results files scored against COCO annotation files; whatever is wrong with either is named."""

import json
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as rle_tools
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from personlab import params
from personlab.errors import UserError
from personlab.metrics.coco import Task, match
from personlab.metrics.files import read_annotations, read_results, scorable
from personlab.skeleton import COCO_PERSON
from tests import layouts
from tests.coco_person import KEYPOINTS

Record = dict[str, Any]
NAMES = list(KEYPOINTS)
KEYPOINTS: Task = "keypoints"
POINTS = [12, 8, 0.9, 14.5, 7, 0.8, *[0] * 45]


def truth(folder: Path, *people: Record, images: int = 2) -> Path:
    listed = [layouts.image(number) for number in range(1, images + 1)]
    return layouts.write_json(folder, "val", layouts.document(listed, list(people)))


def result(image_id: int = 1, **changes: Any) -> Record:
    return {"image_id": image_id, "category_id": 1, "score": 0.5} | changes


def results(folder: Path, content: Any) -> Path:
    path = folder / "results.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def square() -> Record:
    mask = np.zeros((layouts.HEIGHT, layouts.WIDTH), np.uint8, order="F")
    mask[5:25, 10:20] = 1
    encoded = rle_tools.encode(mask)
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


@pytest.mark.parametrize("segmentation", [square(), layouts.SQUARE], ids=["rle", "polygons"])
def test_the_right_answer_scores_one(tmp_path: Path, segmentation: Any) -> None:
    annotated = read_annotations(truth(tmp_path, layouts.person(1, 1)))
    path = results(tmp_path, [result(keypoints=POINTS, segmentation=segmentation)])
    found = read_results(path, annotated)
    assert list(found) == ["keypoints", "segm"]
    assert match(annotated.truth, found["segm"], "segm").columns()["AP"] == pytest.approx(1)
    # 200 pixels are a small person: of no size that has keypoint columns but "all"
    assert match(annotated.truth, found["keypoints"], "keypoints").columns()["AP"] == pytest.approx(1)


def test_an_annotation_with_number_zero_counts(tmp_path: Path) -> None:
    annotated = read_annotations(truth(tmp_path, layouts.person(0, 1)))
    found = read_results(results(tmp_path, [result(keypoints=POINTS)]), annotated)
    assert match(annotated.truth, found["keypoints"], "keypoints").columns()["AP"] == pytest.approx(1)


def test_each_task_has_the_results_that_speak_of_it(tmp_path: Path) -> None:
    annotated = read_annotations(truth(tmp_path, layouts.person(1, 1)))
    poses, masks = result(keypoints=POINTS), result(2, segmentation=square())
    assert list(read_results(results(tmp_path, [poses]), annotated)) == ["keypoints"]
    assert list(read_results(results(tmp_path, [masks]), annotated)) == ["segm"]
    both = read_results(results(tmp_path, [poses, masks]), annotated)
    assert {task: list(found) for task, found in both.items()} == {"keypoints": [1], "segm": [2]}
    empty = read_results(results(tmp_path, []), annotated)
    assert match(annotated.truth, empty["keypoints"], "keypoints").columns()["AP"] == 0


def test_an_empty_mask_is_a_mask_without_a_match(tmp_path: Path) -> None:
    annotated = read_annotations(truth(tmp_path, layouts.person(1, 1)))
    empty = rle_tools.encode(np.zeros((layouts.HEIGHT, layouts.WIDTH), np.uint8, order="F"))
    empty = {"size": empty["size"], "counts": empty["counts"].decode()}
    surer = result(segmentation=empty, score=0.9)
    found = read_results(results(tmp_path, [surer, result(segmentation=square())]), annotated)
    assert match(annotated.truth, found["segm"], "segm").columns()["AP"] == pytest.approx(0.5)


def test_other_categories_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    annotated = read_annotations(truth(tmp_path, layouts.person(1, 1)))
    path = results(tmp_path, [result(category_id=3, bbox=[1, 2, 3, 4]), result(keypoints=POINTS)])
    with caplog.at_level(logging.INFO):
        assert list(read_results(path, annotated)) == ["keypoints"]
    assert "1 results of other categories" in caplog.text


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ({"annotations": []}, "a JSON list"),
        ([result(keypoints=POINTS), 5], "number 1 .*is not an object"),
        ([result(9, keypoints=POINTS)], "number 0 .*image 9 is not among the annotated images"),
        ([result("one", keypoints=POINTS)], 'image_id is "one"'),
        ([result(keypoints=POINTS, category_id=None)], "category_id is null"),
        ([result(keypoints=POINTS[:50])], "keypoints holds 50 numbers, not 51"),
        ([result(keypoints=[*POINTS[:50], "0"])], r"keypoints is \[12, 8, .*, not a list of numbers"),
        ([result(keypoints=POINTS, score=None)], "number 0 .*score is null, not a number"),
        ([result(keypoints=POINTS, score="0.5")], 'number 0 .*score is "0.5", not a number'),
        ([layouts.without(result(keypoints=POINTS), "score")], "number 0 .*has no score"),
        ("""[{"image_id": 1, "category_id": 1, "keypoints": [], "score": NaN}]""", "score holds"),
        ([result(segmentation={"size": [5, 5], "counts": "0"})], r"size \[5, 5\], the image"),
        ([result(segmentation=square() | {"counts": "zzz"})], "its mask"),
        ([result(segmentation=5)], "segmentation is 5, neither polygons nor run lengths"),
        ([result(keypoints=[0.3, 0.2, 0.9] * 17)], "keypoints of 1 of 1 people looked at are fractions"),
        ([result(bbox=[1, 2, 3, 4])], "neither keypoints nor segmentation"),
        ([result(keypoints=[], segmentation=None)], "neither keypoints nor segmentation"),
        (
            [result(keypoints=POINTS, category_id=7), result(bbox=[1, 2, 3, 4], category_id=3)],
            r"annotated as category 1 \(person\); no result is of it, all are of 3 \(car\), 7 \(unknown\)",
        ),
    ],
)
def test_bad_results_are_named(tmp_path: Path, content: Any, reason: str) -> None:
    annotated = read_annotations(truth(tmp_path, layouts.person(1, 1)))
    with pytest.raises(UserError, match=f"results.json.*{reason}"):
        read_results(results(tmp_path, content), annotated)


def test_missing_files_are_named(tmp_path: Path) -> None:
    annotated = read_annotations(truth(tmp_path, layouts.person(1, 1)))
    with pytest.raises(UserError, match=r"none\.json: no such file"):
        read_results(tmp_path / "none.json", annotated)
    with pytest.raises(UserError, match=r"none\.json: no such file"):
        read_annotations(tmp_path / "none.json")


def test_bad_annotations_are_left_out_aloud(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    good, bad = layouts.person(1, 1), layouts.person(2, 1, area=-1)
    with caplog.at_level(logging.WARNING):
        annotated = read_annotations(truth(tmp_path, good, bad, good))
    assert "2 annotations left out; number 1 of the list: area is -1; number 2" in caplog.text
    assert len(annotated.truth.anns) == 1
    with pytest.raises(
        UserError, match="none of its 1 people can be scored: number 0 of the list: area is -1"
    ):
        read_annotations(truth(tmp_path, bad))
    with pytest.raises(UserError, match="annotates no person"):
        read_annotations(truth(tmp_path))


def annotations(folder: Path, people: list[Record], categories: list[Record]) -> Path:
    content = layouts.document([layouts.image(1)], people) | {"categories": categories}
    return layouts.write_json(folder, "val", content)


@pytest.mark.parametrize("name", ["person", "Person"])
@pytest.mark.parametrize("person", [0, 5])
def test_people_have_the_category_that_the_annotations_give_them(
    tmp_path: Path, person: int, name: str
) -> None:
    categories = [{"id": 1 - bool(person), "name": "dog"}, {"id": person, "name": name}][not person :]
    path = annotations(tmp_path, [layouts.person(1, 1, category_id=person)], categories)
    annotated = read_annotations(path)
    assert annotated.person == person
    found = read_results(results(tmp_path, [result(category_id=person, keypoints=POINTS)]), annotated)
    assert match(annotated.truth, found["keypoints"], "keypoints").columns()["AP"] == pytest.approx(1)


def test_cocos_category_is_people_unless_the_annotations_use_it_otherwise(tmp_path: Path) -> None:
    """predict writes category 1 where it knows no annotations."""
    records = results(tmp_path, [result(keypoints=POINTS)])
    people, person = [layouts.person(1, 1, category_id=0)], {"id": 0, "name": "person"}
    assert list(read_results(records, read_annotations(annotations(tmp_path, people, [person])))[KEYPOINTS])
    dog = {"id": 1, "name": "dog"}
    found = read_results(records, read_annotations(annotations(tmp_path, people, [person, dog])))
    assert not found[KEYPOINTS]


DOG = {"id": 4, "name": "dog", "keypoints": ["nose", "tail"]}


def test_results_of_all_categories_that_share_their_keypoints_count(tmp_path: Path) -> None:
    people = [
        layouts.person(number, 1, category_id=category, keypoints=[12, 8, 2, 14, 7, 2])
        for number, category in ((1, 4), (2, 7))
    ]
    annotated = read_annotations(annotations(tmp_path, people, [DOG, DOG | {"id": 7, "name": "cat"}]))
    records = [result(category_id=category, keypoints=[12, 8, 1, 14, 7, 1]) for category in (4, 7)]
    assert len(read_results(results(tmp_path, records), annotated)[KEYPOINTS][1]) == 2


def test_the_projects_categories_and_skeleton_count(tmp_path: Path) -> None:
    people = [layouts.person(1, 1, category_id=4, keypoints=[12, 8, 2, 14, 7, 2]), layouts.person(2, 1)]
    path = annotations(tmp_path, people, [DOG, {"id": 1, "name": "person"}])
    assert read_annotations(path).skeleton == COCO_PERSON
    annotated = read_annotations(path, ["dog"], params.Skeleton(sigmas=(0.1, 0.2)))
    assert (annotated.people, annotated.skeleton.sigmas) == ((4,), (0.1, 0.2))
    with pytest.raises(UserError, match=r"2017\.json: skeleton\.keypoints names 1 keypoints"):
        read_annotations(path, ["dog"], params.Skeleton(keypoints=("nose",)))


def test_of_two_person_categories_the_one_in_use_counts(tmp_path: Path) -> None:
    """Roboflow adds a root category that is named after the project."""
    both = [{"id": 0, "name": "person"}, {"id": 1, "name": "person"}]
    assert read_annotations(annotations(tmp_path, [layouts.person(1, 1)], both)).person == 1
    with pytest.raises(UserError, match="must name 'person' once, not 2 times"):
        read_annotations(
            annotations(tmp_path, [layouts.person(1, 1), layouts.person(2, 1, category_id=0)], both)
        )


@pytest.mark.parametrize(
    ("person", "category", "reason"),
    [
        ({}, {"id": None}, "category 'person': id is null, not a whole number"),
        ({}, {"id": "one"}, "category 'person': id is \"one\", not a whole number"),
        ({}, {"id": 2}, "none of its 1 annotations is of category 2, person, but some are of 1"),
        ({"keypoints": []}, {"name": "car"}, "must name 'person' once, not 0 times; its categories: car"),
        ({"category_id": "a"}, {}, 'none of its 1 people can be scored: number 0 .* category_id is "a"'),
        ({}, {"keypoints": sorted(NAMES)}, "in another order than COCO's: 'left_ankle' is listed instead of"),
        ({"keypoints": [0.3, 0.2, 2] * 17}, {}, "keypoints of 1 of 1 people looked at are fractions"),
    ],
)
def test_what_hides_all_people_is_named(tmp_path: Path, person: Any, category: Any, reason: str) -> None:
    categories = [{"id": 1, "name": "person"} | category]
    with pytest.raises(UserError, match=reason):
        read_annotations(annotations(tmp_path, [layouts.person(1, 1) | person], categories))


@pytest.mark.parametrize(
    "names",
    [
        *(NAMES, [name.replace("_", " ").title() for name in NAMES], [str(k) for k in range(17)], [], None),
        [re.sub("_(.)", lambda found: found[1].upper(), name) for name in NAMES],
        [re.sub(r"(.)\w+_(.*)", r"\2_\1", name) for name in NAMES],
    ],
)
def test_keypoints_in_cocos_order_may_have_any_names(tmp_path: Path, names: Any) -> None:
    categories = [{"id": 1, "name": "person", "keypoints": names}]
    assert read_annotations(annotations(tmp_path, [layouts.person(1, 1)], categories)).person == 1


WITHOUT_MASK = {
    "missing": layouts.without(layouts.person(1, 1), "segmentation"),
    "null": layouts.person(1, 1, segmentation=None),
    "empty": layouts.person(1, 1, segmentation=[]),
    "line": layouts.person(1, 1, segmentation=[[10, 5, 20, 25]]),
    "size": layouts.person(1, 1, segmentation=square() | {"size": [5, 5]}),
}


@pytest.mark.parametrize("person", WITHOUT_MASK.values(), ids=WITHOUT_MASK)
@pytest.mark.parametrize("segmentation", [None, [], square()], ids=["null", "empty", "rle"])
def test_keypoints_are_scored_without_masks(
    tmp_path: Path, person: Record, segmentation: Any, caplog: pytest.LogCaptureFixture
) -> None:
    annotated = read_annotations(truth(tmp_path, person))
    path = results(tmp_path, [result(keypoints=POINTS, segmentation=segmentation)])
    tasks = scorable(read_results(path, annotated), annotated)
    assert list(tasks) == [KEYPOINTS]
    assert match(annotated.truth, tasks[KEYPOINTS], KEYPOINTS).columns()["AP"] == pytest.approx(1)
    assert "1 people without a mask count for keypoints only; number 0 of the list: " in caplog.text
    assert ("masks are not scored" in caplog.text) == bool(segmentation)


def test_masks_are_not_scored_without_annotated_masks(tmp_path: Path) -> None:
    """People without a mask are no people to find where others have one."""
    alone = read_annotations(truth(tmp_path, WITHOUT_MASK["null"]))
    path = results(tmp_path, [result(2, segmentation=square())])
    with pytest.raises(UserError, match="no annotated person has a mask"):
        scorable(read_results(path, alone), alone)
    annotated = read_annotations(truth(tmp_path, WITHOUT_MASK["null"], layouts.person(2, 2)))
    tasks = scorable(read_results(path, annotated), annotated)
    assert match(annotated.truth, tasks["segm"], "segm").columns()["AP"] == pytest.approx(1)


BOXES = {"missing": None, "empty": [], "outside": [30, 20, 20, 20], "corners": [10, 5, 10, -20]}


@pytest.mark.parametrize("mask", [layouts.SQUARE, []], ids=["mask", "no mask"])
@pytest.mark.parametrize("box", BOXES.values(), ids=BOXES)
def test_boxes_are_not_needed(tmp_path: Path, box: Any, mask: Any) -> None:
    annotated = read_annotations(truth(tmp_path, layouts.person(1, 1, bbox=box, segmentation=mask)))
    found = read_results(results(tmp_path, [result(keypoints=POINTS, segmentation=square())]), annotated)
    for task, people in scorable(found, annotated).items():
        assert match(annotated.truth, people, task).columns()["AP"] == pytest.approx(1)
    (person,) = annotated.truth.anns.values()
    assert person["bbox"] == ([10, 5, 10, 20] if mask else [12, 7, 2.5, 1])


def test_a_single_keypoint_needs_no_box(tmp_path: Path) -> None:
    points = [12, 8, 2, *[0] * 48]
    annotated = read_annotations(
        truth(tmp_path, layouts.person(1, 1, bbox=None, segmentation=None, keypoints=points))
    )
    assert [person["bbox"] for person in annotated.truth.anns.values()] == [[12, 8, 1, 1]]


def test_categories_and_images_may_be_written_as_floats(tmp_path: Path) -> None:
    annotated = read_annotations(truth(tmp_path, layouts.person(1, 1, category_id=1.0)))
    found = read_results(results(tmp_path, [result(1.0, category_id=1.0, keypoints=POINTS)]), annotated)
    assert list(found[KEYPOINTS]) == [1]


def test_a_person_without_area_and_mask_has_half_the_box(tmp_path: Path) -> None:
    person = layouts.without(layouts.person(1, 1), "area", "segmentation")
    assert read_annotations(truth(tmp_path, person)).truth.anns[1]["area"] == pytest.approx(0.53 * 10 * 20)


@pytest.mark.parametrize("record", [5, {"id": 1}, layouts.image(1, height=0), layouts.image(2)])
def test_bad_images_are_named(tmp_path: Path, record: Any) -> None:
    listed = [layouts.image(2), record]
    path = layouts.write_json(tmp_path, "val", layouts.document(listed, [layouts.person(1, 2)]))
    with pytest.raises(UserError, match="image number 1 of the list"):
        read_annotations(path)


@pytest.mark.testdata
def test_scores_are_those_of_cocos_own_tools(coco_mini: Path, tmp_path: Path) -> None:
    file = coco_mini / "annotations" / "person_keypoints_val2017.json"
    theirs = COCO(str(file))
    random = np.random.default_rng(0)
    records = []
    for person in theirs.dataset["annotations"]:
        if not person["iscrowd"]:
            points = np.array(person["keypoints"], float).reshape(-1, 3)
            points[:, :2] += random.normal(0, 3, (len(points), 2))
            mask = theirs.annToRLE(person)
            box = {"image_id": person["image_id"], "category_id": 1, "score": float(random.random())}
            segmentation = {"size": mask["size"], "counts": mask["counts"].decode()}
            records.append(box | {"keypoints": points.ravel().tolist(), "segmentation": segmentation})
    annotated = read_annotations(file)
    found = read_results(results(tmp_path, records), annotated)
    for task in ("keypoints", "segm"):
        ours = match(annotated.truth, found[task], task).columns()
        alone = [
            {k: r[k] for k in r if k != ("segmentation" if task == "keypoints" else "keypoints")}
            for r in records
        ]
        evaluator = COCOeval(theirs, theirs.loadRes(alone), task)
        evaluator.params.maxDets = [20] if task == "keypoints" else [1, 10, 20]
        evaluator.evaluate()
        evaluator.accumulate()
        precision = evaluator.eval["precision"][:, :, 0, 0, -1]
        assert 0.3 < ours["AP"] < 1.001
        assert ours["AP"] == pytest.approx(precision.mean(), abs=1e-9)
