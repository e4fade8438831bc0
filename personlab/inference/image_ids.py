"""The id of each image: from an annotation file, from the number in COCO's file names, or by position."""

import posixpath
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path, PureWindowsPath
from typing import Final, Self

from personlab.data import coco
from personlab.errors import UserError

# COCO's file names: 000000000139.jpg, COCO_val2014_000000000139.jpg.
_COCO_NAME: Final = re.compile(r"(?:COCO_[a-z]+\d{4}_)?(\d{1,18})(?:\.[^.#]+)?", re.ASCII)


def number_images(names: Sequence[str]) -> Sequence[int]:
    """The numbers in the file names if all are COCO's and no two are the same; else 1, 2, 3, ..."""
    matches = [_COCO_NAME.fullmatch(posixpath.basename(name)) for name in names]
    numbers = [int(match[1]) for match in matches if match]
    return numbers if len(set(numbers)) == len(names) else range(1, len(names) + 1)


@dataclass(frozen=True)
class AnnotatedImages:
    """The images of an annotation file, by file name."""

    place: str
    person: int  # id of the category
    by_key: Mapping[str | int, Sequence[coco.Image]]

    @classmethod
    def read(cls, path: Path, wanted: Sequence[str] = ()) -> Self:
        """
        Args:
            wanted: names of categories, instead of the default (`data/category.py`).

        Raises:
            UserError: the file cannot be read; an image or the category `person` is not as COCO's.
        """
        images, person = coco.load_images(path, wanted)
        return cls.of(str(path), person, images.values())

    @classmethod
    def of(cls, place: str, person: int, images: Iterable[coco.Image]) -> Self:
        by_key = defaultdict[str | int, list[coco.Image]](list)
        for image in images:
            by_key[_key(image.file_name)].append(image)
        return cls(place, person, by_key)

    def candidates(self, name: str) -> list[coco.Image]:
        """The images that a file may be: of the same name or COCO number, most trailing folders in common."""
        found = self.by_key.get(_key(name), [])
        common = [_common_tail(name, image.file_name) for image in found]
        most = max(common, default=0)
        return [image for image, count in zip(found, common, strict=True) if count == most]

    def find(self, name: str) -> coco.Image | UserError:
        """The image that a file is, or why it is none of the images or may be several."""
        match self.candidates(name):
            case []:
                return UserError(f"is not among the images of {self.place}")
            case [image]:
                return image
            case several:
                names = " or ".join(image.file_name for image in several[:3])
                return UserError(f"may be {names} of {self.place}")

    def assign(self, names: Sequence[str]) -> list[coco.Image | UserError]:
        """The image that each file is, or why it is none.

        Of files that may be the same image, the one with the most trailing folders in common is.
        """
        found = [self.find(name) for name in names]
        claims = defaultdict[int, dict[str, int]](dict)
        for name, image in zip(names, found, strict=True):
            if isinstance(image, coco.Image):
                claims[image.id][name] = _common_tail(name, image.file_name)
        for at, (name, image) in enumerate(zip(names, found, strict=True)):
            if isinstance(image, coco.Image):
                common = claims[image.id]
                rivals = (other for other in common if other != name and common[other] >= common[name])
                if rival := next(rivals, None):
                    found[at] = UserError(f"may be {image.file_name} of {self.place}, and so may {rival}")
        return found


def _path(name: str) -> PureWindowsPath:
    """A path with / or \\ as separators, as on Windows, and composed accents, which macOS decomposes."""
    return PureWindowsPath(unicodedata.normalize("NFC", name))


def _key(name: str) -> str | int:
    path = _path(name)
    match = _COCO_NAME.fullmatch(path.name)
    return int(match[1]) if match else path.stem.casefold()


def _common_tail(name: str, other: str) -> int:
    """The number of trailing path segments that two file names have in common."""
    pairs = zip(reversed(_path(name).parts), reversed(_path(other).parts), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
