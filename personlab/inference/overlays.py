"""Some pictures of a batch inference with the people that were found in them, to look at."""

import posixpath
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from personlab import viz
from personlab.data import images as picture
from personlab.errors import UserError
from personlab.inference import inputs
from personlab.inference.inputs import Listing
from personlab.inference.predict import SHOWN
from personlab.people import Detection
from personlab.utils.storage import Folder


def draw(listing: Listing, run: Folder, out: Path, count: int) -> list[Path]:
    """Write `count` pictures of a run's parts, spread over all of them, to the folder `out`, as NN-name.jpg.

    Raises:
        UserError: the run has no parts, they are not of this listing, or a picture cannot be read any more.
    """
    names = sorted(name for name in run.files() if name.startswith("part-"))
    if not names:
        raise UserError(f"{run.place}: no part-*.parquet; 'personlab infer-batch' writes them")
    digits = max(2, len(str(count)))
    out.mkdir(parents=True, exist_ok=True)
    written = list[Path]()
    for number, row in enumerate(_rows(run, names, count), start=1):
        stem = posixpath.splitext(posixpath.basename(row["image"]))[0]
        people = [Detection.from_row(record) for record in row["people"] if record["score"] >= SHOWN]
        written.append(out / f"{number:0{digits}}-{stem}.jpg")
        viz.write_jpeg(written[-1], viz.draw_people(_pixels(listing, row), people))
    return written


def _rows(run: Folder, names: list[str], count: int) -> Iterator[dict[str, Any]]:
    """Rows of tables.NAMED_PREDICTIONS, as evenly spaced as can be told without reading every part."""
    chosen = [names[at] for at in _spaced(len(names), count)]
    each = -(-count // len(chosen))
    for name in chosen:
        with run.open(name) as file:
            table = pq.read_table(file)
        yield from table.take(_spaced(table.num_rows, each)).to_pylist()


def _spaced(length: int, count: int) -> list[int]:
    spaced: list[int] = np.linspace(0, length - 1, min(length, count)).round().astype(int).tolist()
    return spaced


def _pixels(listing: Listing, row: dict[str, Any]) -> Any:
    image_id = row["image_id"]
    ((name, fetch),) = inputs.contents(listing.root, listing.entries.slice(image_id, 1))
    if name != row["image"]:
        raise UserError(f"{row['image']}: is not number {image_id} of these pictures; name those of the run")
    try:
        return picture.decode(fetch())
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
