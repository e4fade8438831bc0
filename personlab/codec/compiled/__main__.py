"""Compile the loops before they are wanted, for one size and for three: python -m personlab.codec.compiled

Without, each of the processes that begin to decode at the same time does so.
"""

import torch

from personlab.codec.decode import Decoder, Level
from personlab.codec.encode import Instances, encode
from personlab.skeleton import K

SIDE, STRIDE = 65, 8


def main() -> None:
    """Decode somebody who stands in a square."""
    cells = SIDE // STRIDE + 1
    people = Instances(
        keypoints=torch.linspace(16, 48, 2 * K).reshape(1, K, 2),
        labelled=torch.ones(1, K, dtype=torch.bool),
        masks=torch.ones(1, cells, cells),
        crowd=torch.zeros(1, dtype=torch.bool),
    )
    decoder = Decoder()
    level = Level(encode(people, stride=STRIDE, radius=decoder.radius).fields, scale=1.0)
    for pyramid in ([level], [level] * 3):  # some loops are compiled for each number of levels
        poses = decoder.poses(pyramid, height=SIDE, width=SIDE)
        list(decoder.masks(pyramid, poses, height=SIDE, width=SIDE))


if __name__ == "__main__":
    main()
