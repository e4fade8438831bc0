"""Compile the decoder's loops before they are first needed: python -m personlab.codec.warmup"""

import torch

from personlab.codec.decode import Decoder, Level
from personlab.codec.encode import Instances, encode

SIDE, STRIDE = 65, 8


def main() -> None:
    """Decode one person, with one level and with three: some loops are compiled per number of levels."""
    cells = SIDE // STRIDE + 1
    people = Instances(
        keypoints=torch.linspace(16, 48, 2 * 17).reshape(1, 17, 2),
        labelled=torch.ones(1, 17, dtype=torch.bool),
        masks=torch.ones(1, cells, cells),
        crowd=torch.zeros(1, dtype=torch.bool),
        unmasked=torch.zeros(1, dtype=torch.bool),
    )
    decoder = Decoder()
    level = Level(encode(people, stride=STRIDE, radius=decoder.radius).fields, scale=1.0)
    for levels in ([level], [level] * 3):
        poses = decoder.poses(levels, height=SIDE, width=SIDE)
        list(decoder.masks(levels, poses, height=SIDE, width=SIDE))


if __name__ == "__main__":
    main()
