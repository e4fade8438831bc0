"""COCO person keypoint and mask scores in the paper's columns (Tables 1-9), computed by pycocotools.

pycocotools matches and accumulates; this module gives it data from memory, silences it and reads its arrays.
Its `summarize` is not used, because for masks it prints -1 unless 100 detections per image are evaluated.
Scores without annotated people of a size are NaN.
"""

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from pycocotools import mask as rle_tools
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from personlab.people import Detection
from personlab.skeleton import Skeleton

Task = Literal["keypoints", "segm"]
Array = npt.NDArray[np.float64]

PERSON: Final = 1  # COCO's category
KEYPOINT_BUDGET: Final = 20  # detections per image in COCO's keypoint evaluation

COCO_THRESHOLDS: Final = tuple(np.linspace(0.5, 0.95, 10))

_THRESHOLDS: Final = {"": None, "50": 0.5, "75": 0.75}  # of the columns; None: the mean over all ten


@dataclass(frozen=True)
class Scores:
    """One value per column, in the paper's order; NaN without annotated people of a column's size."""

    keypoints: dict[str, float]  # AP AP50 AP75 APM APL AR AR50 AR75 ARM ARL
    segm: dict[str, float]  # AP AP50 AP75 APS APM APL AR1 AR10 AR20 ARS ARM ARL


@dataclass(frozen=True)
class ImageMatches:
    """The detections of an image (without ignored ones), and whether they are correct at T thresholds."""

    scores: Array  # D, best first
    true_positive: npt.NDArray[np.bool_]  # T x D
    false_positive: npt.NDArray[np.bool_]  # T x D
    people: int  # annotated


@dataclass(frozen=True)
class Assignment:
    """The D detections and G annotated people of an image, and which of them are matched at a threshold."""

    people: list[dict[str, Any]]  # G COCO annotations
    counted: npt.NDArray[np.bool_]  # G; not crowds nor, for keypoints, people without any
    similarity: Array  # D x G, OKS or mask IoU; detections best first
    person: npt.NDArray[np.intp]  # D; index of the matched person, -1 without


def ground_truth(rows: Iterable[Mapping[str, Any]], skeleton: Skeleton) -> COCO:
    """The people of rows of tables.IMAGES with their `people` as pycocotools' ground truth.

    Its category holds the names of the keypoints and, beyond COCO's own keys, their `sigmas` and `flip`. Only
    image_id, height, width and people are used. People with imputed keypoints count as people without
    keypoints. Annotations are numbered from 1, because pycocotools treats 0 as no match.
    """
    rows = list(rows)
    people = [(row, person) for row in rows for person in row["people"]]
    return _coco(
        [{"id": row["image_id"], "height": row["height"], "width": row["width"]} for row in rows],
        [_truth(number, row, person) for number, (row, person) in enumerate(people, start=1)],
        {
            "id": PERSON,
            "name": skeleton.name,
            "keypoints": skeleton.keypoints,
            "sigmas": skeleton.sigmas,
            "flip": skeleton.flip,
        },
    )


def subset(truth: COCO, people: list[dict[str, Any]]) -> COCO:
    """The ground truth of some of the people, on the same images."""
    return _coco(truth.dataset["images"], people, truth.cats[PERSON])


def has_masks(truth: COCO) -> bool:
    """Whether any annotated person has a mask; crowds do not count."""
    return any(person["segmentation"] and not person["iscrowd"] for person in truth.anns.values())


def with_masks(truth: COCO) -> COCO:
    """The ground truth for masks: the boxes of people without a mask are ignored, as crowds are.

    Without any mask there is no ground truth.
    """
    people = truth.dataset["annotations"]
    if not has_masks(truth):
        people = []
    elif all(person["segmentation"] for person in people):
        return truth
    ignored = [person if person["segmentation"] else person | _region(truth, person) for person in people]
    return subset(truth, ignored)


def _region(truth: COCO, person: Mapping[str, Any]) -> dict[str, Any]:
    """A person's box as a crowd region."""
    image = truth.imgs[person["image_id"]]
    boxes = np.array([person["bbox"]], dtype=float)
    (region,) = rle_tools.frPyObjects(boxes, image["height"], image["width"])
    return {"segmentation": region, "iscrowd": 1}


