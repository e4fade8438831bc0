"""Draw the people that a run of `infer-batch` found into some of its images."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from personlab import viz
from personlab.data import images
from personlab.data.transform import ImageArray
from personlab.errors import UserError
from personlab.inference.job import read_plan
from personlab.inference.listing import Listing
from personlab.inference.predict import draw_still, safe_stem
from personlab.inference.results import Result
from personlab.people import Detection
from personlab.utils.storage import Folder


def draw(listing: Listing, run: Folder, out: Path, count: int) -> list[Path]:
    """Draw `count` images of a run, spread over its parts, and write them to the folder `out` as NN-name.jpg.

    Raises:
        UserError: the run has no parts or is not of this listing, or an image cannot be read.
    """
    names = sorted(name for name in run.files() if name.startswith("part-"))
    plan = read_plan(run)
    if not names or not plan:
        raise UserError(f"{run.place}: no part-*.parquet; 'personlab infer-batch' writes them")
    digits = max(2, len(str(count)))
    out.mkdir(parents=True, exist_ok=True)
    written = list[Path]()
    for number, row in enumerate(_rows(run, names, count), start=1):
        people = [Detection.from_row(record) for record in row["people"]]
        result = Result(row["image_id"], row["image"], row["height"], row["width"], people, plan.skeleton)
        written.append(out / f"{number:0{digits}}-{safe_stem(row['image'])}.jpg")
        viz.write_jpeg(written[-1], draw_still(_pixels(listing, row), result))
    return written


def _rows(run: Folder, names: list[str], count: int) -> Iterator[dict[str, Any]]:
    """Rows of tables.NAMED_PREDICTIONS, as evenly spaced as is known without reading every part."""
    chosen = [names[at] for at in _spaced(len(names), count)]
    each = -(-count // len(chosen))
    for name in chosen:
        with run.open(name) as file:
            table = pq.read_table(file)
        yield from table.take(_spaced(table.num_rows, each)).to_pylist()


def _spaced(length: int, count: int) -> list[int]:
    spaced: list[int] = np.linspace(0, length - 1, min(length, count)).round().astype(int).tolist()
    return spaced


def _pixels(listing: Listing, row: dict[str, Any]) -> ImageArray:
    """The image of a row: its id is its position in the listing."""
    image_id = row["image_id"]
    entry = Listing(listing.root, listing.entries.slice(image_id, 1))
    name, fetch = next(entry.read(), ("", bytes))
    if name != row["image"]:
        raise UserError(
            f"{row['image']}: is not number {image_id} of these images; name the images of the run"
        )
    try:
        return images.decode(fetch())
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
