"""Round trip of the codec: encode annotated people and decode the targets as a perfect network's fields.

What the scores lack is the loss of the representation. A third of COCO's annotated people have labelled
keypoints that are not connected along the tree (by an unlabelled elbow, for example), and decoding cannot
follow undefined edges. `largest_components` gives the connected keypoints as annotated; `MeanPose.complete`
fills the gaps, so that only the codec's own errors remain.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO

from personlab import params
from personlab.codec.decode import Decoder, Level
from personlab.codec.encode import Instances, encode
from personlab.codec.fields import padded_side
from personlab.data.example import project_people
from personlab.data.mean_pose import MeanPose
from personlab.data.transform import Transform, fit
from personlab.errors import UserError
from personlab.metrics.coco import Matches, has_masks, match, subset
from personlab.metrics.files import Annotations, read_annotations
from personlab.people import Annotation, Detection, have_masks
from personlab.skeleton import Edge, Skeleton
from personlab.utils.progress import Tracker

# The position of unconnected keypoints: so far away that their OKS is 0.
_FAR_AWAY = -1e6


def read(path: Path, wanted: Sequence[str] = (), given: params.Skeleton | None = None) -> Annotations:
    """The people and crowds of a COCO keypoints file that have a mask; all, if no person has one.

    Arguments as `read_annotations`.

    Raises:
        UserError: as `read_annotations`, or none of these people has keypoints.
    """
    annotations = read_annotations(path, wanted, given)
    truth = annotations.truth
    if has_masks(truth):
        truth = subset(truth, [person for person in truth.anns.values() if person["segmentation"]])
    if not any(record["num_keypoints"] for record in truth.anns.values()):
        raise UserError(f"{path}: no person has keypoints (and, if any has one, a mask)")
    return replace(annotations, truth=truth)


def people_of(truth: COCO, image_id: int) -> list[Annotation]:
    """The annotated people of an image, in the file's order."""
    return [_annotation(truth, record) for record in truth.imgToAnns[image_id]]


def round_trip(
    people: Sequence[Annotation], decoder: Decoder, *, height: int, width: int, side: int, stride: int
) -> list[Detection]:
    """Encode the people of a height x width image on an input of longest side `side`, and decode them."""
    skeleton = decoder.skeleton
    instances, scale = project(
        people, height=height, width=width, side=side, stride=stride, skeleton=skeleton
    )
    fields = encode(instances, stride=stride, radius=decoder.radius, skeleton=skeleton).fields
    if not have_masks(people):
        fields = fields.replace(seg=fields.seg[:, :0, :0], long=fields.long[..., :0, :0])
    return list(decoder.people([Level(fields, scale)], height=height, width=width))


def project(
    people: Sequence[Annotation],
    *,
    height: int,
    width: int,
    side: int,
    stride: int,
    skeleton: Skeleton,
) -> tuple[Instances, float]:
    """The people of a height x width image on an input of longest side `side`, and that input's scale."""
    scale, scaled_height, scaled_width = fit(height, width, side)
    transform = Transform(
        scale, (0.0, 0.0), padded_side(scaled_height, stride), padded_side(scaled_width, stride)
    )
    instances = project_people(
        people, transform, height=height, width=width, stride=stride, skeleton=skeleton
    )
    return instances, scale


@dataclass(frozen=True)
class Report:
    """The matches after the round trip, and the AP of the connected keypoints, without a decoder.

    The round trip may exceed that AP, because decoding places the other keypoints too.
    """

    keypoints: Matches
    segm: Matches
    connected_ap: float


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
    components = {
        image_id: largest_components(people, decoder.skeleton.tree) for image_id, people in by_image.items()
    }
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
        connected_ap=match(truth, components, "keypoints").columns()["AP"],
    )


def largest_components(people: Sequence[Annotation], tree: Sequence[Edge]) -> list[Detection]:
    """The largest connected component of the labelled keypoints of each person, without crowds.

    Edges connect keypoints if both ends are labelled. Decoding follows these edges from a seed in the largest
    component; where it places the other keypoints is not defined.
    """
    return [
        _largest_component(person, tree) for person in people if person.visibility.any() and not person.crowd
    ]


def _largest_component(person: Annotation, tree: Sequence[Edge]) -> Detection:
    labelled = person.visibility > 0
    component = np.arange(len(labelled))
    for source, target in tree:  # edges are ordered away from the root, so one pass is enough
        if labelled[source] and labelled[target]:
            component[target] = component[source]
    sizes = np.bincount(component[labelled], minlength=len(labelled))
    kept = labelled & (component == sizes.argmax())
    keypoints = np.where(kept[:, None], person.keypoints, np.float32(_FAR_AWAY))
    return Detection(keypoints, kept.astype(np.float32), score=1.0, rle=person.rle)


def _annotation(truth: COCO, record: dict[str, Any]) -> Annotation:
    keypoints = np.array(record["keypoints"], np.float32).reshape(-1, 3)
    counts = truth.annToRLE(record)["counts"] if record["segmentation"] else b""
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
