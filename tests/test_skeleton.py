"""The skeleton against COCO's own tools and its own invariants."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from pycocotools.cocoeval import Params as CocoParams

from personlab.errors import UserError
from personlab.skeleton import COCO_PERSON, Skeleton, mirrored, side, words

HAND = Skeleton(
    "hand", ("wrist", "thumb", "index"), ((0, 1), (0, 2)), flip=(0, 1, 2), sigmas=(0.05, 0.05, 0.05)
)
K = len(COCO_PERSON.keypoints)


def test_kappas_are_twice_the_sigmas_of_pycocotools() -> None:
    np.testing.assert_allclose(COCO_PERSON.kappas, 2 * CocoParams(iouType="keypoints").kpt_oks_sigmas)


def test_flip_swaps_sides_and_undoes_itself() -> None:
    flip, names = COCO_PERSON.flip, COCO_PERSON.keypoints
    assert flip is not None
    assert [flip[flip[k]] for k in range(K)] == list(range(K))
    assert names[flip[names.index("left_knee")]] == "right_knee"


def test_the_tree_of_coco_is_posenets() -> None:
    names = COCO_PERSON.keypoints
    assert len(COCO_PERSON.tree) == 16
    assert [(names[a], names[b]) for a, b in COCO_PERSON.tree[:2]] == list(
        pairwise(("nose", "left_eye", "left_ear"))
    )


@pytest.mark.parametrize("skeleton", [COCO_PERSON, HAND], ids=lambda each: each.name)
def test_walk_reaches_every_keypoint_once_from_any_root(skeleton: Skeleton) -> None:
    for root, walk in enumerate(skeleton.walks):
        reached = {root}
        for edge in walk:
            source, target = skeleton.edges[edge]
            assert source in reached
            assert target not in reached
            reached.add(target)
        assert reached == set(range(len(skeleton.keypoints)))


@pytest.mark.parametrize("skeleton", [COCO_PERSON, HAND], ids=lambda each: each.name)
def test_records_come_back(skeleton: Skeleton) -> None:
    assert Skeleton.from_record(skeleton.to_record()) == skeleton


@pytest.mark.parametrize(
    ("part", "value", "reason"),
    [
        ("keypoints", ("wrist", "wrist", "index"), "2 keypoints do not have a name of their own: wrist"),
        ("keypoints", ("wrist",), "two or more"),
        ("tree", ((0, 1),), "reach every keypoint"),
        ("tree", ((0, 1), (1, 0)), "reach every keypoint"),
        ("tree", ((1, 0), (0, 2)), "away from the first"),
        ("flip", (0, 2, 2), "flip of a flip"),
        ("flip", (0, 1), "flip of a flip"),
        ("sigmas", (0.1, 0.1), "as many sigmas"),
        ("sigmas", (0.1, 0.1, 0.0), "above 0"),
    ],
)
def test_parts_that_do_not_fit_are_refused(part: str, value: object, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        replace(HAND, **{part: value})  # type: ignore[arg-type]


def test_a_card_of_version_01_has_cocos_skeleton(tmp_path: Path) -> None:
    old = {"keypoints": list(COCO_PERSON.keypoints), "edges": [list(edge) for edge in COCO_PERSON.edges]}
    assert Skeleton.of_card({"skeleton": old}, tmp_path) == COCO_PERSON
    with pytest.raises(UserError, match="other keypoints"):
        Skeleton.of_card({"skeleton": old | {"edges": [[0, 1]]}}, tmp_path)
    with pytest.raises(UserError, match="does not describe keypoints"):
        Skeleton.of_card({}, tmp_path)


@pytest.mark.parametrize(
    "name", ["left_eye", "Left eye", "leftEye", "lefteye", "LEFTEYE", "l_eye", "eye.L", "L_Eye"]
)
def test_a_name_is_its_words(name: str) -> None:
    assert words(name) == {"left", "eye"}
    assert side(name) == "left"


def test_names_say_what_a_mirror_swaps() -> None:
    assert mirrored(["nose", "L_Eye", "R_Eye"]) == (0, 2, 1)
    assert mirrored(["thumb_1", "thumb_2"]) is None  # nothing is known
    assert mirrored(["left_eye", "nose"]) is None  # its partner is missing
    assert mirrored(["snout", "leftear", "rightear", "upright_pole"]) == (0, 2, 1, 3)  # as DeepLabCut writes
    assert mirrored(["left_wing_1", "right_wing_2", "left_wing_2", "right_wing_1"]) == (3, 2, 1, 0)
