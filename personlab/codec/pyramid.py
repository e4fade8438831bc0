"""The fields of one image at several scales, and the frame in which they meet.

Offsets stay in pixels of their own level until they have become places; places meet in pixels of a common
frame. One level is simply a pyramid of one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from personlab.codec.fields import Fields


@dataclass(frozen=True)
class Level:
    """The fields of one image at one scale: probabilities, offsets as the network gave them."""

    fields: Fields
    scale: float  # input pixels per image pixel


@dataclass(frozen=True)
class Frame:
    """The pixels in which votes meet and poses are compared: the levels' geometric mean scale."""

    scale: float  # frame pixels per image pixel
    height: float
    width: float

    @classmethod
    def common(cls, levels: Sequence[Level], height: int, width: int) -> Self:
        scale = math.exp(sum(math.log(level.scale) for level in levels) / len(levels))
        return cls(scale, (height - 1) * scale + 1, (width - 1) * scale + 1)


def shares(levels: Sequence[Level]) -> list[float]:
    """How much each level has to say of where things are, 1 in all: as the square of its scale.

    A network's offsets are about as many of its own pixels off at every scale. In pixels of the image that
    is a variance of 1 / scale^2, and means are best weighted by the inverse of that. Of whether something is
    there all levels have the same say.
    """
    squares = [level.scale**2 for level in levels]
    return [square / sum(squares) for square in squares]
