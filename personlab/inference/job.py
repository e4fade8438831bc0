"""Batch inference without the cluster: what a run is, what a part of it is, and how a part is made.

A run is planned first: its images, sorted, are cut into parts of equal size. A part is one unit of work: its
images are read, and the people in them written to part-00000.parquet (tables.NAMED_PREDICTIONS); those that
cannot be read are written to errors-00000.parquet (tables.FAILURES) before, if there are any. Files appear
complete or not at all, and their bytes depend on the plan and the images alone. So whatever is killed, lost
or done twice, the folder of a run holds only what is right, and what is missing can be told.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from personlab import __version__, tables
from personlab.data.transform import ImageArray
from personlab.errors import UserError
from personlab.inference.listing import Fetch, Listing
from personlab.inference.poison_images import Attempt, attempt
from personlab.model.network import from_checkpoint
from personlab.params import Decode, Infer, Section
from personlab.predictor import Predictor, decoding
from personlab.tables.shards import part_name
from personlab.utils.prefetch import prefetch
from personlab.utils.storage import LOCK, Folder, writing

Row = dict[str, Any]
DecodeImage = Callable[[bytes], ImageArray]
Seen = tuple[str, ImageArray | UserError]  # name and pixels of an image, or why there are none
T = TypeVar("T")

PLAN: Final = "plan.json"
INPUTS: Final = "inputs.parquet"
MANIFEST: Final = "manifest.json"

_FETCHERS = 8  # threads: object stores take their time
_FETCHED_AHEAD, _DECODED_AHEAD = 16, 2  # images


class Plan(Section):
    """All that the bytes of a run depend on, but the bytes of its images."""

    version: str
    images: int
    part_size: int
    inputs: str  # SHA-256 of inputs.parquet
    weights: str  # SHA-256 of the checkpoint and its card
    infer: Infer
    decode: Decode

    @property
    def digest(self) -> str:
        return tables.params_hash(self)

    @property
    def parts(self) -> range:
        return range(-(-self.images // self.part_size))

    def ids(self, part: int) -> range:
        """The images of a part: their places in the listing."""
        return range(part * self.part_size, min(self.images, (part + 1) * self.part_size))


class Part(Section):
    """What the files of a finished part hold. sha256: of part-*.parquet, then of errors-*.parquet, if any."""

    number: int
    predictions: int
    errors: int
    people: int
    sha256: list[str]


class Manifest(Section):
    """A finished run, in which images = predictions + errors."""

    plan: str  # its digest
    images: int
    predictions: int
    errors: int
    people: int
    parts: list[Part]


@dataclass(frozen=True)
class Job:
    """A run, as whoever makes a part of it has to know it.

    decode: pixels (height x width x 3, uint8, RGB) of the bytes of an image. What it raises is the reason why
    there are none.
    """

    plan: Plan
    listing_root: str | None
    out: Folder
    weights: Path
    decode: DecodeImage
    gpu: bool = False


def errors_name(number: int) -> str:
    return f"errors-{number:05}.parquet"


def make_plan(
    listing: Listing,
    weights: Path,
    infer: Infer,
    decode: Decode | None = None,
    *,
    max_people: int | None = None,
    part_size: int,
) -> Plan:
    """The plan of a run; parameters as for `Predictor.from_checkpoint`.

    Raises:
        UserError: the checkpoint cannot be read.
    """
    network = from_checkpoint(weights, stride=infer.stride)
    return Plan(
        version=__version__,
        images=listing.entries.num_rows,
        part_size=part_size,
        inputs=hashlib.sha256(_inputs(listing, part_size)).hexdigest(),
        weights=_digest_of(weights),
        infer=infer,
        decode=decode or decoding(network, max_people),
    )


def settle(job: Job, listing: Listing) -> None:
    """Write the plan to the run's folder, or see that it is the one that is there.

    Raises:
        UserError: the folder holds another run, or something else, or it cannot be written to.
    """
    stored = _stored(job.out)
    if stored:
        others = [name for name in Plan.model_fields if getattr(stored, name) != getattr(job.plan, name)]
        if others:
            raise UserError(
                f"{job.out.place}: holds a run with other {', '.join(others)}; choose another folder"
            )
    elif others := [name for name in job.out.files() if not name.startswith(".") and name != INPUTS]:
        raise UserError(f"{job.out.place}: holds {others[0]} and no run; choose an empty folder")
    with writing(job.out.place):
        job.out.write(INPUTS, _inputs(listing, job.plan.part_size))
        job.out.write(PLAN, (job.plan.model_dump_json(indent=2) + "\n").encode())


def _stored(out: Folder) -> Plan | None:
    try:
        return Plan.model_validate_json(out.read(PLAN))
    except FileNotFoundError:
        return None
    except ValidationError:
        raise UserError(f"{out.place}: its {PLAN} is none of this version; choose another folder") from None


def _inputs(listing: Listing, part_size: int) -> bytes:
    """inputs.parquet: a row group for each part."""
    return tables.table_bytes(listing.entries, params_hash="", row_group_size=part_size)


def _digest_of(weights: Path) -> str:
    return hashlib.sha256(weights.read_bytes() + weights.with_suffix(".json").read_bytes()).hexdigest()


def sweep(out: Folder, *keep: str) -> set[str]:
    """Names of the files; what killed processes left behind is deleted, but for names that begin so."""
    names = set(out.files())
    for name in names:
        if name.startswith(".") and not name.startswith((LOCK, *keep)):
            out.delete(name)
    return names


def manifest_of(job: Job) -> Manifest | None:
    """The manifest, if the run is finished."""
    try:
        manifest = Manifest.model_validate_json(job.out.read(MANIFEST))
    except (FileNotFoundError, ValidationError):
        return None
    return manifest if manifest.plan == job.plan.digest else None


def finish(job: Job, parts: Sequence[Part]) -> Manifest:
    """Write the manifest of all parts, in order.

    Raises:
        UserError: an image is not accounted for, or another run has taken the folder.
    """
    manifest = Manifest(
        plan=job.plan.digest,
        images=job.plan.images,
        predictions=sum(part.predictions for part in parts),
        errors=sum(part.errors for part in parts),
        people=sum(part.people for part in parts),
        parts=list(parts),
    )
    if manifest.predictions + manifest.errors != manifest.images:
        raise UserError(
            f"{job.out.place}: {manifest.images} images in, {manifest.predictions} predictions and "
            f"{manifest.errors} errors out; the same command again does what is missing"
        )
    # Where folders cannot be locked, two runs that started at once may each have written a plan.
    if _stored(job.out) != job.plan:
        raise UserError(f"{job.out.place}: another run has taken this folder; choose another one")
    with writing(job.out.place):
        sweep(job.out)
        job.out.write(MANIFEST, (manifest.model_dump_json(indent=1) + "\n").encode())
    return manifest


def finished(job: Job, number: int) -> Part | None:
    """What the files of a part hold, read back; None if that is not all of it, or of another plan."""
    ids = job.plan.ids(number)
    try:
        files = [job.out.read(part_name(number))]
        found = _parsed(files[0], tables.NAMED_PREDICTIONS, job.plan)
        if found.num_rows < len(ids):
            files.append(job.out.read(errors_name(number)))
        failed = _parsed(files[1], tables.FAILURES, job.plan) if files[1:] else None
    except (OSError, pa.ArrowException):
        return None
    without = failed["image_id"].to_pylist() if failed else []
    if sorted(found["image_id"].to_pylist() + without) != list(ids):
        return None
    return Part(
        number=number,
        predictions=found.num_rows,
        errors=len(without),
        people=tables.people_rows(found).num_rows,
        sha256=[hashlib.sha256(content).hexdigest() for content in files],
    )


def _parsed(content: bytes, schema: pa.Schema, plan: Plan) -> pa.Table:
    """The table in a file; no rows if another plan made it."""
    table = pq.read_table(pa.BufferReader(content))
    same = table.schema.equals(schema) and tables.params_hash_of(table.schema) == plan.digest
    return table if same else schema.empty_table()


class Worker:
    """Makes parts, with a predictor that is loaded once."""

    def __init__(self, job: Job) -> None:
        """
        Raises:
            UserError: the checkpoint cannot be read, or is no longer the plan's.
        """
        if _digest_of(job.weights) != job.plan.weights:
            raise UserError(f"{job.weights}: is not what the run began with")
        self.job = job
        self.predictor = Predictor.from_checkpoint(job.weights, job.plan.infer, job.plan.decode, gpu=job.gpu)

    def make(self, number: int) -> Part:
        """Find the people in the images of a part, and write its files.

        Raises:
            UserError: they cannot be written.
        """
        found, failed = list[Row](), list[Row]()
        with writing(self.job.out.place), attempt(self.job.out, number) as this:
            images = self._one_by_one(number, this) if this.careful else self._ahead(number)
            for image_id, (name, image) in zip(self.job.plan.ids(number), images, strict=True):
                outcome = self._people_in(image)
                kept = failed if "reason" in outcome else found
                kept.append({"image_id": image_id, "image": name} | outcome)
            self._write(errors_name(number), failed, tables.FAILURES)
            self._write(part_name(number), found, tables.NAMED_PREDICTIONS)
        part = finished(self.job, number)
        if part is None:
            raise UserError(f"{self.job.out.place}: {part_name(number)} is not what was written to it")
        return part

    def _contents(self, number: int) -> Iterator[tuple[str, Fetch]]:
        return Listing(self.job.listing_root, self._listing.read_row_group(number)).read()

    def _ahead(self, number: int) -> Iterator[Seen]:
        """The images of a part, read while earlier ones are being looked at."""
        fetched = prefetch(
            lambda entry: (entry[0], _tried(entry[1])),
            self._contents(number),
            threads=_FETCHERS,
            depth=_FETCHED_AHEAD,
        )
        return prefetch(
            lambda entry: (entry[0], _then(self.job.decode, entry[1])),
            fetched,
            threads=1,
            depth=_DECODED_AHEAD,
        )

    def _one_by_one(self, number: int, this: Attempt) -> Iterator[Seen]:
        """The images of a part, none read before the last is done with."""
        for image_id, (name, fetch) in zip(self.job.plan.ids(number), self._contents(number), strict=True):
            if this.gives_up(image_id):
                yield name, UserError("kills the process that reads it or looks for people in it")
            else:
                this.takes(image_id)
                yield name, _then(self.job.decode, _tried(fetch))

    @cached_property
    def _listing(self) -> pq.ParquetFile:
        return pq.ParquetFile(self.job.out.open(INPUTS))

    def _people_in(self, image: ImageArray | UserError) -> Row:
        people = _then(self.predictor, image)
        if isinstance(people, UserError) or isinstance(image, UserError):
            return {"reason": str(people)}
        height, width = image.shape[:2]
        return {"height": height, "width": width, "people": [p.to_row() for p in people]}

    def _write(self, name: str, rows: list[Row], schema: pa.Schema) -> None:
        if not rows and schema == tables.FAILURES:
            self.job.out.delete(name)  # an earlier attempt may have had some
            return
        table = pa.Table.from_pylist(rows, schema=schema)
        self.job.out.write(name, tables.table_bytes(table, params_hash=self.job.plan.digest))


def _tried(work: Callable[[], T]) -> T | UserError:
    """What is wrong with one image must not stop the others, whatever it is."""
    try:
        return work()
    except UserError as error:
        return error
    except Exception as error:
        return UserError(f"{type(error).__name__}: {error}")


def _then(work: Callable[[Any], T], value: Any) -> T | UserError:
    return value if isinstance(value, UserError) else _tried(lambda: work(value))
