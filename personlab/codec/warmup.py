"""Compile the decoder's loops before they are first needed: python -m personlab.codec.warmup"""

import numpy as np
import torch

from personlab.codec.decode import Decoder, Level
from personlab.codec.encode import Instances, encode

SIDE, STRIDE = 65, 8


def main() -> None:
    """Decode one person, with one level and with three: some loops are compiled per number of levels."""
    decoder, cells = Decoder(), SIDE // STRIDE + 1
    count = len(decoder.skeleton.keypoints)
    people = Instances(
        keypoints=torch.linspace(16, 48, 2 * count).reshape(1, count, 2),
        labelled=torch.ones(1, count, dtype=torch.bool),
        masks=torch.ones(1, cells, cells),
        crowd=torch.zeros(1, dtype=torch.bool),
        imputed=torch.zeros(1, dtype=torch.bool),
        unmasked=torch.zeros(1, dtype=torch.bool),
    )
    fields = encode(people, stride=STRIDE, radius=decoder.radius, skeleton=decoder.skeleton).fields
    level, image = Level(fields, scale=1.0), np.zeros((SIDE, SIDE, 3), np.uint8)
    for levels in ([level], [level] * 3):
        _, masks = decoder.decode(levels, height=SIDE, width=SIDE, image=image)
        list(masks)


if __name__ == "__main__":
    main()
