"""Cables between network namespaces that delay and lose frames, where the kernel has no `netem`.

A cable is a TAP device at either end, between which a thread copies frames. Needs root and Linux.
"""

import fcntl
import heapq
import itertools
import os
import random
import select
import struct
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from threading import Event, Thread
from typing import Final

_DEVICE: Final = "/dev/net/tun"
_SET_INTERFACE: Final = 0x400454CA  # TUNSETIFF
_TAP: Final = 0x1002  # IFF_TAP | IFF_NO_PI
_FRAME: Final = 65_536  # bytes, at most


@dataclass
class Cable:
    """Two TAP devices by their file descriptors; what happens to frames may change at any time."""

    ends: tuple[int, int]
    seconds: float = 0  # that every frame is delayed, in both directions
    loss: float = 0  # probability that a frame is lost

    @classmethod
    def between(cls, one: str, other: str) -> "Cable":
        """Make both devices, in the namespace of this process. They are deleted with it, or by `close`."""
        return cls((_tap(one), _tap(other)))

    def close(self) -> None:
        for end in self.ends:
            os.close(end)


def _tap(name: str) -> int:
    device = os.open(_DEVICE, os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, _SET_INTERFACE, struct.pack("16sH22x", name.encode(), _TAP))
    return device


class Carrier(Thread):
    """Copies frames from end to end of cables until it is stopped, which closes them."""

    def __init__(self, cables: Sequence[Cable]) -> None:
        super().__init__(daemon=True)
        self.cables, self.stopped = cables, Event()
        self.start()

    def stop(self) -> None:
        self.stopped.set()
        self.join()
        for cable in self.cables:
            cable.close()

    def run(self) -> None:
        routes = {}
        for cable in self.cables:
            one, other = cable.ends
            routes |= {one: (cable, other), other: (cable, one)}
        waiting = list[tuple[float, int, int, bytes]]()  # a heap: when, number, where, frame
        numbers = itertools.count()
        while not self.stopped.is_set():
            timeout = max(0.0, min(0.2, waiting[0][0] - time.monotonic())) if waiting else 0.2
            for source in select.select(list(routes), [], [], timeout)[0]:
                cable, target = routes[source]
                with suppress(OSError):  # the device is down
                    frame = os.read(source, _FRAME)
                    if random.random() >= cable.loss:
                        due = time.monotonic() + cable.seconds
                        heapq.heappush(waiting, (due, next(numbers), target, frame))
            while waiting and waiting[0][0] <= time.monotonic():
                *_, target, frame = heapq.heappop(waiting)
                with suppress(OSError):
                    os.write(target, frame)
