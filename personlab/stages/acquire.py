"""Provide images and annotations: rendered, in a folder of the user, or downloaded.

data/acquire/source.json records where they are and what the annotation files hold, for `ingest`. DVC watches
the folder of the user, `acquire.directory`, and runs the stage again if anything in it changes.
"""

import hashlib
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from personlab import params as parameters
from personlab.data import coco, excerpt, yolo
from personlab.data.coco import Layout, Share
from personlab.data.download import fetch_archives
from personlab.data.excerpt import Excerpt
from personlab.errors import UserError
from personlab.params import Params
from personlab.synthetic import write_sample
from personlab.tables import SPLITS, Split
from personlab.utils.files import atomic_folder, digest, write_atomic, write_json
from personlab.utils.progress import progress

log = logging.getLogger("personlab")

_HINT: Final = "run 'dvc repro --force acquire'"


class SplitSource(BaseModel):
    """The files of a split, and the numbers of its records."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    annotations: str  # relative to the project's folder if inside it, else absolute
    sha256: str
    contents: str  # SHA-256 of the names and contents of the image files; "" of files made or checked here
    folder: str  # with the images, relative to the root
    share: Share | None
    images: int
    people: int
    other_annotations: int


class Source(BaseModel):
    """The content of data/acquire/source.json."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: Literal["sample", "directory", "coco2017", "yolo"]
    root: str  # of the images; relative to the project's folder if inside it, else absolute
    categories: tuple[str, ...]
    splits: dict[Split, SplitSource]


def run(params: Params, root: Path) -> None:
    """Render, download or locate the files, and write data/acquire/source.json.

    Raises:
        UserError: a file or folder is missing, an annotation file is not COCO's, or a download fails.
    """
    acquire, final = params.acquire, root / "data/acquire"
    with atomic_folder(final) as output:
        layouts = _layouts(acquire, root, output)

        def place(path: Path) -> str:
            """The path, of files in `output` as it will be, relative to the project if inside it."""
            return _relative(final / path.relative_to(output) if path.is_relative_to(output) else path, root)

        source = Source(
            source=acquire.source,
            root=place(layouts["train"].root),
            categories=acquire.categories,
            splits={name: _describe(layouts[name], acquire, place) for name in SPLITS},
        )
        write_atomic(output / "source.json", source.model_dump_json(indent=2) + "\n")
    for name, split in source.splits.items():
        others = f", {split.other_annotations} of other categories" if split.other_annotations else ""
        log.info(
            "acquire: %s: %d images, %d people%s in %s",
            *(name, split.images, split.people, others, source.root),
        )


def _layouts(acquire: parameters.Acquire, root: Path, output: Path) -> dict[Split, Layout]:
    """Render to `output`, or download or find elsewhere."""
    match acquire.source:
        case "sample":
            write_sample(output, **acquire.sample.model_dump(), progress=progress)
            return _in(output, parameters.Layout())
        case "coco2017":
            folder = (root / Path(acquire.download).expanduser()).resolve()
            if acquire.excerpt:
                return excerpt.fetch(Excerpt.read(root / acquire.excerpt), acquire.url, folder, output)
            fetch_archives(acquire.url, folder)
            return _in(folder, parameters.Layout())
        case "yolo":
            return _converted(_on_disk(root, str(acquire.directory)), output)
        case _:
            return _in(_on_disk(root, str(acquire.directory)), acquire.layout)


def _on_disk(root: Path, directory: str) -> Path:
    folder = (root / Path(directory).expanduser()).resolve()
    top = Path(folder.anchor)
    return top / coco.as_on_disk(top, PurePosixPath(*folder.parts[1:]))


def _in(root: Path, layout: parameters.Layout) -> dict[Split, Layout]:
    """The splits of a folder in COCO's format.

    Raises:
        UserError: a file or folder is missing.
    """
    share = None if layout.val else Share(layout.val_share, layout.seed)
    files: dict[Split, tuple[str, str]] = {
        "train": (layout.train, layout.train_images),
        "val": (layout.val or layout.train, layout.val_images if layout.val else layout.train_images),
    }
    layouts = {name: Layout(root, name, root / file, folder, share) for name, (file, folder) in files.items()}
    needed = dict.fromkeys(name for pair in files.values() for name in pair)  # once each, in order
    for each in layouts.values():
        missing = [path for path in (each.root, each.images) if not path.is_dir()]
        missing = missing or [path for path in [each.annotations] if not path.is_file()]
        if missing:
            raise UserError(
                f"{missing[0]}: no such file or folder; acquire.directory must hold {', '.join(needed)}, or "
                "acquire.layout must name others"
            )
    return layouts


def _converted(folder: Path, output: Path) -> dict[Split, Layout]:
    """The splits of a YOLO dataset, whose annotations are written to `output` in COCO's format."""
    layouts = dict[Split, Layout]()
    for split in SPLITS:
        layouts[split] = Layout(folder, split, output / f"{split}.json", ".")
        write_json(layouts[split].annotations, yolo.to_coco(folder, split))
    return layouts


def _describe(layout: Layout, acquire: parameters.Acquire, place: Callable[[Path], str]) -> SplitSource:
    records = coco.load(layout.annotations, acquire.categories).of(layout.split, layout.share)
    return SplitSource(
        annotations=place(layout.annotations),
        sha256=digest(layout.annotations),
        contents=_contents(layout) if acquire.directory else "",
        folder=layout.folder,
        share=layout.share,
        images=len(records.images),
        people=len(records.people),
        other_annotations=records.others,
    )


def _contents(layout: Layout) -> str:
    """Changes with any image, so that `ingest` runs again when DVC runs `acquire` for a changed image."""
    paths = sorted(path for path in layout.images.rglob("*") if path.is_file())
    with ThreadPoolExecutor() as pool:
        hashes = progress(pool.map(digest, paths), total=len(paths), label=f"acquire: hash {layout.split}")
        lines = (
            f"{found} {path.relative_to(layout.root)}\n" for path, found in zip(paths, hashes, strict=True)
        )
        return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()


def _relative(folder: Path, root: Path) -> str:
    """The folder's path: relative to `root` if inside it, else absolute."""
    folder, root = folder.resolve(), root.resolve()
    return (folder.relative_to(root) if folder.is_relative_to(root) else folder).as_posix()


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


def layouts(root: Path) -> dict[Split, Layout]:
    """The splits that `run` found.

    Raises:
        UserError: an annotation file is missing or has changed.
    """
    source = read_source(root)
    for name, split in source.splits.items():
        path = root / split.annotations
        if not path.is_file():
            raise UserError(f"{path}: no such file, although acquire found it; restore it, or {_HINT}")
        if digest(path) != split.sha256:
            raise UserError(f"{path} ({name}): changed since acquire; {_HINT}")
    folder = root / source.root
    return {
        name: Layout(folder, name, root / split.annotations, split.folder, split.share)
        for name, split in source.splits.items()
    }
