"""Why detections score as they do: kinds of errors, and AP with each kind mended.

Follows COCO-analyze (M. R. Ronchi and P. Perona, Benchmarking and Error Diagnosis in Multi-Instance Pose
Estimation, ICCV 2017). Detections and people are matched by pycocotools at an OKS or mask IoU of 0.1, so that
a poorly located person has errors of localisation, instead of being both missed and a false positive. What is
mended is scored by pycocotools again.

Errors of matched keypoints, by the similarity ks = exp(-d^2 / (2 area kappa_k^2)) to annotated keypoints:

- jitter: 0.5 <= ks < 0.85 to the keypoint itself;
- inversion: ks < 0.5 to itself, and at least 0.5 to the person's mirrored keypoint (left and right);
- swap: the same, to another person's keypoint of this or the mirrored kind. The nearer of both counts;
- miss: near none of them.

Errors of matched masks, by the pixels of the detected or the annotated mask:

- taken from background, or from other annotated people (crowds included);
- lost to background: in no detection's mask;
- lost to other people: in the mask of a detection that is matched to another person;
- lost to unmatched: in masks of unmatched detections only.

Errors of detections: wrong scores (they do not rank by the true similarity), duplicates (another detection is
matched to their person), false positives (near no annotated person) and missed people.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import compress
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
from pycocotools import mask as mask_api

from personlab.metrics.coco import Array, Assignment, Matches, Task, match, run_lengths
from personlab.metrics.oks import similarity
from personlab.people import Detection
from personlab.utils.progress import Tracker

BoolArray = npt.NDArray[np.bool_]
Kinds = npt.NDArray[np.intp]  # index into KINDS of a task, NONE where there is nothing to judge
Found = dict[int, list[Detection]]  # by image id

MATCHED: Final = 0.1  # least OKS or IoU of a detection and its person
NEAR, GOOD = 0.5, 0.85  # least similarity of a keypoint, and of a good one

KINDS: Final[dict[Task, tuple[str, ...]]] = {  # what is right comes first
    "keypoints": ("good", "jitter", "inversion", "swap", "miss"),
    "segm": (
        *("correct", "taken_from_background", "taken_from_others"),
        *("lost_to_background", "lost_to_unmatched", "lost_to_others"),
    ),
}
DETECTION_ERRORS: Final = ("wrong_scores", "duplicates", "false_positives", "missed_people")
NONE: Final = -1


@dataclass(frozen=True)
class Shares:
    """How keypoints or pixels divide among the kinds of a task."""

    of: dict[str, float]  # by kind; they sum to 1, NaN without any
    number: int  # of annotated keypoints, or of people with a matched mask


@dataclass(frozen=True)
class Counts:
    """The detections and the annotated people of a task."""

    matched: int
    duplicates: int
    false_positives: int
    ignored: int  # detections matched to crowds or, for keypoints, to people without keypoints
    missed_people: int


@dataclass(frozen=True)
class Errors:
    """The errors of one task.

    sizes: shares of all people, and by their size.
    keypoints: shares of each keypoint, by its name; none for masks.
    columns: the scores as they are, as `Matches.columns`.
    mended: the columns without one kind of error, by the error.
    """

    task: Task
    counts: Counts
    sizes: dict[str, Shares]
    keypoints: dict[str, Shares]
    columns: dict[str, float]
    mended: dict[str, dict[str, float]]

    @classmethod
    def of(cls, matches: Matches, detections: Mapping[int, Sequence[Detection]], progress: Tracker) -> Self:
        """The errors of detections, by image id, and of their matches."""
        analysis = Analysis.of(matches, detections)
        return cls(
            task=matches.task,
            counts=analysis.counts,
            sizes={size: analysis.of_size(size) for size in matches.sizes},
            keypoints=analysis.by_keypoint() if matches.task == "keypoints" else {},
            columns=matches.columns(),
            mended={
                error: analysis.score(analysis.mended(error)).columns()
                for error in progress(analysis.errors, label=f"errors of {matches.task}")
            },
        )


@dataclass(frozen=True)
class Pair:
    """A detection and the counted person that it is matched to."""

    image_id: int
    index: int  # of the detection in its image
    area: float  # of the person, pixels
    amounts: Array  # M x kinds: of each keypoint (0 or 1), or of the pixels of the mask's union (M = 1)
    mended: tuple[Detection, ...]  # the detection without one kind of error, in the order of KINDS


@dataclass(frozen=True)
class Analysis:
    """The detections of all images within the budget, and their people.

    matches: of the detections as they are.
    detections: by image id, best first.
    """

    matches: Matches
    detections: Found
    assignments: dict[int, Assignment]
    pairs: tuple[Pair, ...]

    @classmethod
    def of(cls, matches: Matches, detections: Mapping[int, Sequence[Detection]]) -> Self:
        """Match detections, by image id, at 0.1 and judge each pair. matches: of the same detections."""
        truth, task, budget = matches.evaluator.cocoGt, matches.task, matches.budget
        best = {image_id: _best(detections.get(image_id, ()), task, budget) for image_id in truth.imgs}
        near = match(truth, best, task, budget, (MATCHED,))
        assignments = dict(near.assignments(MATCHED))
        pair = partial(_pose_pair, matches) if task == "keypoints" else partial(_mask_pair, matches)
        pairs = tuple(
            pair(image_id, best[image_id], assignment, index)
            for image_id, assignment in assignments.items()
            for index, person in enumerate(assignment.person)
            if person >= 0 and assignment.counted[person]
        )
        return cls(matches, best, assignments, pairs)

    @property
    def errors(self) -> tuple[str, ...]:
        """The kinds of errors of this task."""
        return (*KINDS[self.matches.task][1:], *DETECTION_ERRORS)

    @cached_property
    def counts(self) -> Counts:
        found = self.assignments.values()
        duplicates = sum(int(np.count_nonzero(_duplicate(each))) for each in found)
        unmatched = sum(int(np.count_nonzero(each.person < 0)) for each in found)
        return Counts(
            matched=len(self.pairs),
            duplicates=duplicates,
            false_positives=unmatched - duplicates,
            ignored=sum(len(each.person) for each in found) - len(self.pairs) - unmatched,
            missed_people=sum(len(_missed(each)) for each in found),
        )

    def of_size(self, size: str) -> Shares:
        """The shares of people of a size, as in `Matches.sizes`."""
        least, greatest = self.matches.sizes[size]
        return self._shares([pair.amounts for pair in self.pairs if least <= pair.area <= greatest])

    def by_keypoint(self) -> dict[str, Shares]:
        """The shares of each keypoint."""
        names = self.matches.keypoint_names
        return {
            name: self._shares([pair.amounts[k : k + 1] for pair in self.pairs])
            for k, name in enumerate(names)
        }

    def _shares(self, amounts: list[Array]) -> Shares:
        kinds = KINDS[self.matches.task]
        total = np.sum([each.sum(axis=0) for each in amounts], axis=0) if amounts else np.zeros(len(kinds))
        number = total.sum()
        shares = total / number if number > 0 else np.full(len(kinds), np.nan)
        return Shares(dict(zip(kinds, shares.tolist(), strict=True)), round(number))

    def score(self, detections: Found) -> Matches:
        """Matches of other detections of the same images, at COCO's thresholds."""
        return match(self.matches.evaluator.cocoGt, detections, self.matches.task, self.matches.budget)

    def mended(self, error: str) -> Found:
        """The detections without one kind of error.

        Keypoints move to their annotated places, and pixels to the masks that they belong to. Scores become
        `true_scores`. Duplicates and false positives are dropped. Missed people are found perfectly, with a
        score above all others.
        """
        match error:
            case "wrong_scores":
                return self._each(lambda found, people: _with_scores(found, true_scores(people)))
            case "duplicates":
                return self._each(lambda found, people: _where(found, ~_duplicate(people)))
            case "false_positives":
                return self._each(
                    lambda found, people: _where(found, (people.person >= 0) | _duplicate(people))
                )
            case "missed_people":
                first = 1 + max(
                    (each.score for found in self.detections.values() for each in found), default=0
                )
                return self._each(lambda found, people: [_perfect(p, first) for p in _missed(people)] + found)
        mended = {image_id: list(found) for image_id, found in self.detections.items()}
        for pair in self.pairs:
            mended[pair.image_id][pair.index] = pair.mended[KINDS[self.matches.task].index(error) - 1]
        return mended

    def _each(self, change: Callable[[list[Detection], Assignment], list[Detection]]) -> Found:
        return {
            image_id: change(found, self.assignments[image_id]) for image_id, found in self.detections.items()
        }


