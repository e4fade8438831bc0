"""Recurrent offset refinement (paper, equations 2 and 5), at the resolution of the network's output."""

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from personlab.codec.fields import Fields, cell_positions
from personlab.skeleton import Skeleton

# Refinement steps of the paper, for mid-range (eq. 2) and long-range offsets (eq. 5) alike.
STEPS: Final = 2


def sample(field: Tensor, xy: Tensor, stride: int) -> Tensor:
    """Bilinear samples of a field at input-pixel positions; outside the map, the value at its border.

    field: N x C x H x W; xy: N x 2 x h x w. Returns N x C x h x w, differentiable in both.
    """
    height, width = field.shape[-2:]
    x = xy[:, 0] * (2 / (stride * max(width - 1, 1))) - 1
    y = xy[:, 1] * (2 / (stride * max(height - 1, 1))) - 1
    grid = torch.stack((x, y), dim=-1)
    return F.grid_sample(field, grid, mode="bilinear", padding_mode="border", align_corners=True)


def refine(
    fields: Fields,
    *,
    mid_steps: int = STEPS,
    long_steps: int = STEPS,
    skeleton: Skeleton,
) -> Fields:
    """Fields whose mid- and long-range offsets have been refined; the other three are unchanged.

    mid, eq. 2: M_kl(x) <- x' + S_l(x') with x' = M_kl(x); the short-range field is the *target*
    keypoint's. long, eq. 5: first L_k(x) <- x' + L_k(x'), then L_k(x) <- x' + S_k(x'). The paper writes
    both as positions; offsets from x add up instead.
    """
    short, mid, long = fields.short.float(), fields.mid.float(), fields.long.float()
    kinds = short.unbind(1)  # indexing by a list would wait for a GPU
    target_short = torch.stack([kinds[target] for _, target in skeleton.edges], 1)
    for _ in range(mid_steps):
        mid = mid + _at_ends(target_short, mid, fields.stride)
    long_steps = long_steps if fields.has_masks else 0
    for _ in range(long_steps):
        long = long + _at_ends(long, long, fields.stride)
    for _ in range(long_steps):
        long = long + _at_ends(short, long, fields.stride)
    return fields.replace(mid=mid, long=long)


def _at_ends(field: Tensor, offsets: Tensor, stride: int) -> Tensor:
    """Sample `field` where `offsets` end; both B x N x 2 x H x W."""
    position = cell_positions(offsets.shape[-2], offsets.shape[-1], stride, offsets.device)
    ends = (position + offsets).flatten(0, 1)
    return sample(field.flatten(0, 1), ends, stride).view_as(offsets)
