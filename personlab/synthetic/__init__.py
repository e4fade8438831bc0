"""The sample data set: rendered people in the standard COCO layout.

`pose` draws joint angles, `body` turns them into surfaces, `appearance` gives these their textures, `raycast`
renders them, `scenery` draws backgrounds and objects on the `canvas`, `scene` composes an image and its
ground truth, and `dataset` writes images and COCO annotations.
"""

from personlab.synthetic.dataset import write_sample

__all__ = ["write_sample"]
