"""The fields of one image at several scales, and the frame in which they are combined.

Offsets stay in pixels of their own level until they have become positions; positions are combined in pixels
of a common frame. A single scale is a pyramid of one level.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

from personlab.codec.fields import Fields
from personlab.codec.loops import Array, array


@dataclass(frozen=True)
class Level:
    """The fields of one image at one scale: probabilities, offsets as the network predicts them."""

    fields: Fields
    scale: float  # input pixels per image pixel


@dataclass(frozen=True)
class Frame:
    """The pixels in which votes are accumulated and poses compared: the levels' geometric mean scale."""

    scale: float  # frame pixels per image pixel
    height: float
    width: float

    @classmethod
    def common(cls, levels: Sequence[Level], height: int, width: int) -> Self:
        """The frame of the levels of a height x width image."""
        scale = math.exp(sum(math.log(level.scale) for level in levels) / len(levels))
        return cls(scale, (height - 1) * scale + 1, (width - 1) * scale + 1)


class View(NamedTuple):
    """A level as the compiled loops see it."""

    heatmap: Array  # K x H x W
    short: Array  # K x 2 x H x W
    mid: Array  # E x 2 x H x W
    stride: float  # level pixels per cell
    ratio: float  # level pixels per frame pixel
    weight: float  # see `weights`


def views(levels: Sequence[Level], frame: Frame) -> tuple[View, ...]:
    """The levels of an image for the compiled loops."""
    return tuple(
        View(
            heatmap=array(level.fields.heatmap[0]),
            short=array(level.fields.short[0]),
            mid=array(level.fields.mid[0]),
            stride=float(level.fields.stride),
            ratio=level.scale / frame.scale,
            weight=weight,
        )
        for level, weight in zip(levels, weights(levels), strict=True)
    )


def weights(levels: Sequence[Level]) -> list[float]:
    """Weight of each level's position estimate, the square of its scale; they sum to 1.

    The error of a network's offsets is about the same number of its own pixels at every scale. In image
    pixels that is a variance proportional to 1 / scale^2, and the best mean weights by its inverse. Whether a
    keypoint is present is the plain mean over the levels.
    """
    squares = [level.scale**2 for level in levels]
    return [square / sum(squares) for square in squares]
