"""The plan of a batch inference run, its parts and its manifest, as files in a folder.

A plan divides the sorted images of a run into parts of equal size. A part is one unit of work: its
predictions are written to part-00000.parquet (tables.NAMED_PREDICTIONS), after the images that cannot be
read, if any, to errors-00000.parquet (tables.FAILURES). Files are written atomically, and their bytes depend
on the plan and the images alone. A run that was interrupted anywhere, or done twice, therefore ends with the
same files (on a GPU, whose memory decides how many images pass it together, but for rounding).
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import ValidationError

from personlab import __version__, tables
from personlab.data.transform import ImageArray
from personlab.errors import UserError
from personlab.inference.listing import Listing
from personlab.params import Decode, Infer, Section
from personlab.people import SHOWN
from personlab.skeleton import Skeleton
from personlab.tables.shards import part_name
from personlab.utils.storage import LOCK, Folder, writing

Row = dict[str, Any]
DecodeImage = Callable[[bytes], ImageArray]

PLAN: Final = "plan.json"
INPUTS: Final = "inputs.parquet"
MANIFEST: Final = "manifest.json"
_COUNTS: Final = ("predictions", "errors", "proposals", "people")  # of a part, summed in the manifest


# What differs between two plans, as messages name it, where that is not the field's name.
_IN_WORDS: Final = {
    "version": "version of personlab",
    "part_size": "part size",
    "inputs": "images",
    "skeleton": "weights",
    "infer": "sides, stride or precision",
    "decode": "decoding parameters",
}


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
        weights=digest_of(weights),
        skeleton=network.skeleton,
        infer=infer,
        decode=decoding(network, max_people, decode),
    )


def write_plan(job: Job, listing: Listing) -> None:
    """Write the plan to the run's folder, or check that the plan there is the same.

    Raises:
        UserError: the folder holds another run or other files, or cannot be written to.
    """
    check_folder(job)
    with writing(job.out.place):
        job.out.write(INPUTS, _inputs(listing, job.plan.part_size))
        job.out.write(PLAN, (job.plan.model_dump_json(indent=2) + "\n").encode())


def check_folder(job: Job) -> None:
    """Check that the run's folder is empty or absent, or holds this run.

    Raises:
        UserError: it holds another run or other files.
    """
    stored = read_plan(job.out)
    if stored:
        changed = {
            _IN_WORDS.get(name, name)
            for name in Plan.model_fields
            if getattr(stored, name) != getattr(job.plan, name)
            and (name != "inputs" or stored.part_size == job.plan.part_size)  # the file depends on it
        }
        if changed:
            raise UserError(
                f"{job.out.place}: holds a run with other {', '.join(sorted(changed))}; choose another folder"
            )
    elif others := sorted(name for name in job.out.files() if not name.startswith(".") and name != INPUTS):
        raise UserError(f"{job.out.place}: holds {others[0]} and no run; choose an empty folder")


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


def digest_of(weights: Path) -> str:
    """SHA-256 of a checkpoint and its card."""
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
