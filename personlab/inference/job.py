"""Batch inference without a cluster: the plan of a run, its parts, and a worker that makes them.

A plan divides the sorted images of a run into parts of equal size. A part is one unit of work: its
predictions are written to part-00000.parquet (tables.NAMED_PREDICTIONS), after the images that cannot be
read, if any, to errors-00000.parquet (tables.FAILURES). Files are written atomically, and their bytes depend
on the plan and the images alone. A run that was interrupted anywhere, or done twice, therefore ends with the
same files.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import ValidationError

from personlab import __version__, tables
from personlab.data import images
from personlab.data.transform import ImageArray
from personlab.errors import UserError
from personlab.inference.listing import Fetch, Listing
from personlab.inference.local_copy import local_copy
from personlab.inference.poison_images import Attempt, attempt
from personlab.params import Decode, Infer, Section
from personlab.people import SHOWN
from personlab.skeleton import Skeleton
from personlab.tables.shards import part_name
from personlab.utils.prefetch import prefetch
from personlab.utils.storage import LOCK, Folder, UnreachableError, retry, writing

Row = dict[str, Any]
DecodeImage = Callable[[bytes], ImageArray]
T = TypeVar("T")

PLAN: Final = "plan.json"
INPUTS: Final = "inputs.parquet"
MANIFEST: Final = "manifest.json"
_COUNTS: Final = ("predictions", "errors", "proposals", "people")  # of a part, summed in the manifest

_FETCH_THREADS = 8  # object stores are slow to answer
_FETCH_DEPTH, _DECODE_DEPTH = 16, 2  # images


@dataclass(frozen=True)
class NamedImage:
    """pixels: or why the image cannot be read. orientation: EXIF's, of the file; 1 is upright."""

    name: str
    pixels: ImageArray | UserError
    orientation: int = 1


