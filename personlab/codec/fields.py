"""The five fields of PersonLab: the one place that knows shapes, channel order and the grid.

Output cell (i, j), row and column, sits exactly on input pixel (stride * j, stride * i), in (x, y):
inputs are stride * n + 1 pixels a side, so there are no half-pixel shifts anywhere. Points are (x, y)
in input pixels, COCO's coordinates; offsets are (x, y) in input pixels, never in cells.

B batch, K keypoints (17 for COCO people), E = 2 (K - 1) directed edges (`Skeleton.edges`), H x W output
cells.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Self

import torch
from torch import Tensor

from personlab.skeleton import Skeleton

# The names of the fields, in the order of `Fields`.
FIELDS: Final = ("heatmap", "short", "mid", "seg", "long")


def channels(skeleton: Skeleton) -> dict[str, int]:
    """The channels of the network's heads, in the order of `Fields`."""
    kinds, edges = len(skeleton.keypoints), len(skeleton.edges)
    return {"heatmap": kinds, "short": 2 * kinds, "mid": 2 * edges, "seg": 1, "long": 2 * kinds}


def padded_side(pixels: int, stride: int) -> int:
    """The smallest stride * n + 1 that is at least `pixels`."""
    return -(-(pixels - 1) // stride) * stride + 1


def cells(pixels: int, stride: int) -> int:
    """How many output cells an input side of stride * n + 1 pixels has."""
    if (pixels - 1) % stride:
        raise ValueError(f"input side {pixels} is not {stride} * n + 1; pad it with padded_side() first")
    return (pixels - 1) // stride + 1


def cell_positions(height: int, width: int, stride: int, device: torch.device | None = None) -> Tensor:
    """Input-pixel position (x, y) of every output cell: 2 x height x width, float32."""
    y = torch.arange(height, device=device, dtype=torch.float32) * stride
    x = torch.arange(width, device=device, dtype=torch.float32) * stride
    return torch.stack((x.expand(height, width), y[:, None].expand(height, width)))


@dataclass(frozen=True)
class Fields:
    """What the network predicts for a batch, and what a decoder reads.

    The network's own output holds logits in `heatmap` and `seg`; `probabilities()` turns them into
    what equations 1, 3 and 6 call p_k and p_S. A network that finds poses only leaves `seg` and `long`
    empty: they have no cells.
    """

    heatmap: Tensor  # B x K x H x W
    short: Tensor  # B x K x 2 x H x W, y_k - x
    mid: Tensor  # B x E x 2 x H x W, y_target - x around the edge's source keypoint
    seg: Tensor  # B x H x W
    long: Tensor  # B x K x 2 x H x W, y_k - x over the person that owns x
    stride: int

    def probabilities(self) -> Self:
        """The same fields with logits replaced by probabilities."""
        return self.replace(heatmap=self.heatmap.sigmoid(), seg=self.seg.sigmoid())

    @property
    def has_masks(self) -> bool:
        return self.seg.numel() > 0

    def to(self, device: torch.device | str) -> Self:
        return self.map(lambda tensor: tensor.to(device))

    def float(self) -> Self:
        return self.map(Tensor.float)

    def tensors(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in FIELDS}

    def replace(self, **tensors: Tensor) -> Self:
        """The same fields with some of the five tensors replaced."""
        return replace(self, **tensors)  # type: ignore[arg-type]

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """The fields with a function applied to each of the five tensors."""
        return self.replace(**{name: function(tensor) for name, tensor in self.tensors().items()})


@dataclass(frozen=True)
class Targets:
    """What the network should predict, and where that is defined: undefined values are 0 and mean nothing.

    `heatmap` holds 0 or 1, `seg` shares from 0 to 1. The short-range offsets are defined exactly where the
    heatmap is 1.
    """

    fields: Fields
    heatmap_valid: Tensor  # B x K x H x W bool: not in crowds, or in people who may have such a keypoint
    mid_valid: Tensor  # B x E x H x W bool: the source's disk, where that person has both ends
    seg_valid: Tensor  # B x H x W bool: not in crowds or people without a mask
    long_valid: Tensor  # B x K x H x W bool: exactly one person's mask, keypoint annotated, not crowd

    @property
    def short_valid(self) -> Tensor:
        """B x K x H x W bool: the keypoint disks."""
        return self.fields.heatmap > 0.5

    def to(self, device: torch.device | str) -> Self:
        return type(self)(*(each.to(device) for each in vars(self).values()))


def stack(items: list[Targets]) -> Targets:
    """One batch from targets of single images of the same size and stride."""
    tensors = {name: torch.cat([getattr(t.fields, name) for t in items]) for name in FIELDS}
    _, *names = vars(items[0])
    valid = {name: torch.cat([getattr(t, name) for t in items]) for name in names}
    return Targets(Fields(**tensors, stride=items[0].fields.stride), **valid)