def evaluate(
    truth: COCO, detections: Mapping[int, Sequence[Detection]], max_people: int = KEYPOINT_BUDGET
) -> Scores:
    """Score detections, by image id, on all images of the ground truth.

    The best `max_people` masks per image are scored, and the best 20 poses, as in COCO.

    Raises:
        ValueError: there are detections of an image without ground truth, or a score is not finite.
    """
    return Scores(
        keypoints=match(truth, detections, "keypoints").columns(),
        segm=match(truth, detections, "segm", max_people).columns(),
    )


def match(
    truth: COCO,
    detections: Mapping[int, Sequence[Detection]],
    task: Task,
    budget: int = KEYPOINT_BUDGET,
    thresholds: Sequence[float] = COCO_THRESHOLDS,
) -> "Matches":
    """Match the best `budget` detections of every image to its people, by OKS or by mask IoU.

    People without a mask are no ground truth for masks. Columns of scores need COCO's thresholds.

    Raises:
        ValueError: as `evaluate`.
    """
    if unknown := sorted(set(detections) - set(truth.getImgIds())):
        raise ValueError(f"detections of images that have no ground truth: {unknown[:5]}")
    if task == "segm":
        truth = with_masks(truth)
    evaluator = COCOeval(truth, _results(truth, detections, task), task)
    evaluator.params.kpt_oks_sigmas = np.array(truth.cats[PERSON]["sigmas"])
    evaluator.params.iouThrs = np.array(thresholds)
    evaluator.params.maxDets = [budget] if task == "keypoints" else sorted({1, 10, budget})
    with redirect_stdout(io.StringIO()):
        evaluator.evaluate()
        evaluator.accumulate()
    return Matches(task, budget, evaluator)


