"""Why the codec loses mask AP on perfect fields: AP with one ingredient at a time replaced by the truth.

    python -m benchmarks.mask_losses --annotations FILE [--sides 1401 1401 801] [--strides 8 16 8]
                                     [--proposals 20 100]

People, with unlabelled keypoints filled in, are encoded and decoded as by `personlab oracle --complete`.
Every detection is matched to the annotated person with the closest keypoints. Then the masks are made again
with one thing known:

resolution    the embeddings of pixels, not of cells
association   the cells of each person
overlap       cells that several people cover, which belong to all of them instead of to none
duplicates    of detections of the same person only the best is kept
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.tfjs import at_pixels
from personlab.codec.decode import Decoder, Level, Poses, detections
from personlab.codec.encode import Instances, encode
from personlab.codec.masks import embedding_distance, full_resolution, person_pixels
from personlab.data.example import decode_masks
from personlab.data.mean_pose import MeanPose
from personlab.metrics import oracle
from personlab.metrics.coco import match
from personlab.people import Annotation, Detection
from personlab.utils.progress import progress


@dataclass(frozen=True)
class Case:
    """One image: its people, their fields, and the poses found."""

    people: list[Annotation]  # no crowds
    seen: Instances
    level: Level
    poses: Poses  # in image pixels
    height: int
    width: int
    decoder: Decoder

    def person_of(self) -> Tensor:
        """Index of the person that each pose is matched to: N."""
        truth = torch.tensor([person.keypoints.tolist() for person in self.people])
        distances: Tensor = torch.linalg.vector_norm(self.poses.keypoints[:, None] - truth, dim=-1).mean(-1)
        return distances.argmin(1)

    def distance(self) -> Tensor:
        """Embedding distance (eq. 6) of every cell to every pose: N x H x W."""
        at = self.poses.scaled(self.level.scale)
        return embedding_distance(self.level.fields, at.keypoints, at.presence, at.extent())

    def covered(self) -> Tensor:
        """The cells that each person covers: P x H x W."""
        return self.seen.masks[~self.seen.crowd] >= 0.5

    def certain(self, cells: Tensor) -> Tensor:
        """Distances that put the border half-way between these cells and their neighbours."""
        return torch.where(cells, 0.0, 2 * self.decoder.mask_distance)

    def masks(self, distance: Tensor) -> list[Tensor]:
        fields = self.level.fields
        step, threshold = self.level.scale / fields.stride, self.decoder.mask_distance
        person = person_pixels(fields.seg[0], step=step, height=self.height, width=self.width)
        no_rival = torch.full_like(fields.seg[0], torch.inf)
        return [full_resolution(person, d, no_rival, step=step, threshold=threshold) for d in distance]

    def detections(self, masks: Sequence[Tensor], kept: Tensor | slice = slice(None)) -> list[Detection]:
        return list(detections(self.poses.select(kept), masks))


def as_it_is(case: Case) -> list[Detection]:
    return case.detections(case.masks(case.distance()))


def resolution(case: Case) -> list[Detection]:
    """All pixels of a person embed to the same keypoints, so the distance is one number for each pair."""
    people = torch.from_numpy(decode_masks(case.people, height=case.height, width=case.width))
    alone = people & (people.sum(0) == 1)
    truth = torch.tensor([person.keypoints.tolist() for person in case.people])  # P x K x 2
    apart = (case.poses.keypoints[:, None] - truth).norm(dim=-1)  # N x P x K
    present = case.poses.presence
    weight = present / present.sum(1, keepdim=True).clamp(min=1e-6) / case.poses.extent()[:, None]
    near = (apart * weight[:, None]).sum(-1) <= case.decoder.mask_distance
    return case.detections([alone[owners].any(0) for owners in near])


def association(case: Case) -> list[Detection]:
    own = case.covered() & (case.covered().sum(0) == 1)
    return case.detections(case.masks(case.certain(own[case.person_of()])))


def overlap(case: Case) -> list[Detection]:
    covered = case.covered()
    shared = covered.sum(0) > 1
    distance = torch.where(shared, case.certain(covered[case.person_of()]), case.distance())
    return case.detections(case.masks(distance))


def duplicates(case: Case) -> list[Detection]:
    person = case.person_of().tolist()
    first = torch.tensor([person.index(j) for j in dict.fromkeys(person)], dtype=torch.long)
    return case.detections(case.masks(case.distance()[first]), first)


def everything(case: Case) -> list[Detection]:
    """All of them at once: the loss left is people without a detection."""
    person = case.person_of().tolist()
    first = torch.tensor([person.index(j) for j in dict.fromkeys(person)], dtype=torch.long)
    masks = torch.from_numpy(decode_masks(case.people, height=case.height, width=case.width))
    return case.detections(list(masks[case.person_of()[first]]), first)


def resolution_alone(case: Case) -> list[Detection]:
    """Every annotated person once, from the share of each cell that the person covers."""
    shares = case.seen.masks[~case.seen.crowd]
    step = case.level.scale / case.level.fields.stride
    masks = at_pixels(shares, step=step, height=case.height, width=case.width) >= 0.5
    zeros = torch.zeros(len(masks), 17)
    poses = Poses.of(torch.zeros(len(masks), 17, 2), zeros, zeros + 1)
    return list(detections(poses, masks))


INGREDIENTS: dict[str, Callable[[Case], list[Detection]]] = {
    "as it is": as_it_is,
    "resolution": resolution,
    "association": association,
    "overlap": overlap,
    "duplicates": duplicates,
    "all four": everything,
    "resolution is all that is lost": resolution_alone,
}


def cases(annotations: Path, *, side: int, stride: int, proposals: int) -> Iterator[tuple[int, Case]]:
    """Every image with people in it."""
    truth = oracle.read(annotations).truth
    decoder = Decoder(trace_refinements=0, long_refinements=0, max_people=proposals, extensions=())
    everyone = {image_id: oracle.people_of(truth, image_id) for image_id in sorted(truth.imgs)}
    mean = MeanPose.of([person for people in everyone.values() for person in people])
    for image_id, people in progress(everyone.items(), label=f"{side}/{stride}, {proposals} proposals"):
        people = [mean.complete(person) for person in people]
        ordinary = [person for person in people if not person.crowd]
        if ordinary:
            size = {key: truth.imgs[image_id][key] for key in ("height", "width")}
            skeleton = decoder.skeleton
            seen, scale = oracle.project(people, **size, side=side, stride=stride, skeleton=skeleton)
            level = Level(encode(seen, stride=stride, radius=decoder.radius, skeleton=skeleton).fields, scale)
            poses = decoder.poses([level], **size)
            yield image_id, Case(ordinary, seen, level, poses, **size, decoder=decoder)


def main() -> None:
    options = _options()
    torch.set_num_threads(1)
    truth = oracle.read(options.annotations).truth
    print(
        f"| side / stride, proposals | {' | '.join(INGREDIENTS)} |",
        "|---" * (len(INGREDIENTS) + 1) + "|",
        sep="\n",
    )
    for side, stride in zip(options.sides, options.strides, strict=True):
        for proposals in options.proposals:
            found: dict[str, dict[int, list[Detection]]] = {name: {} for name in INGREDIENTS}
            for image_id, case in cases(options.annotations, side=side, stride=stride, proposals=proposals):
                for name, ingredient in INGREDIENTS.items():
                    found[name][image_id] = ingredient(case)
            aps = [match(truth, people, "segm", proposals).columns()["AP"] for people in found.values()]
            print(
                f"| {side} / {stride}, {proposals} |", " | ".join(f"{ap:.3f}" for ap in aps), "|", flush=True
            )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.mask_losses", description="Measure what costs mask AP on perfect fields."
    )
    parser.add_argument("--annotations", type=Path, required=True, metavar="FILE")
    parser.add_argument("--sides", type=int, nargs="+", default=[1401, 1401, 801], metavar="N")
    parser.add_argument("--strides", type=int, nargs="+", default=[8, 16, 8], metavar="S")
    parser.add_argument("--proposals", type=int, nargs="+", default=[20, 100], metavar="N")
    return parser.parse_args()


if __name__ == "__main__":
    main()
