"""Check COCO annotations and image files, and write validated tables and image shards.

Writes people.parquet, rejects.parquet, dataset.json (the keypoints), the image shards
{train,val}/part-*.parquet and sheet.jpg (a sample of the annotations) to data/ingest. Later stages read no
image files. Rows in = rows out + rejects (+ images without people, if these are left out), counted per split
in data/metrics/ingest.json.
"""

import csv
import io
import logging
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Final

from personlab import params as parameters
from personlab import tables, viz
from personlab.data import category, coco
from personlab.data.category import Category
from personlab.data.images import pixels, stored_as_annotated
from personlab.data.transform import ImageArray
from personlab.errors import UserError, about, first
from personlab.params import Params
from personlab.people import Annotation, have_masks
from personlab.skeleton import Skeleton, words
from personlab.stages.acquire import layouts, read_source
from personlab.tables import SPLITS, Dataset, Split, shards
from personlab.utils.files import atomic_folder, write_atomic, write_json
from personlab.utils.progress import progress

log = logging.getLogger("personlab")

_SMALL: Final = 32**2  # COCO's small: an area below, pixels
_LISTED_KINDS: Final = 5  # in the error message
_SHEET_IMAGES: Final = 24
_KINDS: Final = ("with_keypoints", "small_without_keypoints", "large_without_keypoints", "crowds")

Metrics = dict[str, dict[str, int]]  # counts of a split's images and people


@dataclass(frozen=True)
class Ingested:
    """A split's records, each in one of these lists."""

    images: list[coco.Image]
    people: list[coco.Person]
    category: Category
    rejected_images: list[coco.Reject]
    rejected_people: list[coco.Reject]
    left_out: list[coco.Image]  # without people

    @property
    def rejects(self) -> list[coco.Reject]:
        return self.rejected_images + self.rejected_people

    @property
    def rows_in(self) -> int:
        return len(self.images) + len(self.left_out) + len(self.people) + len(self.rejects)


def run(params: Params, root: Path) -> None:
    """Check every record and image, and write tables and shards.

    Raises:
        UserError: annotations changed since acquire, a file is not COCO's, a split has no valid images, or
            more records than params.ingest.max_reject_fraction are rejected.
    """
    found, categories = layouts(root), read_source(root).categories
    records = {
        name: coco.load(found[name].annotations, categories).of(name, found[name].share) for name in SPLITS
    }
    _check_keypoints(found, records, params.skeleton)
    people_only = params.ingest.train_images_with_people_only
    splits = {
        name: _ingest(found[name], records[name], with_people_only=people_only and name == "train")
        for name in SPLITS
    }
    _check_rejects(splits, params.ingest.max_reject_fraction, root)
    dataset = _dataset(splits["train"], params.skeleton)
    digest = tables.params_hash(params.ingest)
    people = coco.people_table({name: split.people for name, split in splits.items()})
    with atomic_folder(root / "data/ingest") as output:
        for name, split in splits.items():
            _pack(split.images, found[name].root, output / name, params.ingest, digest)
        tables.write_table(people, output / "people.parquet", params_hash=digest)
        rejects = coco.rejects_table(_rejects(splits))
        tables.write_table(rejects, output / "rejects.parquet", params_hash=digest)
        dataset.write(output)
        viz.write_jpeg(output / "sheet.jpg", _sheet(splits["train"], output / "train", dataset.skeleton))
    metrics = {name: _metrics(split) for name, split in splits.items()}
    write_json(root / "data/metrics/ingest.json", metrics)
    for name, counts in metrics.items():
        _log(name, counts)
        _warn_of_exif(name, splits[name].images)
    _warn_of_overlap(splits)


