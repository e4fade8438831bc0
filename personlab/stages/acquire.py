"""Provide images and annotations as a COCO layout: rendered, in a folder of the user, or downloaded.

data/acquire/source.json records where the layout is and what its annotation files hold, for `ingest`.
"""

import hashlib
import logging
from pathlib import Path, PurePosixPath
from typing import Final, Literal

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

_HINT: Final = "run 'dvc repro --force acquire'"
_REFRESH: Final = "run 'dvc repro --force ingest && dvc repro'"


class SplitSource(BaseModel):
    """The annotation file of a split and the numbers of its records."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    annotations: str  # relative to the layout's root
    sha256: str
    images: int
    people: int
    other_annotations: int


class Source(BaseModel):
    """The content of data/acquire/source.json."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: Literal["sample", "directory", "coco2017"]
    root: str  # of the layout; relative to the project's folder if inside it, else absolute
    splits: dict[Split, SplitSource]


def run(params: Params, root: Path) -> None:
    """Render, download or locate a COCO layout, and write data/acquire/source.json.

    Raises:
        UserError: a file or folder of the layout is missing, an annotation file is not COCO's, or a download
            fails.
    """
    final = root / "data/acquire"
    with atomic_folder(final) as output:
        layout_root = _layout(params.acquire, root, output)
        splits = {name: _describe(coco.Layout(layout_root, name)) for name in SPLITS}
        place = _relative(final if layout_root == output else layout_root, root)
        source = Source(source=params.acquire.source, root=place, splits=splits)
        write_atomic(output / "source.json", source.model_dump_json(indent=2) + "\n")
    for name, split in splits.items():
        log.info("acquire: %s: %d images, %d people in %s", name, split.images, split.people, place)
    if params.acquire.source != "sample":
        log.info("acquire: DVC does not watch %s; if its files change, %s", place, _REFRESH)


def _layout(acquire: parameters.Acquire, root: Path, output: Path) -> Path:
    """Render the layout to `output`, or download or check it elsewhere; return its root."""
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
    top = Path(folder.anchor)
    folder = top / coco.as_on_disk(top, PurePosixPath(*folder.parts[1:]))
    if acquire.source == "coco2017":
        fetch_archives(acquire.url, folder)
    for split in SPLITS:
        _check_layout(coco.Layout(folder, split))
    return folder


def _check_layout(layout: coco.Layout) -> None:
    folders = [path for path in (layout.root, layout.images) if not path.is_dir()]
    missing = folders or [path for path in [layout.annotations] if not path.is_file()]
    if missing:
        raise UserError(
            f"{missing[0]}: no such {'folder' if folders else 'file'}; acquire.directory must hold "
            "annotations/person_keypoints_{train,val}2017.json and the image folders train2017/ and val2017/"
        )


def _describe(layout: coco.Layout) -> SplitSource:
    records = coco.load(layout.annotations)
    return SplitSource(
        annotations=layout.annotations_name,
        sha256=_sha256(layout.annotations),
        images=len(records.images),
        people=len(records.people),
        other_annotations=records.others,
    )


def _relative(folder: Path, root: Path) -> str:
    """The folder's path: relative to `root` if inside it, else absolute."""
    folder, root = folder.resolve(), root.resolve()
    return (folder.relative_to(root) if folder.is_relative_to(root) else folder).as_posix()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_source(root: Path) -> Source:
    """Read data/acquire/source.json.

    Raises:
        UserError: the file is missing or was not written by this stage.
    """
    path = root / "data/acquire/source.json"
    try:
        return Source.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run 'dvc repro acquire' first") from None
    except ValidationError as error:
        raise UserError(f"{path}: not written by acquire ({error.errors()[0]['msg']}); {_HINT}") from None


def image_root(root: Path) -> Path:
    """The root of the layout; `file_name` of images is relative to it."""
    return root / read_source(root).root


def check_unchanged(root: Path) -> None:
    """Check that the annotation files are those that `run` found.

    Raises:
        UserError: one is missing or has changed.
    """
    source = read_source(root)
    for name, split in source.splits.items():
        path = root / source.root / split.annotations
        if not path.is_file():
            raise UserError(f"{path}: no such file, although acquire found it; restore it, or {_HINT}")
        if _sha256(path) != split.sha256:
            raise UserError(f"{path} ({name}): changed since acquire; {_HINT}")
