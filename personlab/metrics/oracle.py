"""Round trip of the codec: encode annotated people and decode the targets as a perfect network's fields.

The scores are the upper bound that the representation sets. A third of COCO's annotated people have labelled
keypoints that are not connected along the tree (by an unlabelled elbow, for example), and decoding cannot
follow undefined edges. `largest_components` gives the best result under this limit; `MeanPose.complete` fills
the gaps, so that only the codec's own errors remain.
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
from personlab.skeleton import TREE, K
from personlab.utils.progress import Tracker

# The position of unconnected keypoints: so far away that their OKS is 0.
_FAR_AWAY = -1e6


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
    """Encode the people of a height x width image on an input of longest side `side`, and decode them."""
    instances, scale = project(people, height=height, width=width, side=side, stride=stride)
    levels = [Level(encode(instances, stride=stride, radius=decoder.radius).fields, scale)]
    return list(decoder.people(levels, height=height, width=width))


def project(
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
    """The matches after the round trip, and the upper bound of keypoints AP that annotation gaps set."""

    keypoints: Matches
    segm: Matches
    bound: float


def score(
    truth: COCO, decoder: Decoder, *, side: int, stride: int, complete: bool, progress: Tracker
) -> Report:
    """Encode and decode the people of every image of `truth`, and score the result.

    Args:
        complete: fill unlabelled keypoints first; scores refer to the labelled ones only.
    """
    by_image = {image_id: people_of(truth, image_id) for image_id in sorted(truth.imgs)}
    if complete:
        mean = MeanPose.of([person for people in by_image.values() for person in people])
        by_image = {image_id: [mean.complete(p) for p in people] for image_id, people in by_image.items()}
    components = {image_id: largest_components(people) for image_id, people in by_image.items()}
    decoded = {
        image_id: round_trip(
            people,
            decoder,
            height=truth.imgs[image_id]["height"],
            width=truth.imgs[image_id]["width"],
            side=side,
            stride=stride,
        )
        for image_id, people in progress(by_image.items(), total=len(by_image), label="oracle")
    }
    return Report(
        keypoints=match(truth, decoded, "keypoints"),
        segm=match(truth, decoded, "segm", decoder.max_people),
        bound=match(truth, components, "keypoints").columns()["AP"],
    )


def largest_components(people: Sequence[Annotation]) -> list[Detection]:
    """The largest connected component of the labelled keypoints of each person, without crowds.

    Edges connect keypoints if both ends are labelled. This is the best that decoding can give for a person:
    it follows these edges from a seed in the largest component.
    """
    return [_largest_component(person) for person in people if person.visibility.any() and not person.crowd]


def _largest_component(person: Annotation) -> Detection:
    labelled = person.visibility > 0
    component = np.arange(K)
    for source, target in TREE:  # edges are ordered away from the root, so one pass is enough
        if labelled[source] and labelled[target]:
            component[target] = component[source]
    sizes = np.bincount(component[labelled], minlength=K)
    kept = labelled & (component == sizes.argmax())
    keypoints = np.where(kept[:, None], person.keypoints, np.float32(_FAR_AWAY))
    return Detection(keypoints, kept.astype(np.float32), score=1.0, mask_score=1.0, rle=person.rle)


@dataclass(frozen=True)
class MeanPose:
    """The mean position of each keypoint in a person's box."""

    keypoints: FloatArray  # K x 2, fractions of the box's width and height

    @classmethod
    def of(cls, people: Sequence[Annotation]) -> Self:
        """The mean over the labelled keypoints of `people`."""
        points = np.stack([(person.keypoints - person.box[:2]) / person.box[2:] for person in people])
        labelled = np.stack([person.visibility > 0 for person in people])[..., None]
        total, count = points.sum(axis=0, where=labelled), labelled.sum(axis=0)
        return cls((total / np.maximum(count, 1)).astype(np.float32))

    def complete(self, person: Annotation) -> Annotation:
        """The person with every keypoint labelled; crowds are returned unchanged.

        Unlabelled keypoints are those of the mean pose, scaled to the box, shifted to fit the labelled
        keypoints (least squares) and clipped to the box.
        """
        if person.crowd:
            return person
        x, y, width, height = person.box
        labelled = (person.visibility > 0)[:, None]
        mean = self.keypoints * np.array([width, height], np.float32) + np.array([x, y], np.float32)
        if labelled.any():
            mean = mean + (person.keypoints - mean).mean(axis=0, where=labelled)
        clipped = mean.clip([x, y], [x + width, y + height])
        return replace(
            person,
            keypoints=np.where(labelled, person.keypoints, clipped).astype(np.float32),
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
