"""People -> target fields (paper, sections 3.1 and 3.2), and where each target is defined.

All of it is closed form on the output grid: no loop over people, keypoints or pixels.
"""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from personlab.codec.fields import Fields, Targets, cell_positions
from personlab.skeleton import Skeleton


@dataclass(frozen=True)
class Instances:
    """The annotated people of one image, as the network's input shows them.

    A person without any labelled keypoint still has a mask; a crowd region is an instance with `crowd` set.
    Rows of `keypoints` that are not `labelled` mean nothing.
    """

    keypoints: Tensor  # P x K x 2 float32, (x, y) in input pixels; may lie outside the input
    labelled: Tensor  # P x K bool
    masks: Tensor  # P x H x W, how much of each output cell the person's mask covers (Transform.coverage)
    crowd: Tensor  # P bool
    imputed: Tensor  # P bool, people whose keypoints are estimates: others may be there too
    unmasked: Tensor  # P bool, people without a mask; `masks` holds the region that they are in

    def to(self, device: torch.device | str) -> Self:
        return type(self)(*(tensor.to(device) for tensor in vars(self).values()))


def encode(people: Instances, *, stride: int, radius: float, skeleton: Skeleton) -> Targets:
    """Target fields of one image (a batch of one), on the device of `people`.

    heatmap   1 within `radius` of a type-k keypoint of anyone
    short     y_jk - x for the person j whose keypoint k is closest, on the keypoint disks
    mid       y_jl - x for that same person, where it has both ends of the edge (k, l)
    seg       the share of the cell that lies on people's masks: what p_S has to be for its 0.5 line,
              interpolated between cells of stride 8, to fall on the masks' borders
    long      y_jk - x where exactly one person's mask covers x (most of its cell)

    Crowd regions leave the heatmap, the segmentation and the long-range offsets undefined, and have no
    keypoints of their own; disks of people that reach into one keep their short- and mid-range offsets.
    Over the mask of a person without keypoints the heatmaps are undefined, and over that of a person with
    imputed ones the heatmaps of all keypoints that were not. People without a mask leave the
    segmentation and the long-range offsets undefined in their region and, if there are no others, everywhere:
    in such an image no outlines were drawn.
    """
    edge_sources = [source for source, _ in skeleton.edges]
    edge_targets = [target for _, target in skeleton.edges]
    people = _with_empty_person(people)
    people = replace(people, keypoints=people.keypoints.where(people.labelled[..., None], 0.0))
    height, width = people.masks.shape[-2:]
    position = cell_positions(height, width, stride, people.masks.device)  # 2 x H x W
    labelled = people.labelled & ~people.crowd[:, None]

    closest, disk = _closest(people.keypoints, labelled, position, radius)
    kinds = torch.arange(len(closest), device=closest.device)[:, None, None]
    short = _towards(people.keypoints[closest, kinds], position)

    sources = closest[edge_sources]  # E x H x W: who owns the source's disk
    ends = torch.tensor(edge_targets, device=closest.device)[:, None, None]
    mid = _towards(people.keypoints[sources, ends], position)
    mid_valid = disk[edge_sources] & labelled[sources, ends]

    masked = ~people.crowd & ~people.unmasked
    ordinary = people.masks * masked[:, None, None]  # P x H x W
    crowd = (people.masks * people.crowd[:, None, None] > 0).any(0)
    unknown = (people.masks * (people.unmasked & ~people.crowd)[:, None, None] > 0).any(0)
    unknown |= people.unmasked.any() & ~masked[:-1].any()
    covers = ordinary >= 0.5
    owner = covers.to(torch.uint8).argmax(0)  # H x W: the only person there, where it is one
    long = _towards(people.keypoints[owner].permute(2, 0, 1, 3), position)
    long_valid = ((covers.sum(0) == 1) & ~crowd & ~unknown) & labelled[owner].permute(2, 0, 1)

    # keypoints of which nothing is known, P x K, and where they may be, K x H x W
    unsure = ~labelled & (people.imputed | ~labelled.any(1))[:, None] & ~people.crowd[:, None]
    perhaps = torch.einsum("pk,phw->khw", unsure.float(), (people.masks > 0).float()) > 0
    fields = Fields(
        heatmap=disk.float()[None],
        short=(short * disk[:, None])[None],
        mid=(mid * mid_valid[:, None])[None],
        seg=ordinary.sum(0).clamp(max=1)[None],
        long=(long * long_valid[:, None])[None],
        stride=stride,
    )
    return Targets(
        fields=fields,
        heatmap_valid=(~crowd & ~perhaps)[None],
        mid_valid=mid_valid[None],
        seg_valid=~(crowd | unknown)[None],
        long_valid=long_valid[None],
    )


def _with_empty_person(people: Instances) -> Instances:
    """Add a person without keypoints or mask, so that "the closest person" always exists."""
    return Instances(
        *(torch.cat([each, each.new_zeros(1, *each.shape[1:])]) for each in vars(people).values())
    )


def _closest(keypoints: Tensor, labelled: Tensor, position: Tensor, radius: float) -> tuple[Tensor, Tensor]:
    """Who has the closest keypoint of each type, K x H x W, and whether it is within `radius`."""
    x, y = position[0, 0], position[1, :, 0]
    far = torch.where(labelled, 0.0, torch.inf)[..., None, None]
    squared = (
        (keypoints[..., 1, None] - y).square()[..., :, None]
        + (keypoints[..., 0, None] - x).square()[..., None, :]
        + far
    )  # P x K x H x W
    distance, person = squared.min(0)
    return person, distance <= radius**2


def _towards(points: Tensor, position: Tensor) -> Tensor:
    """Offsets from every cell to its point: N x H x W x 2 points -> N x 2 x H x W."""
    return points.permute(0, 3, 1, 2) - position