# --- detections ---------------------------------------------------------------------------------------------


def true_scores(assignment: Assignment) -> Array:
    """The similarity of each detection to its person: D.

    The most similar detection and person belong together, then the most similar of the others, and so on. For
    detections without a person it is 0.
    """
    left = np.where(assignment.counted, assignment.similarity, -1.0)
    scores = np.zeros(len(left))
    for _ in range(min(left.shape)):
        detection, person = np.unravel_index(left.argmax(), left.shape)
        scores[detection] = max(left[detection, person], 0.0)
        left[detection], left[:, person] = -1.0, -1.0
    return scores


def _best(detections: Sequence[Detection], task: Task, budget: int) -> list[Detection]:
    """The detections that pycocotools matches, in its order."""
    scored = [each for each in detections if each.rle or task == "keypoints"]
    return sorted(scored, key=lambda each: -each.score)[:budget]


def _duplicate(assignment: Assignment) -> BoolArray:
    """The unmatched detections that are near a person: D. The person is matched to another detection."""
    near = (assignment.similarity >= MATCHED) & assignment.counted
    duplicate: BoolArray = (assignment.person < 0) & near.any(axis=1)
    return duplicate


def _missed(assignment: Assignment) -> list[dict[str, Any]]:
    """The counted people without a detection."""
    missed = assignment.counted.copy()
    missed[assignment.person[assignment.person >= 0]] = False
    return list(compress(assignment.people, missed))


