"""Keypoints of a category: names, kinematic tree, mirror pairs and OKS tolerances, as one value.

COCO's 17 keypoints of people with PoseNet's tree, so that published weights fit, are the default. Other
skeletons come from a dataset's category (`data/category.py`), stand in data/ingest/dataset.json and in the
cards of models, and are passed to whatever depends on them.

K keypoints have E = 2 (K - 1) directed edges.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, Self

from pydantic import TypeAdapter

from personlab.errors import UserError, first

Edge = tuple[int, int]

# The tolerance of keypoints that COCO does not have, if none is given: about the mean of COCO's.
DEFAULT_SIGMA: Final = 0.07


@dataclass(frozen=True)
class Skeleton:
    """The keypoints of a category.

    Attributes:
        name: of the category, e.g. person.
        keypoints: names, K.
        tree: K - 1 edges (source, end), each pointing away from the root, the first keypoint.
        flip: keypoint k of a mirrored image is keypoint flip[k] of the original; None if unknown: images
            are not mirrored then.
        sigmas: OKS tolerances, K.

    Raises:
        ValueError: the parts do not fit each other.
    """

    name: str
    keypoints: tuple[str, ...]
    tree: tuple[Edge, ...]
    flip: tuple[int, ...] | None
    sigmas: tuple[float, ...]

    def __post_init__(self) -> None:
        numbers = range(len(self.keypoints))
        if len(numbers) < 2:
            raise ValueError("two or more keypoints are needed; their distances tell a person's size")
        if repeated := [name for name in self.keypoints if self.keypoints.count(name) > 1]:
            raise ValueError(f"{len(repeated)} keypoints do not have a name of their own: {first(repeated)}")
        if len(self.sigmas) != len(numbers) or min(self.sigmas) <= 0:
            raise ValueError(f"{len(numbers)} keypoints need as many sigmas above 0")
        if self.flip is not None and [self._flipped_twice(k) for k in numbers] != list(numbers):
            raise ValueError("the flip of a flip must be the keypoint itself")
        if len(self.tree) != len(numbers) - 1 or len(self.walk(0)) != len(self.tree):
            raise ValueError("the tree must reach every keypoint once")
        if sorted(end for _, end in self.tree) != list(numbers)[1:]:
            raise ValueError("every edge of the tree must point away from the first keypoint")

    def _flipped_twice(self, k: int) -> int:
        flip = self.flip or ()
        return flip[flip[k]] if k < len(flip) and 0 <= flip[k] < len(flip) else -1

    @classmethod
    def from_record(cls, record: Any) -> Self:
        """The inverse of `to_record`.

        Raises:
            ValueError: it is not a skeleton's.
        """
        skeleton: Self = TypeAdapter(cls).validate_python(record)
        return skeleton

    @classmethod
    def of_card(cls, card: Mapping[str, Any], path: Path) -> Self:
        """The skeleton in the card of a model, read from `path`.

        Cards of versions up to 0.1 have COCO's keypoints, and less about them.

        Raises:
            UserError: there is none, or its parts do not fit each other.
        """
        record = card.get("skeleton")
        if isinstance(record, dict) and "edges" in record:
            edges = [list(edge) for edge in COCO_PERSON.edges]
            if record != {"keypoints": list(COCO_PERSON.keypoints), "edges": edges}:
                raise UserError(f"{path}: has other keypoints or edges than this version; train again")
            record = COCO_PERSON.to_record()
        try:
            return cls.from_record(record)
        except ValueError as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{path}: does not describe keypoints ({reason})") from None

    def to_record(self) -> dict[str, Any]:
        """Its attributes, for JSON."""
        return asdict(self)

    @cached_property
    def edges(self) -> tuple[Edge, ...]:
        """Directed edges (source, target): all away from the root, then all towards it.

        This is the channel order of the mid-range offsets.
        """
        return self.tree + tuple((end, source) for source, end in self.tree)

    def has_channels_of(self, other: "Skeleton") -> bool:
        """Whether weights for the other skeleton fit: keypoints and edges are the same, in the same order."""
        return (self.keypoints, self.tree) == (other.keypoints, other.tree)

    @cached_property
    def kappas(self) -> tuple[float, ...]:
        """OKS = exp(-d^2 / (2 * area * kappa^2)), kappa = 2 * sigma; K."""
        return tuple(2 * sigma for sigma in self.sigmas)

    @cached_property
    def walks(self) -> tuple[tuple[int, ...], ...]:
        """`walk` from each keypoint: K x (K - 1)."""
        return tuple(self.walk(root) for root in range(len(self.keypoints)))

    def __str__(self) -> str:
        """E.g. "14 of person: left_shoulder, right_shoulder, left_elbow, ..."."""
        return f"{len(self.keypoints)} of {self.name}: {first(self.keypoints)}"

    def walk(self, root: int) -> tuple[int, ...]:
        """The K - 1 directed edges that reach every keypoint from `root`, in breadth-first order."""
        reached, order = [root], list[int]()
        leaving: dict[int, list[int]] = {}
        for edge, (source, _) in enumerate(self.edges):
            leaving.setdefault(source, []).append(edge)
        for keypoint in reached:  # grows on the way
            for edge in leaving.get(keypoint, ()):
                target = self.edges[edge][1]
                if target not in reached:
                    reached.append(target)
                    order.append(edge)
        return tuple(order)


def words(name: str) -> frozenset[str]:
    """The words of a keypoint's name: left_eye, "Left eye", leftEye, lefteye, l_eye, eye.L are the same."""
    side = r"(?<![A-Za-z])(?i:left|right)"
    words = rf"{side}|[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+" if name.isascii() else r"[^\W_]+"
    found = re.findall(words, name)
    return frozenset({"l": "left", "r": "right"}.get(word.lower(), word.lower()) for word in found)


