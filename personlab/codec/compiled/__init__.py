"""Decoding on the CPU: what `vectorised` does, as compiled loops.

Vectorised code must look at every bin, trace every seed, weigh every bin of every disk, refine every cell and
interpolate every pixel. Loops look at the bins that votes have reached, trace the seeds that nobody has
claimed yet, skip the rows of disks that are empty, refine where people are and interpolate only along the
rims of masks, on one core. Results are the same to rounding; `vectorised.Steps` says what each function does.

The first call on a machine compiles (about ten seconds), and what was compiled is kept beside these files;
`python -m personlab.codec.compiled` does it beforehand.
"""

from personlab.codec.compiled.masks import embedding_distance, full_resolution, refine_long
from personlab.codec.compiled.poses import claimed, expected_oks, find_people, is_finite, vote

__all__ = [
    "claimed",
    "embedding_distance",
    "expected_oks",
    "find_people",
    "full_resolution",
    "is_finite",
    "refine_long",
    "vote",
]
