"""A worker of batch inference: it makes the parts of a run, with or without a cluster."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from personlab import tables
from personlab.data import images
from personlab.data.transform import ImageArray
from personlab.errors import UserError
from personlab.inference.job import INPUTS, Job, Part, Row, digest_of, errors_name, read_part
from personlab.inference.listing import Fetch, Listing
from personlab.inference.local_copy import local_copy
from personlab.inference.poison_images import Attempt, attempt
from personlab.tables.shards import part_name
from personlab.utils.prefetch import prefetch
from personlab.utils.storage import UnreachableError, retry, writing

if TYPE_CHECKING:  # processes that only check parts need not wait for torch
    from personlab.codec.decode import Level

    Levels = list[Level] | UserError  # of an image, or the reason why there are none

T = TypeVar("T")

_FETCH_THREADS = 8  # object stores are slow to answer
_FETCH_DEPTH, _DECODE_DEPTH = 16, 2  # images
_BATCHES_A_PART = 4  # on a GPU, at least: while one passes the network, others are read and decoded


@dataclass(frozen=True)
class NamedImage:
    """pixels: or why the image cannot be read. orientation: EXIF's, of the file; 1 is upright."""

    name: str
    pixels: ImageArray | UserError
    orientation: int = 1


class DeviceError(UserError):
    """The GPU failed, which is no property of an image. After most CUDA errors every later call fails."""


class Worker:
    """Makes parts with a predictor that is loaded once.

    Args:
        gpu_share: of a GPU's memory that is for this worker.

    Raises:
        UserError: the checkpoint cannot be read, or is not the plan's.
    """

    def __init__(self, job: Job, gpu_share: float = 1.0) -> None:
        from personlab.predictor import Predictor

        weights = local_copy(job.weights)
        if digest_of(weights) != job.plan.weights:
            raise UserError(f"{job.weights}: has changed since the run began; put the old weights back")
        self.job = job
        self._listing = retry(job.out.place, lambda: pq.ParquetFile(job.out.open(INPUTS)))
        self.predictor = Predictor.from_checkpoint(weights, job.plan.infer, job.plan.decode, gpu=job.gpu)
        most = max(1, job.plan.part_size // _BATCHES_A_PART)
        self.batch_size = min(self.predictor.batch_size(gpu_share), most)

    def make_part(self, number: int) -> Part:
        """Predict the images of a part and write its files.

        Raises:
            UserError: they cannot be written, the images' store does not answer, or the GPU fails.
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
        """The rows of a part, whose images are read ahead."""
        contents = self._contents(number)
        fetched = prefetch(_fetch, contents, threads=_FETCH_THREADS, depth=_FETCH_DEPTH)
        if self.job.gpu:
            return self._in_batches(fetched)
        decoded = prefetch(self._decode, fetched, threads=1, depth=_DECODE_DEPTH)
        return map(self._row, chain.from_iterable(self._with_levels([each]) for each in decoded))

    def _in_batches(self, fetched: Iterable[tuple[str, bytes | UserError]]) -> Iterator[Row]:
        """Several images pass the network together, as many as the GPU holds but at most a quarter of the
        part, while threads decode those after and the fields of those before.
        """
        from personlab.predictor import BATCHES_AT_A_TIME, MOST_AT_A_TIME

        depth = max(self.batch_size, MOST_AT_A_TIME)
        decoded = prefetch(self._decode, fetched, threads=MOST_AT_A_TIME, depth=depth)
        batches = prefetch(
            lambda batch: list(self._with_levels(batch)),
            _batches(decoded, self.batch_size),
            threads=BATCHES_AT_A_TIME,
            depth=BATCHES_AT_A_TIME - 1,
        )
        return prefetch(self._row, chain.from_iterable(batches), threads=MOST_AT_A_TIME, depth=depth)

    def _one_by_one(self, number: int, this: Attempt) -> Iterator[Row]:
        """The rows of a part, each image read when the one before it is done."""
        for image_id, (name, fetch) in zip(self.job.plan.ids(number), self._contents(number), strict=True):
            if this.gives_up(image_id):
                error = UserError("kills the process that reads it or looks for people in it")
                yield self._row((NamedImage(name, error), error))
            else:
                this.takes(image_id)
                yield from map(self._row, self._with_levels([self._decode(_fetch((name, fetch)))]))

    def _decode(self, entry: tuple[str, bytes | UserError]) -> NamedImage:
        name, content = entry
        orientation = images.orientation(content) if isinstance(content, bytes) else 1
        return NamedImage(name, _result(self.job.decode, content), orientation)

    def _with_levels(self, batch: Sequence[NamedImage]) -> Iterator[tuple[NamedImage, "Levels"]]:
        """Images and their fields, or the reason why there are none."""
        pixels = [each.pixels for each in batch if not isinstance(each.pixels, UserError)]
        found = _result(self._levels, pixels)
        if isinstance(found, UserError) and len(batch) > 1:  # one image's fault, or not enough memory for all
            for each in batch:
                yield from self._with_levels([each])
            return
        levels: Iterator[Levels] = iter([found]) if isinstance(found, UserError) else iter(found)
        for each in batch:
            yield each, each.pixels if isinstance(each.pixels, UserError) else next(levels)

    def _levels(self, pixels: Sequence[ImageArray]) -> list[list["Level"]]:
        try:
            return self.predictor.levels(pixels)
        except RuntimeError as error:
            if self.job.gpu and len(pixels) == 1 and _is_of_the_gpu(error):
                raise DeviceError(f"the GPU failed: {error}; run the same command to resume") from error
            raise

    def _row(self, found: tuple[NamedImage, "Levels"]) -> Row:
        image, levels = found
        people = _result(self.predictor.people, image.pixels, levels)
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


def _is_of_the_gpu(error: RuntimeError) -> bool:
    """Whether the GPU is to blame: it has too little memory for one image, or does not compute any more."""
    import torch

    if isinstance(error, torch.OutOfMemoryError):
        return True
    try:
        torch.ones(1, device="cuda").item()
    except (RuntimeError, AssertionError):  # AssertionError: PyTorch without CUDA
        return True
    return False


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items; the last one may be shorter."""
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch


def _fetch(entry: tuple[str, Fetch]) -> tuple[str, bytes | UserError]:
    return entry[0], _result(entry[1])


def _result(function: Callable[..., T], *arguments: Any) -> T | UserError:
    """What a function returns, or the error that it raises or is given, so that no image stops the others.

    Raises:
        UnreachableError, DeviceError: which are no property of an image.
    """
    if errors := [each for each in arguments if isinstance(each, UserError)]:
        return errors[0]
    try:
        return function(*arguments)
    except (UnreachableError, DeviceError):
        raise
    except UserError as error:
        return error
    except Exception as error:
        return UserError(f"{type(error).__name__}: {error}")