def _check_keypoints(
    layouts: Mapping[Split, coco.Layout], records: Mapping[Split, coco.Records], given: parameters.Skeleton
) -> None:
    """Check the keypoints of the splits before images are read, which may take hours.

    Raises:
        UserError: they differ, or `given` does not fit them.
    """
    train, val = (records[name].category for name in SPLITS)
    if records["val"].people and [*map(words, train.keypoints)] != [*map(words, val.keypoints)]:
        raise UserError(
            f"ingest: the splits have other keypoints: train {len(train.keypoints)} "
            f"({first(train.keypoints)}), val {len(val.keypoints)} ({first(val.keypoints)})"
        )
    with about(layouts["train"].annotations):
        category.skeleton(train, (), given)


def _dataset(train: Ingested, given: parameters.Skeleton) -> Dataset:
    """The keypoints, from the training people and their category, and whether any of them has a mask."""
    people = [person.annotation for person in train.people]
    skeleton = category.skeleton(train.category, people, given)
    category.warn(train.category, skeleton, given)
    return Dataset(skeleton, masks=have_masks(people))


def _pack(
    images: Sequence[coco.Image], folder: Path, output: Path, settings: parameters.Ingest, digest: str
) -> None:
    """Write image files to shards, in the order of the image ids."""
    ordered = sorted(images, key=lambda image: image.id)
    rows = (
        {
            "image_id": image.id,
            "file_name": image.file_name,
            "height": image.height,
            "width": image.width,
            "image": stored_as_annotated(folder / image.file_name, image.height, image.width),
        }
        for image in progress(ordered, label=f"ingest: pack {output.name}")
    )
    shards.write_images(
        rows,
        output,
        shard_bytes=settings.shard_mb * 2**20,
        row_group=settings.row_group,
        params_hash=digest,
    )


def _ingest(layout: coco.Layout, records: coco.Records, *, with_people_only: bool) -> Ingested:
    """Check a split. with_people_only: leave out images without people."""
    label, total = f"ingest: {layout.split} images", len(records.images)
    images = list(progress(coco.check_images(layout, records.images), total=total, label=label))
    by_id = coco.images_by_id(records.images, images)
    label, total = f"ingest: {layout.split} people", len(records.people)
    checked = coco.check_people(layout, records.people, by_id, records.category.keypoints)
    people = list(progress(checked, total=total, label=label))

    accepted = [image for image in images if isinstance(image, coco.Image)]
    persons = [person for person in people if isinstance(person, coco.Person)]
    kept = {person.image_id for person in persons} if with_people_only else {i.id for i in accepted}
    return Ingested(
        images=[image for image in accepted if image.id in kept],
        people=persons,
        category=records.category,
        rejected_images=[image for image in images if isinstance(image, coco.Reject)],
        rejected_people=[person for person in people if isinstance(person, coco.Reject)],
        left_out=[image for image in accepted if image.id not in kept],
    )


def _sheet(train: Ingested, images: Path, skeleton: Skeleton) -> ImageArray:
    """The first training images with their annotations."""
    people = defaultdict(list)
    for person in train.people:
        people[person.image_id].append(person.annotation)
    shown = [image.id for image in train.images[:_SHEET_IMAGES]]
    rows = shards.read_images(images, shown)
    drawn = [viz.draw_annotations(pixels(rows[image_id]), people[image_id], skeleton) for image_id in shown]
    return viz.contact_sheet(drawn, columns=6, cell=(320, 240))


def _rejects(splits: Mapping[Split, Ingested]) -> list[coco.Reject]:
    return [reject for split in splits.values() for reject in split.rejects]


def _check_rejects(splits: Mapping[Split, Ingested], allowed: float, root: Path) -> None:
    """Raise a UserError if a split is empty, or too many records are rejected, which are listed in runs/."""
    rejects = _rejects(splits)
    report = root / "runs/ingest-rejects.csv"  # DVC deletes the outputs of a stage that fails
    report.unlink(missing_ok=True)
    share = len(rejects) / sum(split.rows_in for split in splits.values())
    if share > allowed:
        write_atomic(report, _csv(rejects))
        raise UserError(
            f"ingest: {len(rejects)} records ({share:.1%}) rejected, more than ingest.max_reject_fraction "
            f"allows ({allowed:.1%}). Correct the data, or raise the limit. All are listed in {report}; "
            f"the first of each kind:{_kinds(rejects)}"
        )
    for name, split in splits.items():
        if not split.images:
            raise UserError(
                f"ingest: no images in {name}: {len(split.rejected_images)} rejected, {len(split.left_out)} "
                "without people left out; use other data (acquire.source)"
            )


