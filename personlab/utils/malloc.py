"""How a process that computes on processors uses its memory.

A network frees hundreds of megabytes with every step or image and asks for as much again. glibc gives large
blocks back to the system at once, which hands out new ones page by page, filled with zeros. That takes up
to a fifth of the time (docs/scaling.md has the figures).
"""

import ctypes
import sys
from typing import Final

# mallopt's parameters (malloc.h)
_TRIM_THRESHOLD: Final = -1
_TOP_PAD: Final = -2
_MMAP_MAX: Final = -4

# More than threads' heaps can hold, which are 64 MB each: an empty one is then kept, too.
_HEAP: Final = 64 * 2**20


def disable_trim() -> None:
    """From now on, let this process keep the memory that it frees. For whoever owns the process.

    In threads other than the first this goes for blocks of less than 64 MB; larger ones are given back all
    the same. Nothing happens where there is no glibc.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(_MMAP_MAX, 0)  # no block is a mapping of its own, which ends when it is freed
        mallopt(_TRIM_THRESHOLD, -1)  # and what is free at the end of a heap stays there
        mallopt(_TOP_PAD, _HEAP)
