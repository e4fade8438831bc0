"""The codec on its own: encode annotated people, decode the targets as if a perfect network had seen them.

What is lost is lost by the representation, and can be explained. A third of COCO's annotated people have
labelled keypoints that are not connected along the tree (a gap at an unlabelled elbow, say), and an edge
that was never defined cannot be followed. `MeanPerson.complete` fills the gaps first, so that nothing but
the codec is left to lose anything; `connected` says what the gaps cost without asking any decoder.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from pycocotools.coco import COCO

from personlab.codec.decode import Decoder, Level
from personlab.codec.encode import Instances, encode
from personlab.codec.fields import padded_side
from personlab.data.example import project_people
from personlab.data.transform import Transform, fit
from personlab.errors import UserError
from personlab.metrics.coco import Matches, match, with_masks
from personlab.metrics.files import read_annotations
from personlab.people import Annotation, Detection, FloatArray
from personlab.predictor import detections
from personlab.skeleton import TREE, K
from personlab.utils.progress import Tracker

# Where keypoints without a connection are put: so far away that their OKS is 0.
_LOST = -1e6


def read(path: Path) -> COCO:
    """The people of a COCO person keypoints file who have a mask, as pycocotools has them.

    Raises:
        UserError: as `read_annotations`, or no person has keypoints and a mask.
    """
    truth = with_masks(read_annotations(path).truth)
    if not any(record["num_keypoints"] for record in truth.anns.values()):
        raise UserError(f"{path}: no person has keypoints and a mask; use person_keypoints_*.json")
    return truth


def people_of(truth: COCO, image_id: int) -> list[Annotation]:
    """The annotated people of an image, in the file's order."""
    return [_annotation(truth, record) for record in truth.imgToAnns[image_id]]


def round_trip(
    people: Sequence[Annotation], decoder: Decoder, *, height: int, width: int, side: int, stride: int
) -> list[Detection]:
    """The people of a height x width image, after their fields on an input of longest side `side`."""
    seen, scale = shown(people, height=height, width=width, side=side, stride=stride)
    levels = [Level(encode(seen, stride=stride, radius=decoder.radius).fields, scale)]
    poses = decoder.poses(levels, height=height, width=width)
    return list(detections(poses, decoder.masks(levels, poses, height=height, width=width)))


def shown(
    people: Sequence[Annotation], *, height: int, width: int, side: int, stride: int
) -> tuple[Instances, float]:
    """The people of a height x width image on an input of longest side `side`, and that input's scale."""
    scale, scaled_height, scaled_width = fit(height, width, side)
    transform = Transform(
        scale, (0.0, 0.0), padded_side(scaled_height, stride), padded_side(scaled_width, stride)
    )
    return project_people(people, transform, height=height, width=width, stride=stride), scale


@dataclass(frozen=True)
class Report:
    """What the round trip kept, and the keypoints AP that annotation gaps leave at best."""

    keypoints: Matches
    segm: Matches
    bound: float


def score(
    truth: COCO, decoder: Decoder, *, side: int, stride: int, complete: bool, progress: Tracker
) -> Report:
    """Send every image of `truth` through the codec and score what comes back against the annotations.

    complete: fill unlabelled keypoints first; the scores still only look at those that were labelled.
    """
    everyone = {image_id: people_of(truth, image_id) for image_id in sorted(truth.imgs)}
    bound = {image_id: connected(people) for image_id, people in everyone.items()}
    if complete:
        mean = MeanPerson.of([person for people in everyone.values() for person in people])
        everyone = {image_id: [mean.complete(p) for p in people] for image_id, people in everyone.items()}
        bound = {image_id: connected(people) for image_id, people in everyone.items()}
    found = {
        image_id: round_trip(
            people,
            decoder,
            height=truth.imgs[image_id]["height"],
            width=truth.imgs[image_id]["width"],
            side=side,
            stride=stride,
        )
        for image_id, people in progress(everyone.items(), total=len(everyone), label="oracle")
    }
    return Report(
        keypoints=match(truth, found, "keypoints"),
        segm=match(truth, found, "segm", decoder.max_people),
        bound=match(truth, bound, "keypoints").columns()["AP"],
    )


def connected(people: Sequence[Annotation]) -> list[Detection]:
    """The best that can be found of each person with keypoints by following defined edges alone.

    A defined edge has both ends labelled. Whoever starts in the largest connected part of a person finds
    that part, exactly; the other keypoints are lost.
    """
    return [_largest_part(person) for person in people if person.visibility.any() and not person.crowd]


def _largest_part(person: Annotation) -> Detection:
    labelled = person.visibility > 0
    part = np.arange(K)
    for source, target in TREE:  # each edge leads away from the root: one pass joins everything
        if labelled[source] and labelled[target]:
            part[target] = part[source]
    sizes = np.bincount(part[labelled], minlength=K)
    kept = labelled & (part == sizes.argmax())
    keypoints = np.where(kept[:, None], person.keypoints, np.float32(_LOST))
    return Detection(keypoints, kept.astype(np.float32), score=1.0, rle=person.rle)


@dataclass(frozen=True)
class MeanPerson:
    """Where each keypoint usually lies in a person's box: K x 2, as fractions of its width and height."""

    keypoints: FloatArray

    @classmethod
    def of(cls, people: Sequence[Annotation]) -> Self:
        """The mean over all labelled keypoints of `people`."""
        total, count = np.zeros((K, 2)), np.zeros((K, 1))
        for person in people:
            x, y, width, height = person.box
            labelled = (person.visibility > 0)[:, None]
            total += np.where(labelled, (person.keypoints - (x, y)) / (width, height), 0)
            count += labelled
        return cls((total / np.maximum(count, 1)).astype(np.float32))

    def complete(self, person: Annotation) -> Annotation:
        """The person with every keypoint labelled; crowds stay as they are.

        The mean person, laid into the box, is shifted to fit the labelled keypoints best; what falls
        outside the box is pulled to its border.
        """
        if person.crowd:
            return person
        x, y, width, height = person.box
        labelled = (person.visibility > 0)[:, None]
        usual = self.keypoints * np.array([width, height], np.float32) + np.array([x, y], np.float32)
        if labelled.any():
            usual = usual + (person.keypoints - usual).mean(axis=0, where=labelled)
        inside = usual.clip([x, y], [x + width, y + height])
        return replace(
            person,
            keypoints=np.where(labelled, person.keypoints, inside).astype(np.float32),
            visibility=np.where(labelled[:, 0], person.visibility, 1).astype(np.int8),
        )


def _annotation(truth: COCO, record: dict[str, Any]) -> Annotation:
    keypoints = np.array(record["keypoints"], np.float32).reshape(K, 3)
    counts = truth.annToRLE(record)["counts"]
    return Annotation(
        id=record["id"],
        keypoints=keypoints[:, :2],
        visibility=keypoints[:, 2].astype(np.int8),
        imputed=False,
        box=tuple(record["bbox"]),
        area=record["area"],
        crowd=bool(record["iscrowd"]),
        rle=counts if isinstance(counts, bytes) else counts.encode(),
    )
