"""Checkpoints at URIs, downloaded."""

import hashlib
import posixpath
from pathlib import Path
from typing import Final

from personlab.utils import storage
from personlab.utils.files import cache
from personlab.utils.storage import Folder

_SUFFIXES: Final = (".safetensors", ".json")  # of a checkpoint and its card


def local_copy(place: str) -> Path:
    """The path of a checkpoint; of one at a URI that of a copy in the cache, with its card.

    It is downloaded at every call, and kept once for each content.

    Raises:
        UserError: it cannot be read, or the cache cannot be written to.
    """
    if not storage.is_uri(place):
        return Path(place)
    path, mark, query = place.partition("?")
    stem = posixpath.splitext(path)[0]
    contents = {suffix: storage.read(f"{stem}{suffix}{mark}{query}") for suffix in _SUFFIXES}
    digest = hashlib.sha256(b"".join(contents.values())).hexdigest()
    folder = Folder(str(cache() / "fetched"))
    with storage.writing(folder.place):
        for suffix, content in contents.items():
            folder.write(f"{digest[:16]}{suffix}", content)
    return Path(folder.place) / f"{digest[:16]}{_SUFFIXES[0]}"
