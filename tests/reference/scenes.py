"""People to encode and decode: made-up figures, alone, in crowds, and wherever decoders go wrong."""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from personlab.codec.encode import Instances, encode
from personlab.codec.fields import Fields, cells
from personlab.skeleton import COCO_PERSON
from tests.coco_person import EDGES, FLIP, E, K

# Directed edge e of a mirrored image is edge EDGE_FLIP[e] of the original.
EDGE_FLIP = [EDGES.index((FLIP[source], FLIP[target])) for source, target in EDGES]

# A person who stands facing us, x and y of each keypoint relative to the nose, for a height of about 1.
_STANDING = torch.tensor(
    [
        *((0.0, 0.0), (0.03, -0.03), (-0.03, -0.03), (0.07, -0.02), (-0.07, -0.02)),  # nose, eyes, ears
        *((0.14, 0.15), (-0.14, 0.15), (0.20, 0.32), (-0.20, 0.32), (0.22, 0.48), (-0.22, 0.48)),  # arms
        *((0.09, 0.50), (-0.09, 0.50), (0.10, 0.72), (-0.10, 0.72), (0.10, 0.95), (-0.10, 0.95)),  # legs
    ]
)


def figure(x: float, y: float, height: float) -> Tensor:
    """Keypoints (K x 2, pixels) of a person `height` pixels tall with the nose at (x, y)."""
    return _STANDING * height + torch.tensor([x, y])


def mirrored(fields: Fields) -> Fields:
    """The fields of the left-right mirrored image: columns reversed, sides swapped, x negated."""
    flip, negate_x = list(FLIP), torch.tensor([-1.0, 1.0]).view(2, 1, 1)
    columns = fields.map(lambda tensor: tensor.flip(-1))
    return columns.replace(
        heatmap=columns.heatmap[:, flip],
        short=columns.short[:, flip] * negate_x,
        mid=columns.mid[:, EDGE_FLIP] * negate_x,
        long=columns.long[:, flip] * negate_x,
    )


def image(fields: Fields, index: int) -> Fields:
    """The fields of one image of a batch, as a batch of one."""
    return fields.map(lambda tensor: tensor[index : index + 1])


@dataclass(frozen=True)
class Scene:
    """Annotated people in a height x width input."""

    people: Instances
    height: int
    width: int
    stride: int

    def mirrored(self) -> "Scene":
        keypoints = self.people.keypoints[:, list(FLIP)].clone()
        keypoints[..., 0] = self.width - 1 - keypoints[..., 0]
        people = Instances(
            keypoints,
            self.people.labelled[:, list(FLIP)],
            self.people.masks.flip(-1),
            self.people.crowd,
            self.people.imputed,
            self.people.unmasked,
        )
        return replace(self, people=people)

    def select(self, order: list[int]) -> "Scene":
        """Some of the people, in another order."""
        p = self.people
        return replace(self, people=Instances(*(each[order] for each in vars(p).values())))


def scene(poses: list[Tensor], *, height: int, width: int, stride: int, margin: float = 6.0) -> Scene:
    """Fully labelled people; their masks are the cells in boxes `margin` pixels around their keypoints."""
    keypoints = torch.stack(poses) if poses else torch.zeros(0, K, 2)
    rows, columns = cells(height, stride), cells(width, stride)
    y, x = torch.arange(rows)[:, None] * stride, torch.arange(columns)[None] * stride
    masks = torch.zeros(len(poses), rows, columns)
    for mask, pose in zip(masks, poses, strict=True):
        (left, top), (right, bottom) = pose.amin(0) - margin, pose.amax(0) + margin
        mask[:] = (x >= left) & (x <= right) & (y >= top) & (y <= bottom)
    people = Instances(
        keypoints=keypoints.float(),
        labelled=torch.ones(len(poses), K, dtype=torch.bool),
        masks=masks,
        crowd=torch.zeros(len(poses), dtype=torch.bool),
        imputed=torch.zeros(len(poses), dtype=torch.bool),
        unmasked=torch.zeros(len(poses), dtype=torch.bool),
    )
    return Scene(people, height, width, stride)


