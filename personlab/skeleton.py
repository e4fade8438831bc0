"""The 17 COCO keypoints: names, mirror pairs, OKS tolerances and the kinematic tree.

The tree is PoseNet's, so that published weights fit: 16 edges, followed both ways (32 directed edges).
"""

from itertools import pairwise
from typing import Final

KEYPOINTS: Final = (
    *("nose", "left_eye", "right_eye", "left_ear", "right_ear"),
    *("left_shoulder", "right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist"),
    *("left_hip", "right_hip", "left_knee", "right_knee", "left_ankle", "right_ankle"),
)
K: Final = len(KEYPOINTS)

_INDEX: Final = {name: index for index, name in enumerate(KEYPOINTS)}


def _mirrored(name: str) -> str:
    side, _, part = name.partition("_")
    return {"left": f"right_{part}", "right": f"left_{part}"}.get(side, name)


# Keypoint k of a mirrored image is keypoint FLIP[k] of the original.
FLIP: Final = tuple(_INDEX[_mirrored(name)] for name in KEYPOINTS)

# COCO's per-keypoint tolerances: OKS = exp(-d^2 / (2 * area * kappa^2)), kappa = 2 * sigma
# (sigmas from the COCO keypoint evaluation, https://cocodataset.org/#keypoints-eval).
_SIGMAS: Final = (
    *(0.026, 0.025, 0.025, 0.035, 0.035),  # nose, eyes, ears
    *(0.079, 0.079, 0.072, 0.072, 0.062, 0.062),  # shoulders, elbows, wrists
    *(0.107, 0.107, 0.087, 0.087, 0.089, 0.089),  # hips, knees, ankles
)
KAPPAS: Final = tuple(2 * sigma for sigma in _SIGMAS)


_CHAINS: Final = (
    ("nose", "left_eye", "left_ear"),
    ("nose", "right_eye", "right_ear"),
    ("nose", "left_shoulder", "left_elbow", "left_wrist"),
    ("left_shoulder", "left_hip", "left_knee", "left_ankle"),
    ("nose", "right_shoulder", "right_elbow", "right_wrist"),
    ("right_shoulder", "right_hip", "right_knee", "right_ankle"),
)
# The tree, each edge pointing away from the nose.
TREE: Final = tuple((_INDEX[source], _INDEX[end]) for chain in _CHAINS for source, end in pairwise(chain))

# Directed edges (source, target): all away from the nose, then all towards it. This is the channel order of
# the mid-range offsets.
EDGES: Final = TREE + tuple((target, source) for source, target in TREE)
E: Final = len(EDGES)


def walk(root: int) -> tuple[int, ...]:
    """The 16 directed edges that reach every keypoint from `root`, in breadth-first order."""
    reached, order = [root], list[int]()
    for keypoint in reached:  # grows on the way
        for edge, (source, target) in enumerate(EDGES):
            if source == keypoint and target not in reached:
                reached.append(target)
                order.append(edge)
    return tuple(order)