def _perfect(person: Mapping[str, Any], score: float) -> Detection:
    keypoints = np.array(person["keypoints"], np.float32).reshape(-1, 3)
    mask = person["segmentation"]
    return Detection(keypoints[:, :2], keypoints[:, 2], score, mask["counts"] if mask else b"")


def _with_scores(detections: Sequence[Detection], scores: Array) -> list[Detection]:
    pairs = zip(detections, scores.tolist(), strict=True)
    return [replace(each, score=score) for each, score in pairs]


def _where(detections: Sequence[Detection], kept: BoolArray) -> list[Detection]:
    return list(compress(detections, kept))


# --- keypoints ----------------------------------------------------------------------------------------------


def keypoint_kinds(
    detected: npt.NDArray[np.floating],
    people: Array,
    areas: Array,
    person: int,
    kappas: Array,
    flip: Sequence[int] | None,
) -> Kinds:
    """The kind of each keypoint of a detection: K indices into KINDS, NONE where it is not annotated.

    Args:
        detected: K x 2, pixels.
        people: annotated people of the image, G x K x 3 (x, y, visibility).
        areas: of the people, pixels^2: G.
        person: index of the detection's person.
        kappas: OKS tolerances, K.
        flip: as `Skeleton.flip`; without, there are no inversions, nor swaps with mirrored keypoints.
    """

    def near(annotated: Array) -> Array:
        similarities = similarity(detected, annotated[..., :2], areas, kappas)
        return np.where(annotated[..., 2] > 0, similarities, 0.0)

    same = near(people)
    mirrored = near(people[:, list(flip)]) if flip else np.zeros_like(same)
    own, inverted = same[person], mirrored[person]
    others = np.delete(np.maximum(same, mirrored), person, axis=0)
    swapped = others.max(axis=0, initial=0.0)
    good, jitter, inversion, swap, miss = range(len(KINDS["keypoints"]))
    return np.select(
        [
            people[person, :, 2] == 0,
            own >= GOOD,
            own >= NEAR,
            (inverted >= NEAR) & (inverted >= swapped),
            swapped >= NEAR,
        ],
        [NONE, good, jitter, inversion, swap],
        miss,
    )