def _kinds(rejects: Iterable[coco.Reject]) -> str:
    """A line for each of the first kinds of rejects. Of one kind are reasons that differ in numbers only."""
    kinds = defaultdict[str, list[coco.Reject]](list)
    for reject in rejects:
        kinds[re.sub(r"[\d.]+", "0", reject.reason)].append(reject)
    return "".join(
        f"\n  {one.file}, {one.record}: {one.reason}" + (f" (and {len(more)} more like it)" if more else "")
        for one, *more in list(kinds.values())[:_LISTED_KINDS]
    )


def _csv(rejects: Iterable[coco.Reject]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(field.name for field in fields(coco.Reject))
    writer.writerows(astuple(reject) for reject in rejects)
    return text.getvalue()


def _metrics(split: Ingested) -> Metrics:
    kinds = Counter(_kind(person.annotation) for person in split.people)
    with_keypoints = {p.image_id for p in split.people if _kind(p.annotation) == "with_keypoints"}
    images = {
        "in": len(split.images) + len(split.left_out) + len(split.rejected_images),
        "out": len(split.images),
        "left_out": len(split.left_out),
        "rejected": len(split.rejected_images),
        "with_keypoints": len(with_keypoints),
    }
    people = {
        "in": len(split.people) + len(split.rejected_people),
        "out": len(split.people),
        "rejected": len(split.rejected_people),
        **{kind: kinds[kind] for kind in _KINDS},
        **_inferred(split),
    }
    return {"images": images, "people": people}


def _inferred(split: Ingested) -> dict[str, int]:
    """How many people have each value that was inferred (data/person_record.py)."""
    return dict(sorted(Counter(note for person in split.people for note in person.notes).items()))


def _kind(person: Annotation) -> str:
    if person.crowd:
        return "crowds"
    if person.visibility.any():
        return "with_keypoints"
    return "small_without_keypoints" if person.area < _SMALL else "large_without_keypoints"


def _warn_of_exif(name: Split, images: Sequence[coco.Image]) -> None:
    if unclear := [image.file_name for image in images if image.orientation_is_unclear]:
        log.warning(
            "ingest: %s: %d images have an EXIF orientation that their size does not tell apart (%s): the "
            "annotations are taken to mean the pixels as stored. If data/ingest/sheet.jpg shows them beside "
            "the people, turn the files as EXIF says ('mogrify -auto-orient')",
            *(name, len(unclear), first(unclear)),
        )


def _warn_of_overlap(splits: Mapping[Split, Ingested]) -> None:
    train, val = ({image.file_name for image in splits[name].images} for name in SPLITS)
    if both := sorted(train & val):
        log.warning(
            "ingest: %d images are in both train and val (%s), so AP will be too high: name other images in "
            "acquire.layout or, for YOLO, in data.yaml",
            *(len(both), first(both)),
        )


def _log(name: Split, metrics: Metrics) -> None:
    images, people = metrics["images"], metrics["people"]
    log.info(
        "ingest: %s: %d images in = %d out + %d without people left out + %d rejected",
        *(name, images["in"], images["out"], images["left_out"], images["rejected"]),
    )
    kinds = ", ".join(f"{people[kind]} {kind.replace('_', ' ')}" for kind in _KINDS)
    log.info(
        "ingest: %s: %d people in = %d out (%s) + %d rejected",
        *(name, people["in"], people["out"], kinds, people["rejected"]),
    )
    known = {"in", "out", "rejected", *_KINDS}
    if inferred := ", ".join(f"{note} ({count})" for note, count in people.items() if note not in known):
        log.info("ingest: %s: inferred, with the number of people: %s", name, inferred)
