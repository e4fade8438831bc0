"""The sample dataset: people rendered into images, in the standard COCO layout.

pose -> body -> scene -> dataset: joint angles become a body of shaded surfaces in outfits, bodies and a
backdrop become a scene with its own truth, scenes become images and COCO annotations.
"""

from personlab.synthetic.dataset import write_sample

__all__ = ["write_sample"]
