"""Check what a target of make needs before it starts, and say what to do.

    python3 personlab/utils/preflight.py demo

Runs with the standard library alone, since .venv may not exist yet, and with Python 3.6, to say that it is
too old: hence the quoted annotations.
"""

import shutil
import socket
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

PYTHON = (3, 11)
INSTALLED = Path(".venv/ready")
VENV_GB = 2.5  # of .venv, with PyTorch for CPUs
# GB on disk and of memory at the peak; measured on two cores: 2.4 for the demo, 3.4 for the tests of the
# pipeline and those of a cluster beside each other
NEEDS = {"install": (0.0, 0.0), "demo": (0.5, 2.5), "test": (0.5, 3.5)}


def problems(target: str) -> "Iterator[str]":
    """What is missing for a target, a sentence each."""
    disk, memory = NEEDS[target]
    if not INSTALLED.exists():
        disk += VENV_GB
        yield from _installation()
    yield from _disk(disk)
    yield from _memory(memory)
    yield from _port()


def _installation() -> "Iterator[str]":
    if sys.version_info < PYTHON:
        found, wanted = (".".join(map(str, version[:2])) for version in (sys.version_info, PYTHON))
        yield f"Python {found} is too old, {wanted} or newer is needed: make PYTHON=python{wanted} ..."
    elif not (find_spec("venv") and find_spec("ensurepip")):
        yield "this Python cannot make environments; on Debian and Ubuntu: apt install python3-venv"
    if not shutil.which("git"):
        yield "git is missing; install it with the system's package manager"


def _disk(needed: float) -> "Iterator[str]":
    free = shutil.disk_usage(".").free / 1e9
    if free < needed:
        yield f"{Path.cwd()}: {free:.1f} GB of disk are free, {needed:.1f} GB are needed; make room"


def _memory(needed: float) -> "Iterator[str]":
    free = available_memory()
    if free is not None and free < needed:
        yield f"{free:.1f} GB of memory are available, {needed:.1f} GB are needed; close other programs"


def available_memory(root: Path = Path("/")) -> "float | None":
    """GB that Linux can give to new processes, within the limit of the container; None elsewhere."""
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    fields = dict(line.split(":", 1) for line in lines)
    available = int(fields["MemAvailable"].split()[0]) * 1024
    control = root / "sys/fs/cgroup"
    try:
        limit, used = ((control / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return available / 1e9
    return (available if limit == "max" else min(available, int(limit) - int(used))) / 1e9


def _port() -> "Iterator[str]":
    """Ray's processes talk to each other over ports of this machine."""
    try:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
    except OSError as error:
        yield f"no port of 127.0.0.1 can be listened on ({error.strerror}); allow it in the container"


def main() -> None:
    """Exit with status 1 and print what is missing, if anything is."""
    target = sys.argv[1]
    found = list(problems(target))
    if found:
        what = "make" if target == "install" else f"make {target}"
        sys.exit("\n  ".join([f"{what} cannot start:", *found]))


if __name__ == "__main__":
    main()
