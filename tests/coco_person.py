"""COCO's people in short names, for tests that are about them."""

from typing import Final

from personlab.skeleton import COCO_PERSON

KEYPOINTS: Final = COCO_PERSON.keypoints
TREE: Final = COCO_PERSON.tree
EDGES: Final = COCO_PERSON.edges
KAPPAS: Final = COCO_PERSON.kappas
FLIP: Final = COCO_PERSON.flip or ()
K: Final = len(KEYPOINTS)
E: Final = len(EDGES)
