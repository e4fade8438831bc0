"""The skeleton against COCO's own tools and its own invariants."""

import numpy as np
from pycocotools.cocoeval import Params as CocoParams

from personlab.skeleton import EDGES, FLIP, KAPPAS, KEYPOINTS, TREE, K, walk


def test_kappas_are_twice_the_sigmas_of_pycocotools() -> None:
    np.testing.assert_allclose(KAPPAS, 2 * CocoParams(iouType="keypoints").kpt_oks_sigmas)


def test_flip_swaps_sides_and_undoes_itself() -> None:
    assert [FLIP[FLIP[k]] for k in range(K)] == list(range(K))
    assert KEYPOINTS[FLIP[KEYPOINTS.index("left_knee")]] == "right_knee"


def test_tree_spans_all_keypoints_with_sixteen_edges() -> None:
    assert len(TREE) == K - 1
    assert {k for edge in TREE for k in edge} == set(range(K))


def test_walk_reaches_every_keypoint_once_from_any_root() -> None:
    for root in range(K):
        reached = {root}
        for edge in walk(root):
            source, target = EDGES[edge]
            assert source in reached
            assert target not in reached
            reached.add(target)
        assert reached == set(range(K))