@dataclass(frozen=True)
class Matches:
    """The matched people and detections of all images for one task, as `match` returns them."""

    task: Task
    budget: int
    evaluator: Any  # COCOeval, accumulated

    @property
    def keypoint_names(self) -> tuple[str, ...]:
        names: tuple[str, ...] = self.evaluator.cocoGt.cats[PERSON]["keypoints"]
        return names

    @property
    def kappas(self) -> Array:
        """Twice the OKS sigma of each keypoint."""
        return 2 * np.asarray(self.evaluator.cocoGt.cats[PERSON]["sigmas"])

    @property
    def flip(self) -> tuple[int, ...] | None:
        """As `Skeleton.flip`."""
        flip: tuple[int, ...] | None = self.evaluator.cocoGt.cats[PERSON]["flip"]
        return flip

    @property
    def sizes(self) -> dict[str, tuple[float, float]]:
        """The least and the greatest area of people of each size, all included, in pixels."""
        parameters = self.evaluator.params
        return dict(zip(parameters.areaRngLbl, map(tuple, parameters.areaRng), strict=True))

    def columns(self) -> dict[str, float]:
        """The paper's columns: means over the thresholds .50, .55, ... .95, or at the one in the name."""
        _, *sizes = self.evaluator.params.areaRngLbl  # small (masks only), medium and large
        sized = {
            name: {f"{name}{size[0].upper()}": self._mean(quantity, size) for size in sizes}
            for name, quantity in (("AP", "precision"), ("AR", "recall"))
        }
        precision = {f"AP{name}": self._mean("precision", threshold=at) for name, at in _THRESHOLDS.items()}
        if self.task == "keypoints":
            recall = {f"AR{name}": self._mean("recall", threshold=at) for name, at in _THRESHOLDS.items()}
        else:
            budgets = self.evaluator.params.maxDets
            recall = {f"AR{budget}": self._mean("recall", budget=budget) for budget in budgets}
        return precision | sized["AP"] | recall | sized["AR"]

    def curve(self, threshold: float | None = None) -> tuple[Array, Array]:
        """Recalls 0, .01, ..., 1 and their precisions, at one threshold or averaged over all ten."""
        precision = self._select("precision", threshold=threshold).mean(axis=0)
        return self.evaluator.params.recThrs, np.where(precision < 0, np.nan, precision)

    def best_threshold(self) -> float:
        """The score threshold with the best F1 at threshold .50; infinite if no detection is correct."""
        recall, precision = self.curve(0.5)
        scores = self._select("scores", threshold=0.5)[0]
        f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-9)
        best = int(np.nan_to_num(f1).argmax())
        return float(scores[best]) if f1[best] > 0 else float("inf")

    def images(self, size: str = "all") -> Iterator[tuple[int, ImageMatches]]:
        """Image ids, ascending, with their matches.

        Args:
            size: of the people: all, medium, large, or (masks only) small. Detections matched to people of
                other sizes, and unmatched ones of other sizes, are left out.
        """
        parameters = self.evaluator.params
        for image_id, record in zip(parameters.imgIds, self._records(size), strict=True):
            yield int(image_id), _image_matches(record, len(parameters.iouThrs), self.budget)

    def partners(self, image_id: int, threshold: float = 0.5) -> dict[int, int]:
        """The detections of an image that are matched to people at a threshold.

        Places among the image's detections that have a result in this task, in the order given, with places
        among its annotated people.
        """
        record = self._records()[self.evaluator.params.imgIds.index(image_id)]
        if record is None:
            return {}
        people = [person["id"] for person in self.evaluator.cocoGt.imgToAnns[image_id]]
        first = min((result["id"] for result in self.evaluator.cocoDt.imgToAnns[image_id]), default=0)
        matched = record["dtMatches"][self._threshold(threshold)].astype(int).tolist()
        found = zip(record["dtIds"], matched, strict=True)
        return {number - first: people.index(person) for number, person in found if person}

    @cached_property
    def per_image(self) -> dict[int, float]:
        """The average precision within each image, averaged over the thresholds; NaN without people."""
        return {image_id: _quality(matches) for image_id, matches in self.images()}

    def pairs(self, threshold: float = 0.5) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """COCO annotations with the COCO results that they are matched to at a threshold."""
        row = self._threshold(threshold)
        for record in self._records():
            if record is None:
                continue
            for number, detection, ignored in zip(
                record["gtIds"], record["gtMatches"][row].astype(int), record["gtIgnore"], strict=True
            ):
                if detection and not ignored:
                    yield self.evaluator.cocoGt.anns[number], self.evaluator.cocoDt.anns[detection]

    def assignments(self, threshold: float) -> Iterator[tuple[int, Assignment]]:
        """Image ids, ascending, with the people and detections that are matched at a threshold."""
        row, truth = self._threshold(threshold), self.evaluator.cocoGt
        for image_id, record in zip(self.evaluator.params.imgIds, self._records(), strict=True):
            people = truth.imgToAnns[image_id]
            numbers = {0: -1} | {person["id"]: index for index, person in enumerate(people)}
            matched = record["dtMatches"][row].astype(int).tolist() if record else []
            ignored = dict(zip(record["gtIds"], record["gtIgnore"], strict=True)) if record else {}
            similarity = self.evaluator.ious[image_id, PERSON]  # an empty list if either has none
            yield (
                int(image_id),
                Assignment(
                    people=people,
                    counted=np.array([not ignored[person["id"]] for person in people], dtype=bool),
                    similarity=np.reshape(similarity, (len(matched), len(people))).astype(float),
                    person=np.array([numbers[number] for number in matched], dtype=np.intp),
                ),
            )

    def _records(self, size: str = "all") -> list[Any]:
        """pycocotools' record of every image; None without people and detections."""
        records: list[Any] = self.evaluator.evalImgs  # sizes x images
        images = len(self.evaluator.params.imgIds)
        first = self.evaluator.params.areaRngLbl.index(size) * images
        return records[first : first + images]

    def _mean(self, quantity: str, size: str = "all", **selection: Any) -> float:
        values = self._select(quantity, size, **selection)
        defined = values[values > -1]  # pycocotools writes -1 where there is no ground truth
        return float(defined.mean()) if defined.size else float("nan")

    def _select(
        self, quantity: str, size: str = "all", *, threshold: float | None = None, budget: int | None = None
    ) -> Array:
        """pycocotools' array (T (x R) x category x size x budget) at one size and budget: T (x R)."""
        parameters = self.evaluator.params
        values: Array = self.evaluator.eval[quantity]
        if threshold is not None:
            row = self._threshold(threshold)
            values = values[row : row + 1]
        at_budget = parameters.maxDets.index(budget or self.budget)
        return values[..., 0, parameters.areaRngLbl.index(size), at_budget]

    def _threshold(self, threshold: float) -> int:
        return int(np.flatnonzero(np.isclose(self.evaluator.params.iouThrs, threshold))[0])


