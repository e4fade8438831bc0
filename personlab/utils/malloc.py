"""Stop glibc from returning freed memory to the system.

A network frees hundreds of megabytes with every step or image and allocates as much again. By default glibc
returns large blocks to the system, which then hands out new, zeroed pages one by one: up to a fifth of the
time (docs/notes/scaling.md).
"""

import ctypes
import sys
from typing import Final

# mallopt's parameters (malloc.h)
_TRIM_THRESHOLD: Final = -1
_TOP_PAD: Final = -2
_MMAP_MAX: Final = -4

# Size of a thread's heap. A pad of this size keeps an empty heap too.
_HEAP: Final = 64 * 2**20


def disable_trim() -> None:
    """Stop glibc from returning freed memory to the system. Call once at process start.

    In threads other than the main one this covers blocks of less than 64 MB. Does nothing without glibc.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(_MMAP_MAX, 0)  # large blocks come from the heap too; their own mappings would be returned
        mallopt(_TRIM_THRESHOLD, -1)  # never return the free end of the heap
        mallopt(_TOP_PAD, _HEAP)
