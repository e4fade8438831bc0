"""The weights that people are predicted with where no others are named."""

import hashlib
import logging
import posixpath
from pathlib import Path
from typing import Final

from personlab.utils import storage
from personlab.utils.storage import Folder

DEFAULT_NETWORK: Final = "bodypix-mobilenet-075"

_SUFFIXES: Final = (".safetensors", ".json")  # of a checkpoint and its card

log = logging.getLogger("personlab")


def find(weights: str | None, project: Path) -> Path:
    """The checkpoint that a path, URI or name of a network stands for; of None the champion of the project,
    else the default network.

    Raises:
        UserError: as `zoo.find` or `local_copy`.
    """
    from personlab.registry.models import WEIGHTS, Registry
    from personlab.weights import zoo

    if weights:
        return zoo.find(local_copy(weights))
    champion = Registry(project).champion()
    return champion.folder / WEIGHTS if champion else zoo.get(DEFAULT_NETWORK)


def local_copy(place: str) -> Path:
    """The path of a checkpoint; of one at a URI that of a copy in the cache, with its card.

    It is downloaded at every call, and kept once for each content.

    Raises:
        UserError: it cannot be read, or the cache cannot be written to.
    """
    from personlab.weights import zoo

    if not storage.is_uri(place):
        return Path(place)
    path, mark, query = place.partition("?")
    stem = posixpath.splitext(path)[0]
    contents = {suffix: storage.read(f"{stem}{suffix}{mark}{query}") for suffix in _SUFFIXES}
    digest = hashlib.sha256(b"".join(contents.values())).hexdigest()
    folder = Folder(str(zoo.cache() / "fetched"))
    with storage.writing(folder.place):
        for suffix, content in contents.items():
            folder.write(f"{digest[:16]}{suffix}", content)
    return Path(folder.place) / f"{digest[:16]}{_SUFFIXES[0]}"


def find_and_log(weights: str | None) -> Path:
    """`find` in the current folder; a log line names the checkpoint unless it was named."""
    path = find(weights, Path.cwd())
    if not weights:
        log.info("weights: %s; --weights takes others", path)
    return path
