"""Which image killed its process: one that crashes a decoder, or fills the memory, must not stop a whole run.

Nobody can catch such an image, but it can be found out. An attempt at a part leaves a small file in the run's
folder for as long as it lasts. One that finds such a file follows one that died, takes the images one at a
time, and records which it has at hand. An image at hand when that happened twice is given up.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final

from personlab.utils.storage import Folder

RECORD: Final = ".attempt-"
_DEATHS: Final = 2  # once may be anything: a node that went away, a kill


@dataclass(frozen=True)
class Attempt:
    """An attempt at a part.

    victims: ids of the images that earlier attempts died with; None if none has died.
    """

    out: Folder
    name: str
    victims: list[int] | None

    @property
    def careful(self) -> bool:
        return self.victims is not None

    def gives_up(self, image_id: int) -> bool:
        return (self.victims or []).count(image_id) >= _DEATHS

    def takes(self, image_id: int) -> None:
        """Record the image at hand."""
        self.out.write(self.name, json.dumps([*(self.victims or []), image_id]).encode())


@contextmanager
def attempt(out: Folder, part: int) -> Iterator[Attempt]:
    """An attempt at a part for the time of the block, with what is known of earlier ones."""
    name = f"{RECORD}{part:05}"
    try:
        victims = json.loads(out.read(name))
    except FileNotFoundError:
        victims = None
        out.write(name, b"[]")
    try:
        yield Attempt(out, name, victims)
    finally:
        with suppress(OSError):
            out.delete(name)