def side(name: str) -> str:
    """left, right, or "" for a keypoint in the middle, by its name."""
    sides = words(name) & {"left", "right"}
    return next(iter(sides)) if len(sides) == 1 else ""


def mirrored(names: Sequence[str]) -> tuple[int, ...] | None:
    """`Skeleton.flip` by the names: left and right of the same words are a pair.

    None if no name has a side, so that nothing is known about them, or if a side lacks its partner.
    """
    places = {words(name): place for place, name in enumerate(names)}
    swapped = {"left": "right", "right": "left"}
    partners = [frozenset(swapped.get(word, word) for word in words(name)) for name in names]
    if not any(map(side, names)) or not all(partner in places for partner in partners):
        return None
    flip = tuple(places[partner] for partner in partners)
    return flip if len(places) == len(names) else None


_COCO: Final = {  # sigmas of the COCO keypoint evaluation, https://cocodataset.org/#keypoints-eval
    **{"nose": 0.026, "left_eye": 0.025, "right_eye": 0.025, "left_ear": 0.035, "right_ear": 0.035},
    **{"left_shoulder": 0.079, "right_shoulder": 0.079, "left_elbow": 0.072, "right_elbow": 0.072},
    **{"left_wrist": 0.062, "right_wrist": 0.062, "left_hip": 0.107, "right_hip": 0.107},
    **{"left_knee": 0.087, "right_knee": 0.087, "left_ankle": 0.089, "right_ankle": 0.089},
}
_CHAINS: Final = (  # PoseNet's tree
    ("nose", "left_eye", "left_ear"),
    ("nose", "right_eye", "right_ear"),
    ("nose", "left_shoulder", "left_elbow", "left_wrist"),
    ("left_shoulder", "left_hip", "left_knee", "left_ankle"),
    ("nose", "right_shoulder", "right_elbow", "right_wrist"),
    ("right_shoulder", "right_hip", "right_knee", "right_ankle"),
)


def _coco_person() -> Skeleton:
    names = tuple(_COCO)
    steps = (step for chain in _CHAINS for step in pairwise(chain))
    return Skeleton(
        name="person",
        keypoints=names,
        tree=tuple((names.index(source), names.index(end)) for source, end in steps),
        flip=mirrored(names),
        sigmas=tuple(_COCO.values()),
    )


COCO_PERSON: Final = _coco_person()


def known_sigma(name: str) -> float | None:
    """COCO's tolerance of a keypoint of this name, if COCO has one."""
    return _SIGMA_OF.get(words(name))


_SIGMA_OF: Final = {words(name): sigma for name, sigma in _COCO.items()}
