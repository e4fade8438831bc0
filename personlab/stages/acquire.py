"""Where the images and annotations are: rendered here, found in a folder, or downloaded.

Whatever the source, the outcome is a COCO layout and data/acquire/source.json, which says where it is and
what its annotation files hold. Later stages ask `read_source` and `image_root`.
"""

import hashlib
import logging
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from personlab import params as parameters
from personlab.data import coco
from personlab.data.download import fetch_archives
from personlab.errors import UserError
from personlab.params import Params
from personlab.synthetic import write_sample
from personlab.tables import SPLITS, Split
from personlab.utils.files import atomic_folder, write_atomic
from personlab.utils.progress import progress

log = logging.getLogger("personlab")

REPAIR = "run 'dvc repro --force acquire'"


class SplitSource(BaseModel):
    """The annotation file of a split (path relative to the layout's root) and how much it holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    annotations: str
    sha256: str
    images: int
    people: int
    other_annotations: int


class Source(BaseModel):
    """data/acquire/source.json. root: relative to the project's folder if inside it, else absolute."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: Literal["sample", "directory", "coco2017"]
    root: str
    splits: dict[Split, SplitSource]


def run(params: Params, root: Path) -> None:
    """Bring a COCO layout about and write data/acquire/source.json.

    Raises:
        UserError: a part of the layout is missing (it is named), an annotation file is not COCO's, or a
            download fails.
    """
    final = root / "data/acquire"
    with atomic_folder(final) as output:
        layout_root = _layout(params.acquire, root, output)
        splits = {split: _describe(coco.Layout(layout_root, split)) for split in SPLITS}
        recorded = _recorded(final if layout_root == output else layout_root, root)
        source = Source(source=params.acquire.source, root=recorded, splits=splits)
        write_atomic(output / "source.json", source.model_dump_json(indent=2) + "\n")
    for split, found in splits.items():
        log.info("acquire: %s: %d images, %d people in %s", split, found.images, found.people, recorded)


def _layout(acquire: parameters.Acquire, root: Path, output: Path) -> Path:
    """Make the layout, or make sure of it; return its root."""
    if acquire.source == "sample":
        sizes = acquire.sample
        write_sample(
            output,
            train_images=sizes.train_images,
            val_images=sizes.val_images,
            width=sizes.width,
            height=sizes.height,
            seed=sizes.seed,
            progress=progress,
        )
        return output
    folder = (root / Path(str(acquire.directory)).expanduser()).resolve()
    if acquire.source == "coco2017":
        fetch_archives(acquire.url, folder)
    for split in SPLITS:
        _check_layout(coco.Layout(folder, split))
    return folder


def _check_layout(layout: coco.Layout) -> None:
    for path, what, there in (
        (layout.root, "folder", layout.root.is_dir()),
        (layout.annotations, "file", layout.annotations.is_file()),
        (layout.images, "folder", layout.images.is_dir()),
    ):
        if not there:
            raise UserError(
                f"{path}: no such {what}; acquire.directory must hold annotations/person_keypoints_"
                "{train,val}2017.json and the image folders train2017/ and val2017/"
            )


def _describe(layout: coco.Layout) -> SplitSource:
    records = coco.load(layout)
    return SplitSource(
        annotations=layout.annotations.relative_to(layout.root).as_posix(),
        sha256=_sha256(layout.annotations),
        images=len(records.images),
        people=len(records.people),
        other_annotations=records.others,
    )


def _recorded(folder: Path, root: Path) -> str:
    folder, root = folder.resolve(), root.resolve()
    return (folder.relative_to(root) if folder.is_relative_to(root) else folder).as_posix()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_source(root: Path) -> Source:
    """What `run` wrote.

    Raises:
        UserError: it is missing or not as written.
    """
    path = root / "data/acquire/source.json"
    try:
        return Source.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run 'dvc repro acquire' first") from None
    except ValidationError as error:
        raise UserError(f"{path}: not what acquire wrote ({error.errors()[0]['msg']}); {REPAIR}") from None


def image_root(root: Path) -> Path:
    """The folder that `file_name` of the images table is relative to."""
    return root / read_source(root).root


def check_unchanged(root: Path) -> None:
    """Raises UserError if an annotation file is not what it was when `run` looked at it."""
    source = read_source(root)
    for split, found in source.splits.items():
        path = root / source.root / found.annotations
        if not path.is_file():
            raise UserError(f"{path}: no such file, though it was there at acquire; put it back, or {REPAIR}")
        if _sha256(path) != found.sha256:
            raise UserError(f"{path} ({split}): changed since acquire; {REPAIR}")
