"""Memory that a process keeps for itself."""

import platform
import subprocess
import sys

import pytest

BLOCK = 2**25  # bytes: just more than what glibc may come to keep of its own accord
ROUNDS = 16

# Asks for a block and frees it, again and again, in a thread as Ray runs training in one, and says how many
# pages the system had to hand out.
PROGRAM = """
import ctypes, resource, sys, threading
from personlab.utils import malloc

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p

def churn(rounds):
    for _ in range(rounds):
        block = ctypes.c_void_p(libc.malloc({block}))
        ctypes.memset(block, 1, {block})
        libc.free(block)

def measured():
    churn(2)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    churn({rounds})
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

if "keep" in sys.argv:
    malloc.disable_trim()
if "thread" in sys.argv:
    thread = threading.Thread(target=measured)
    thread.start()
    thread.join()
else:
    measured()
"""


def faults(*arguments: str) -> int:
    program = PROGRAM.format(block=BLOCK, rounds=ROUNDS)
    done = subprocess.run(
        (sys.executable, "-c", program, *arguments), check=True, capture_output=True, text=True
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="nothing happens without glibc")
@pytest.mark.parametrize("where", ["main", "thread"])
def test_freed_memory_is_kept(where: str) -> None:
    assert faults(where, "keep") * 10 < faults(where)
