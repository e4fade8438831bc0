"""Synthetic people for benchmarks, and fields as a network would predict them."""

import torch
from torch import Tensor

from personlab.codec.encode import Instances, encode
from personlab.codec.fields import Fields, cell_positions, cells
from personlab.skeleton import COCO_PERSON

SIDE = 801
RADIUS = 32.0

# A standing person seen from the front: x and y of each keypoint relative to the nose, for a height of about
# 1.
_STANDING = torch.tensor(
    [
        *((0.0, 0.0), (0.03, -0.03), (-0.03, -0.03), (0.07, -0.02), (-0.07, -0.02)),  # nose, eyes, ears
        *((0.14, 0.15), (-0.14, 0.15), (0.20, 0.32), (-0.20, 0.32), (0.22, 0.48), (-0.22, 0.48)),  # arms
        *((0.09, 0.50), (-0.09, 0.50), (0.10, 0.72), (-0.10, 0.72), (0.10, 0.95), (-0.10, 0.95)),  # legs
    ]
)


def people(count: int, *, stride: int, seed: int = 0, side: int = SIDE) -> Instances:
    """Scattered people in a square image, 150 to 400 px tall, leaning, with random plausible limbs; taller
    ones in front."""
    g = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=g) * (high - low) + low

    height = uniform(150, 400).sort(descending=True).values
    poses = (
        _STANDING
        + torch.randn(count, len(COCO_PERSON.keypoints), 2, generator=g)
        * _STANDING.norm(dim=-1, keepdim=True)
        * 0.08
    )
    poses = torch.where(uniform(0, 1, 1, 1) < 0.5, poses, poses[:, list(COCO_PERSON.flip or ())])
    lean = uniform(-0.3, 0.3)
    turn = torch.stack((lean.cos(), lean.sin(), -lean.sin(), lean.cos()), -1).view(count, 2, 2)
    poses = poses @ turn * height[:, None, None]
    low, high = poses.amin(1), poses.amax(1)
    room = (side - 1 - (high - low)).clamp(min=0)
    keypoints = poses - low[:, None] + (room * torch.rand(count, 2, generator=g))[:, None]
    return Instances(
        keypoints=keypoints,
        labelled=torch.ones(count, len(COCO_PERSON.keypoints), dtype=torch.bool),
        masks=_in_front(_bodies(keypoints, height, stride, side)),
        crowd=torch.zeros(count, dtype=torch.bool),
        imputed=torch.zeros(count, dtype=torch.bool),
        unmasked=torch.zeros(count, dtype=torch.bool),
    )


def predicted(instances: Instances, *, stride: int, seed: int = 0) -> Fields:
    """Fields as of a good network: smooth probabilities that never reach 0 or 1, and offsets that are defined
    well beyond the disks and some pixels off."""
    g = torch.Generator().manual_seed(seed)

    def noise(like: Tensor, deviation: float) -> Tensor:
        return torch.randn(like.shape, generator=g) * deviation

    targets = encode(instances, stride=stride, radius=2 * RADIUS, skeleton=COCO_PERSON).fields
    short = targets.short + noise(targets.short, 1.0)
    # highest at the keypoint, one half at R, a thousandth elsewhere
    apart = targets.short.norm(dim=2).where(targets.heatmap > 0, torch.inf)
    logit = ((RADIUS - apart) / 4).clamp(min=-7)
    fields = targets.replace(
        heatmap=(logit + noise(logit, 0.2)).sigmoid(),
        short=short,
        mid=targets.mid + noise(targets.mid, 2.0),
        seg=(targets.seg * 10 - 5 + noise(targets.seg, 0.3)).sigmoid(),
        long=targets.long + noise(targets.long, 3.0),
    )
    # contiguous, as a network's output
    return fields.map(Tensor.contiguous)


def _bodies(keypoints: Tensor, height: Tensor, stride: int, side: int) -> Tensor:
    """Cells within a fifteenth of the height of a bone, or between shoulders and hips: P x H x W."""
    n = cells(side, stride)
    place = cell_positions(n, n, stride).flatten(1).T  # cells x 2
    bones = [*COCO_PERSON.tree, (5, 12), (6, 11), (5, 6), (11, 12)]
    start, end = (keypoints[:, [bone[point] for bone in bones]] for point in (0, 1))
    bodies = []
    for a, b, tall in zip(start, end, height.tolist(), strict=True):
        along = b - a
        share = ((place[:, None] - a) * along).sum(-1) / along.square().sum(-1)
        nearest = a + share.clamp(0, 1)[..., None] * along
        away = (place[:, None] - nearest).norm(dim=-1).amin(1)
        bodies.append((away < tall / 15).float().view(n, n))
    return torch.stack(bodies)


def _in_front(bodies: Tensor) -> Tensor:
    """Each cell belongs to the first person that covers it."""
    return bodies * (bodies.cumsum(0) <= 1)
