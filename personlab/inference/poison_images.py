"""Find the images that kill the process that reads them, so that they do not stop a run.

An image that crashes a decoder or fills the memory raises no exception. Therefore an attempt at a part keeps
a small file in the run's folder while it lasts. An attempt that finds the file of an earlier one, which died,
reads images one at a time and records the current one in the file. An image that was current in two deaths is
given up.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final

from personlab.utils.storage import Folder, UnreachableError

RECORD: Final = ".attempt-"
_DEATHS: Final = 2  # one may have any cause: a lost node, a kill


@dataclass(frozen=True)
class Attempt:
    """An attempt at a part.

    victims: ids of the images that were current when earlier attempts died; None if no attempt died.
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
        """Record the current image."""
        self.out.write(self.name, json.dumps([*(self.victims or []), image_id]).encode())


@contextmanager
def attempt(out: Folder, part: int) -> Iterator[Attempt]:
    """An attempt at a part, which lasts as long as the block; it knows the victims of earlier attempts."""
    name = f"{RECORD}{part:05}"
    try:
        victims = json.loads(out.read(name))
    except FileNotFoundError:
        victims = None
        out.write(name, b"[]")
    try:
        yield Attempt(out, name, victims)
    finally:
        with suppress(OSError, UnreachableError):
            out.delete(name)