def _pose_pair(
    matches: Matches, image_id: int, found: Sequence[Detection], assignment: Assignment, index: int
) -> Pair:
    person, detection = assignment.person[index], found[index]
    people = np.array([each["keypoints"] for each in assignment.people]).reshape(
        len(assignment.people), -1, 3
    )
    areas = np.array([each["area"] for each in assignment.people], dtype=float)
    kinds = keypoint_kinds(detection.keypoints, people, areas, person, matches.kappas, matches.flip)
    numbers = np.arange(len(KINDS["keypoints"]))
    truth = people[person, :, :2].astype(np.float32)
    mended = [np.where((kinds == kind)[:, None], truth, detection.keypoints) for kind in numbers[1:]]
    return Pair(
        image_id=image_id,
        index=index,
        area=areas[person],
        amounts=(kinds[:, None] == numbers).astype(float),
        mended=tuple(replace(detection, keypoints=keypoints) for keypoints in mended),
    )


# --- masks --------------------------------------------------------------------------------------------------


def pixel_kinds(
    detected: BoolArray,
    annotated: BoolArray,
    *,
    others_annotated: BoolArray,
    others_detected: BoolArray,
    unmatched: BoolArray,
) -> Kinds:
    """The kind of each pixel: indices into KINDS, NONE outside of both masks; H x W, as the arguments.

    Args:
        detected: mask of a detection.
        annotated: mask of its person.
        others_annotated: of other annotated people, crowds included.
        others_detected: of the detections that are matched to other people.
        unmatched: of the unmatched detections.
    """
    correct, from_background, from_others, to_background, to_unmatched, to_others = range(len(KINDS["segm"]))
    return np.select(
        [
            detected & annotated,
            detected & others_annotated,
            detected,
            annotated & others_detected,
            annotated & unmatched,
            annotated,
        ],
        [correct, from_others, from_background, to_others, to_unmatched, to_background],
        NONE,
    )


def _mask_pair(
    matches: Matches, image_id: int, found: Sequence[Detection], assignment: Assignment, index: int
) -> Pair:
    image, person = matches.evaluator.cocoGt.imgs[image_id], assignment.person[index]
    detected = [run_lengths(image, each.rle) for each in found]
    annotated = [each["segmentation"] for each in assignment.people]
    mask = mask_api.decode(detected[index])
    box = _box([detected[index], annotated[person]])
    owner = assignment.person
    kinds = pixel_kinds(
        mask[box] > 0,
        mask_api.decode(annotated[person])[box] > 0,
        others_annotated=_union(compress(annotated, np.arange(len(annotated)) != person), mask.shape)[box],
        others_detected=_union(compress(detected, (owner >= 0) & (owner != person)), mask.shape)[box],
        unmatched=_union(compress(detected, owner < 0), mask.shape)[box],
    )
    numbers = np.arange(len(KINDS["segm"]))
    amounts = np.bincount(kinds[kinds != NONE], minlength=len(numbers))
    return Pair(
        image_id=image_id,
        index=index,
        area=float(assignment.people[person]["area"]),
        amounts=amounts[None] / amounts.sum(),
        mended=tuple(replace(found[index], rle=_flipped(mask, box, kinds == kind)) for kind in numbers[1:]),
    )


def _union(masks: Iterable[Mapping[str, Any]], shape: tuple[int, int]) -> BoolArray:
    masks = list(masks)
    return mask_api.decode(mask_api.merge(masks)) > 0 if masks else np.zeros(shape, bool)


def _box(masks: list[Mapping[str, Any]]) -> tuple[slice, slice]:
    """The rows and columns that hold the masks: to leave out the rest of the image saves time."""
    x, y, w, h = mask_api.toBbox(mask_api.merge(masks)).astype(int).tolist()
    return slice(y, y + h), slice(x, x + w)


def _flipped(mask: npt.NDArray[np.uint8], box: tuple[slice, slice], pixels: BoolArray) -> bytes:
    """The mask with some pixels of a box in or out instead of out or in."""
    mended = mask.copy(order="F")
    mended[box] ^= pixels
    counts: bytes = mask_api.encode(mended)["counts"]
    return counts