def _image_matches(record: Mapping[str, Any] | None, thresholds: int, budget: int) -> ImageMatches:
    if record is None:
        none = np.zeros((thresholds, 0), dtype=bool)
        return ImageMatches(np.zeros(0), none, none, people=0)
    counted = ~record["dtIgnore"][:, :budget]
    matched = record["dtMatches"][:, :budget] > 0
    kept = counted.any(axis=0)
    return ImageMatches(
        scores=np.asarray(record["dtScores"][:budget], dtype=float)[kept],
        true_positive=(matched & counted)[:, kept],
        false_positive=(~matched & counted)[:, kept],
        people=int(np.count_nonzero(record["gtIgnore"] == 0)),
    )


def _quality(matches: ImageMatches) -> float:
    if not matches.people:
        return float("nan")
    true, false = matches.true_positive.cumsum(axis=1), matches.false_positive.cumsum(axis=1)
    precision = true / np.maximum(true + false, 1)
    return float((precision * matches.true_positive).sum(axis=1).mean() / matches.people)


def _coco(images: list[dict[str, Any]], annotations: list[dict[str, Any]], category: dict[str, Any]) -> COCO:
    coco = COCO()
    coco.dataset = {"images": images, "annotations": annotations, "categories": [category]}
    with redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def _truth(number: int, row: Mapping[str, Any], person: Mapping[str, Any]) -> dict[str, Any]:
    labelled = np.asarray(person["visibility"])
    visibility = np.zeros_like(labelled) if person["imputed"] else labelled
    return {
        "id": number,
        "image_id": row["image_id"],
        "category_id": PERSON,
        "keypoints": _triples(np.asarray(person["keypoints"], dtype=float).reshape(-1, 2), visibility),
        "num_keypoints": int(np.count_nonzero(visibility)),
        "bbox": list(person["box"]),
        "area": person["area"],
        "iscrowd": int(person["crowd"]),
        "segmentation": run_lengths(row, person["mask"]) if person["mask"] else None,
    }


def run_lengths(image: Mapping[str, Any], counts: bytes) -> dict[str, Any]:
    """A mask as pycocotools takes it, from COCO's compressed string. image: with `height` and `width`."""
    return {"size": [image["height"], image["width"]], "counts": counts}


def _results(truth: COCO, detections: Mapping[int, Sequence[Detection]], task: Task) -> COCO:
    """The detections of one task. A pose without its mask: pycocotools would take its size from the mask."""
    results = [
        _result(truth.imgs[image_id], detection, task)
        for image_id, found in sorted(detections.items())
        for detection in found
        if detection.rle or task == "keypoints"
    ]
    if not results:
        return _coco(truth.dataset["images"], [], truth.cats[PERSON])
    with redirect_stdout(io.StringIO()):
        return truth.loadRes(results)


def _result(image: Mapping[str, Any], detection: Detection, task: Task) -> dict[str, Any]:
    if not np.isfinite(detection.score):
        raise ValueError(f"image {image['id']}: a detection's score is {detection.score}")
    result = {"image_id": image["id"], "category_id": PERSON, "score": float(detection.score)}
    if task == "keypoints":
        return {**result, "keypoints": _triples(detection.keypoints, np.ones(len(detection.keypoints)))}
    return {**result, "segmentation": run_lengths(image, detection.rle)}


def _triples(xy: npt.ArrayLike, visibility: npt.ArrayLike) -> list[float]:
    """x0, y0, v0, x1, ... from K x 2 points and K visibilities."""
    triples: list[float] = np.column_stack((xy, visibility)).astype(float).ravel().tolist()
    return triples
