"""The pictures that a user asks for: found, and given the number and the name that their results go by."""

import glob
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from personlab.data import images as picture

# COCO's own names: 000000000139, COCO_val2014_000000000139.
_COCO_NAME = re.compile(r"(?:COCO_[a-z]+\d{4}_)?(\d{1,18})", re.ASCII)
_MOST_CHARACTERS = 50  # of up to 4 bytes: file systems allow 255, with suffixes


@dataclass(frozen=True)
class Picture:
    """One picture file. No two of a run have the same `id` or the same `name`."""

    path: Path
    id: int
    name: str  # of the files written for it, without a suffix


def find(wanted: Iterable[str]) -> list[Picture]:
    """The pictures that files, folders and patterns name, each file once, in the order they are named.

    A folder stands for the pictures that lie directly in it, by name; a pattern (`photos/**/*.jpg`) for the
    files that match it. A name that stands for nothing is kept, so that it is missed when it is read.

    `id` is the number in the file's name if every file is named as COCO names its own (digits), and they
    are all different; else they are numbered from 1.
    """
    paths = list({os.path.realpath(path): path for name in wanted for path in _expand(name)}.values())
    return [
        Picture(path, number, name)
        for path, number, name in zip(paths, _ids(paths), _names(paths), strict=True)
    ]


def _expand(name: str) -> Sequence[Path]:
    path = Path(name)
    try:
        if path.is_dir():
            suffixes = picture.suffixes()
            held = [item for item in path.iterdir() if item.suffix.lower() in suffixes and item.is_file()]
        elif path.exists():
            held = [path]
        else:
            matches = glob.glob(name, recursive=True)  # noqa: PTH207 (pathlib wants relative patterns)
            held = [item for item in map(Path, matches) if item.is_file()]
    except OSError:  # not ours to look into; reading it says so
        held = []
    return sorted(held) or [path]


def _ids(paths: Sequence[Path]) -> Sequence[int]:
    matches = [_COCO_NAME.fullmatch(path.stem) for path in paths]
    ids = [int(match[1]) for match in matches if match]
    return ids if len(set(ids)) == len(paths) else range(1, len(paths) + 1)


def _names(paths: Sequence[Path]) -> Iterator[str]:
    """What each path is called without its folder and suffix, fit for any file system, made unique.

    Case does not tell names apart: on some file systems it does not tell files apart either.
    """
    taken = Counter[str]()
    for path in paths:
        name = plain = re.sub(r"[^\w .()+-]", "_", path.stem).strip(" .")[:_MOST_CHARACTERS] or "picture"
        while taken[name.lower()]:
            taken[plain.lower()] += 1
            name = f"{plain}-{taken[plain.lower()]}"
        taken[name.lower()] += 1
        yield name