class Plan(Section):
    """Everything that the files of a run depend on, except the contents of its images."""

    version: str
    images: int
    part_size: int
    inputs: str  # SHA-256 of inputs.parquet
    weights: str  # SHA-256 of the checkpoint and its card
    skeleton: Skeleton  # the checkpoint's
    infer: Infer
    decode: Decode

    @property
    def digest(self) -> str:
        return tables.params_hash(self)

    @property
    def parts(self) -> range:
        return range(-(-self.images // self.part_size))

    def ids(self, part: int) -> range:
        """The image ids of a part: indices into the listing."""
        return range(part * self.part_size, min(self.images, (part + 1) * self.part_size))


class Part(Section):
    """The contents of a finished part."""

    number: int
    predictions: int
    errors: int
    proposals: int
    people: int  # proposals with a score of at least SHOWN
    sha256: list[str]  # of part-*.parquet and, if it exists, of errors-*.parquet


class Manifest(Section):
    """A finished run; images = predictions + errors."""

    plan: str  # its digest
    images: int
    predictions: int
    errors: int
    proposals: int
    people: int
    parts: list[Part]


@dataclass(frozen=True)
class Job:
    """A run as a worker needs it.

    Attributes:
        weights: path or URI of the checkpoint.
        decode: turns the bytes of an image file into height x width x 3 uint8 RGB; an exception is recorded
            as the reason why the image cannot be read.
    """

    plan: Plan
    listing_root: str | None
    out: Folder
    weights: str
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
    """The plan of a run; arguments as for `Predictor.from_checkpoint`.

    Raises:
        UserError: the checkpoint cannot be read.
    """
    from personlab.model.network import from_checkpoint
    from personlab.predictor import decoding

    network = from_checkpoint(weights, stride=infer.stride)
    return Plan(
        version=__version__,
        images=listing.entries.num_rows,
        part_size=part_size,
        inputs=hashlib.sha256(_inputs(listing, part_size)).hexdigest(),
        weights=_digest_of(weights),
        skeleton=network.skeleton,
        infer=infer,
        decode=decoding(network, max_people, decode),
    )


def write_plan(job: Job, listing: Listing) -> None:
    """Write the plan to the run's folder, or check that the plan there is the same.

    Raises:
        UserError: the folder holds another run or other files, or cannot be written to.
    """
    stored = read_plan(job.out)
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


def read_plan(out: Folder) -> Plan | None:
    """The plan of the run in a folder, if there is one.

    Raises:
        UserError: it is of another version.
    """
    try:
        return Plan.model_validate_json(out.read(PLAN))
    except FileNotFoundError:
        return None
    except ValidationError:
        raise UserError(
            f"{out.place}: {PLAN} is not of this version of personlab ({__version__}); finish with the "
            "version that began it, or choose another folder"
        ) from None


def _inputs(listing: Listing, part_size: int) -> bytes:
    """The contents of inputs.parquet, one row group for each part."""
    return tables.table_bytes(listing.entries, params_hash="", row_group_size=part_size)


def _digest_of(weights: Path) -> str:
    return hashlib.sha256(weights.read_bytes() + weights.with_suffix(".json").read_bytes()).hexdigest()


def delete_temporary(out: Folder, *keep: str) -> set[str]:
    """Delete the temporary files of killed processes, except those whose names start with `keep`.

    Returns the names of all files before.
    """
    names = set(out.files())
    for name in names:
        if name.startswith(".") and not name.startswith((LOCK, *keep)):
            out.delete(name)
    return names


def read_manifest(job: Job) -> Manifest | None:
    """The manifest of the run, if it is finished."""
    try:
        manifest = Manifest.model_validate_json(job.out.read(MANIFEST))
    except (FileNotFoundError, ValidationError):
        return None
    return manifest if manifest.plan == job.plan.digest else None


def write_manifest(job: Job, parts: Sequence[Part]) -> Manifest:
    """Write the manifest of a run; `parts` are all of its parts in order.

    Raises:
        UserError: an image is missing, or another run has written its plan to the folder.
    """
    manifest = Manifest(
        plan=job.plan.digest,
        images=job.plan.images,
        parts=list(parts),
        **{name: sum(getattr(part, name) for part in parts) for name in _COUNTS},
    )
    if manifest.predictions + manifest.errors != manifest.images:
        raise UserError(
            f"{job.out.place}: {manifest.images} images in, {manifest.predictions} predictions and "
            f"{manifest.errors} errors out; run the same command again"
        )
    # Folders that cannot be locked may have got the plans of two runs that started at once.
    if read_plan(job.out) != job.plan:
        raise UserError(f"{job.out.place}: another run has written to this folder; choose another one")
    with writing(job.out.place):
        delete_temporary(job.out)
        job.out.write(MANIFEST, (manifest.model_dump_json(indent=1) + "\n").encode())
    return manifest


def first_error(job: Job, manifest: Manifest) -> str:
    """The first image of a run that cannot be read, and the reason."""
    number = next(part.number for part in manifest.parts if part.errors)
    row = pq.read_table(pa.BufferReader(job.out.read(errors_name(number)))).to_pylist()[0]
    return f"{row['image']}: {row['reason']}"


def read_part(job: Job, number: int) -> Part | None:
    """The contents of a part, read from its files; None if they are incomplete or of another plan."""
    ids = job.plan.ids(number)
    try:
        files = [job.out.read(part_name(number))]
        found = _parsed(files[0], tables.NAMED_PREDICTIONS, job.plan)
        if found.num_rows < len(ids):
            files.append(job.out.read(errors_name(number)))
        failed = _parsed(files[1], tables.FAILURES, job.plan) if files[1:] else None
    except (OSError, pa.ArrowException):
        return None
    scores = tables.people_rows(found)["score"]
    without = failed["image_id"].to_pylist() if failed else []
    if sorted(found["image_id"].to_pylist() + without) != list(ids):
        return None
    return Part(
        number=number,
        predictions=found.num_rows,
        errors=len(without),
        proposals=len(scores),
        people=int(pc.sum(pc.greater_equal(scores, SHOWN)).as_py() or 0),
        sha256=[hashlib.sha256(content).hexdigest() for content in files],
    )


def _parsed(content: bytes, schema: pa.Schema, plan: Plan) -> pa.Table:
    """The table in a file; empty if it is of another plan."""
    table = pq.read_table(pa.BufferReader(content))
    same = table.schema.equals(schema) and tables.params_hash_of(table.schema) == plan.digest
    return table if same else schema.empty_table()


class Worker:
    """Makes parts with a predictor that is loaded once.

    Raises:
        UserError: the checkpoint cannot be read, or is not the plan's.
    """

    def __init__(self, job: Job) -> None:
        # imported here: processes that only check parts need not wait for torch
        from personlab.predictor import Predictor

        weights = local_copy(job.weights)
        if _digest_of(weights) != job.plan.weights:
            raise UserError(f"{job.weights}: has changed since the run began; put the old weights back")
        self.job = job
        self._listing = retry(job.out.place, lambda: pq.ParquetFile(job.out.open(INPUTS)))
        self.predictor = Predictor.from_checkpoint(weights, job.plan.infer, job.plan.decode, gpu=job.gpu)

    def make_part(self, number: int) -> Part:
        """Predict the images of a part and write its files.

        Raises:
            UserError: they cannot be written, or the images' store does not answer.
        """
        predictions, failures = list[Row](), list[Row]()
        with writing(self.job.out.place), attempt(self.job.out, number) as this:
            named = self._one_by_one(number, this) if this.careful else self._side_by_side(number)
            for image_id, row in zip(self.job.plan.ids(number), named, strict=True):
                rows = failures if "reason" in row else predictions
                rows.append({"image_id": image_id} | row)
            self._write(errors_name(number), failures, tables.FAILURES)
            self._write(part_name(number), predictions, tables.NAMED_PREDICTIONS)
        part = read_part(self.job, number)
        if part is None:
            raise UserError(f"{self.job.out.place}: {part_name(number)} is not what was written to it")
        return part

    def _contents(self, number: int) -> Iterator[tuple[str, Fetch]]:
        entries = retry(self.job.out.place, lambda: self._listing.read_row_group(number))
        return Listing(self.job.listing_root, entries).read()

    def _side_by_side(self, number: int) -> Iterator[Row]:
        """The rows of a part, whose images are read ahead and, for a GPU, predicted by several threads."""
        contents = self._contents(number)
        fetched = prefetch(_fetch, contents, threads=_FETCH_THREADS, depth=_FETCH_DEPTH)
        decoded = prefetch(self._decode, fetched, threads=1, depth=_DECODE_DEPTH)
        if not self.job.gpu:
            return map(self._predict, decoded)
        from personlab.predictor import MOST_AT_A_TIME

        return prefetch(self._predict, decoded, threads=MOST_AT_A_TIME, depth=MOST_AT_A_TIME)

    def _one_by_one(self, number: int, this: Attempt) -> Iterator[Row]:
        """The rows of a part, each image read when the one before it is done."""
        for image_id, (name, fetch) in zip(self.job.plan.ids(number), self._contents(number), strict=True):
            if this.gives_up(image_id):
                error = UserError("kills the process that reads it or looks for people in it")
                yield self._predict(NamedImage(name, error))
            else:
                this.takes(image_id)
                yield self._predict(self._decode(_fetch((name, fetch))))

    def _decode(self, entry: tuple[str, bytes | UserError]) -> NamedImage:
        name, content = entry
        orientation = images.orientation(content) if isinstance(content, bytes) else 1
        return NamedImage(name, _result(self.job.decode, content), orientation)

    def _predict(self, image: NamedImage) -> Row:
        people = _result(self.predictor, image.pixels)
        if isinstance(people, UserError) or isinstance(image.pixels, UserError):
            return {"image": image.name, "reason": str(people)}
        height, width = image.pixels.shape[:2]
        size = {"height": height, "width": width, "orientation": image.orientation}
        return {"image": image.name, **size, "people": [person.to_row() for person in people]}

    def _write(self, name: str, rows: list[Row], schema: pa.Schema) -> None:
        if not rows and schema == tables.FAILURES:
            self.job.out.delete(name)  # of an earlier attempt
            return
        table = pa.Table.from_pylist(rows, schema=schema)
        self.job.out.write(name, tables.table_bytes(table, params_hash=self.job.plan.digest))


def _fetch(entry: tuple[str, Fetch]) -> tuple[str, bytes | UserError]:
    return entry[0], _result(entry[1])


def _result(function: Callable[..., T], *arguments: Any) -> T | UserError:
    """What a function returns, or the error that it raises or is given: no image must stop the others.

    Raises:
        UnreachableError: the images' store does not answer, which is no property of an image.
    """
    if errors := [each for each in arguments if isinstance(each, UserError)]:
        return errors[0]
    try:
        return function(*arguments)
    except UnreachableError:
        raise
    except UserError as error:
        return error
    except Exception as error:
        return UserError(f"{type(error).__name__}: {error}")
