"""The 17 COCO keypoints: names, mirror pairs, OKS tolerances and the kinematic tree.

The tree is PoseNet's, so that published weights fit: 16 edges, followed both ways (32 directed edges).
"""

from typing import Final

KEYPOINTS: Final = (
    "nose",
    "left_eye",
    "right_eye",
    "left_ear",
    "right_ear",
    "left_shoulder",
    "right_shoulder",
    "left_elbow",
    "right_elbow",
    "left_wrist",
    "right_wrist",
    "left_hip",
    "right_hip",
    "left_knee",
    "right_knee",
    "left_ankle",
    "right_ankle",
)
K: Final = len(KEYPOINTS)

_INDEX: Final = {name: index for index, name in enumerate(KEYPOINTS)}


def _mirrored(name: str) -> str:
    if name.startswith("left_"):
        return "right_" + name.removeprefix("left_")
    if name.startswith("right_"):
        return "left_" + name.removeprefix("right_")
    return name


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


def _edge(source: str, target: str) -> tuple[int, int]:
    return _INDEX[source], _INDEX[target]


# The tree, each edge pointing away from the nose.
TREE: Final = (
    _edge("nose", "left_eye"),
    _edge("left_eye", "left_ear"),
    _edge("nose", "right_eye"),
    _edge("right_eye", "right_ear"),
    _edge("nose", "left_shoulder"),
    _edge("left_shoulder", "left_elbow"),
    _edge("left_elbow", "left_wrist"),
    _edge("left_shoulder", "left_hip"),
    _edge("left_hip", "left_knee"),
    _edge("left_knee", "left_ankle"),
    _edge("nose", "right_shoulder"),
    _edge("right_shoulder", "right_elbow"),
    _edge("right_elbow", "right_wrist"),
    _edge("right_shoulder", "right_hip"),
    _edge("right_hip", "right_knee"),
    _edge("right_knee", "right_ankle"),
)

# Directed edges (source, target): all away from the nose, then all towards it. This is the channel order of
# the mid-range offsets.
EDGES: Final = TREE + tuple((target, source) for source, target in TREE)
E: Final = len(EDGES)

# Directed edge e of a mirrored image is edge EDGE_FLIP[e] of the original.
EDGE_FLIP: Final = tuple(EDGES.index((FLIP[source], FLIP[target])) for source, target in EDGES)


def walk(root: int) -> tuple[int, ...]:
    """The 16 directed edges that reach every keypoint from `root`, in breadth-first order."""
    reached, order = {root}, list[int]()
    frontier = [root]
    while frontier:
        found = [
            edge
            for source in frontier
            for edge, (start, end) in enumerate(EDGES)
            if start == source and end not in reached
        ]
        order += found
        frontier = [EDGES[edge][1] for edge in found]
        reached.update(frontier)
    return tuple(order)