def random_scene(seed: int, *, people: int = 3, rows: int = 9, columns: int = 11, stride: int = 8) -> Scene:
    """Keypoints anywhere, some outside or unlabelled; ragged masks; some crowds, some without either,
    some with imputed keypoints."""
    rng = np.random.default_rng(seed)
    height, width = (rows - 1) * stride + 1, (columns - 1) * stride + 1
    keypoints = rng.uniform(-0.2, 1.2, (people, K, 2)) * (width, height)
    labelled = rng.random((people, K)) < rng.choice([0.0, 0.5, 1.0], (people, 1), p=[0.2, 0.4, 0.4])
    # On a lattice of 1/16 pixels, so that mirroring and shifting are exact.
    return Scene(
        Instances(
            torch.from_numpy(np.round(keypoints * 16) / 16).float(),
            torch.from_numpy(labelled),
            torch.from_numpy(_shares(rng, (people, rows, columns))),
            *(torch.from_numpy(rng.random(people) < 0.2) for _ in range(3)),
        ),
        height,
        width,
        stride,
    )


def _shares(rng: np.random.Generator, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Shares of cells that masks cover: mostly none, some part (in exact sixteenths), some all."""
    return (rng.integers(-20, 28, shape).clip(0, 16) / 16).astype(np.float32)


def random_fields(
    seed: int, *, rows: int, columns: int, stride: int, spread: float, batch: int = 1
) -> Fields:
    """Probabilities anywhere in (0.01, 1), offsets normally distributed with deviation `spread` pixels."""
    g = torch.Generator().manual_seed(seed)

    def offsets(channels: int) -> Tensor:
        return torch.randn(batch, channels, 2, rows, columns, generator=g) * spread

    return Fields(
        heatmap=torch.rand(batch, K, rows, columns, generator=g) * 0.99 + 0.01,
        short=offsets(K),
        mid=offsets(E),
        seg=torch.rand(batch, rows, columns, generator=g),
        long=offsets(K),
        stride=stride,
    )


def predicted(scene: Scene, *, radius: float, noise: float = 1.0, seed: int = 0) -> Fields:
    """What a good network would say: the targets, each probability lower and each offset off by a little.

    No two votes are then exactly equal, so that the order of people does not hang on rounding.
    """
    fields = encode(scene.people, stride=scene.stride, radius=radius, skeleton=COCO_PERSON).fields
    off = random_fields(
        seed, rows=fields.seg.shape[1], columns=fields.seg.shape[2], stride=scene.stride, spread=noise
    )
    return fields.replace(
        heatmap=fields.heatmap * (0.7 + 0.3 * off.heatmap),
        short=fields.short + off.short,
        mid=fields.mid + off.mid,
        seg=fields.seg * (0.7 + 0.3 * off.seg),
        long=fields.long + off.long,
    )


def adversarial() -> dict[str, Scene]:
    """The cases where decoders of this family are known to go wrong, by name. Small grids."""
    rng = np.random.default_rng(7)
    side = 129
    alone = figure(60.3, 25.2, 85.0)
    cases = {
        "empty": scene([], height=side, width=side, stride=8),
        "one person": scene([alone], height=side, width=side, stride=8),
        "touching, 3 px apart": scene(
            [alone, alone + torch.tensor([3.0, 0.0])], height=side, width=side, stride=8
        ),
        "duplicates": scene([alone, alone.clone()], height=side, width=side, stride=8),
        "on the border": scene(
            [figure(0.0, 40.0, 80.0), figure(side - 1.0, 20.0, 60.0)], height=side, width=side, stride=8
        ),
        "half outside": scene(
            [figure(60.0, -30.0, 90.0), figure(125.0, 100.0, 90.0)], height=side, width=side, stride=8
        ),
        "fifty people": scene(
            [figure(*rng.uniform(10, 245, 2), rng.uniform(20, 60)) for _ in range(50)],
            height=257,
            width=257,
            stride=16,
        ),
        "1000 px tall": scene([figure(520.0, 60.0, 1000.0)], height=1057, width=1025, stride=16),
    }
    three = scene([alone, alone - 20.0, alone + 20.0], height=side, width=side, stride=8).people
    labelled = three.labelled.clone()
    labelled[1] = False
    cases["one without keypoints"] = Scene(replace(three, labelled=labelled), side, side, 8)
    cases["one is a crowd"] = Scene(replace(three, crowd=torch.tensor([False, True, False])), side, side, 8)
    partly = three.labelled & torch.from_numpy(rng.random((3, K)) < 0.6)
    cases["gaps in the annotation"] = Scene(replace(three, labelled=partly), side, side, 8)
    return cases
