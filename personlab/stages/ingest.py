"""COCO JSON and image files to validated tables and image shards; every record that is rejected is explained.

Writes to data/ingest people.parquet, rejects.parquet, the images packed into {train,val}/part-*.parquet, and
sheet.jpg, a look at the data. After this stage nothing reads an image file. Rows in = rows out + rejects (+
images left out because they show no people), counted per split in data/metrics/ingest.json.
"""

import csv
import io
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Final

from personlab import params as parameters
from personlab import tables, viz
from personlab.data import coco
from personlab.data.example import pixels
from personlab.data.transform import ImageArray
from personlab.errors import UserError
from personlab.params import Params
from personlab.people import Annotation
from personlab.stages.acquire import check_unchanged, image_root
from personlab.tables import SPLITS, Split, shards
from personlab.utils.files import atomic_folder, write_atomic, write_json
from personlab.utils.progress import progress

log = logging.getLogger("personlab")

SMALL: Final = 32**2  # COCO's small: an area of fewer pixels
SHOWN: Final = 5  # reasons in the error message
SHEET: Final = 24  # images of the contact sheet
KINDS: Final = ("with_keypoints", "small_without_keypoints", "large_without_keypoints", "crowds")

Metrics = dict[str, dict[str, int]]  # of a split: of its images and its people


@dataclass(frozen=True)
class Ingested:
    """One split, checked: every record of its annotation file is in one of these."""

    images: list[coco.Image]
    people: list[coco.Person]
    rejected_images: list[coco.Reject]
    rejected_people: list[coco.Reject]
    left_out: list[coco.Image]  # they show nobody

    @property
    def rejects(self) -> list[coco.Reject]:
        return self.rejected_images + self.rejected_people

    @property
    def rows_in(self) -> int:
        return len(self.images) + len(self.left_out) + len(self.people) + len(self.rejects)


def run(params: Params, root: Path) -> None:
    """Check every record and image, pack the images, and write the tables.

    Raises:
        UserError: the data changed since acquire, a file is not COCO's, no image of a split is left, or more
            is rejected than params.ingest.max_reject_fraction; the message gives the first reasons.
    """
    check_unchanged(root)
    folder = image_root(root)
    train_only_people = params.ingest.train_images_with_people_only
    splits = {
        split: _ingest(coco.Layout(folder, split), with_people_only=train_only_people and split == "train")
        for split in SPLITS
    }
    _check_rejects(splits, params.ingest.max_reject_fraction, root)
    digest = tables.params_hash(params.ingest)
    people = coco.people_table({split: found.people for split, found in splits.items()})
    with atomic_folder(root / "data/ingest") as output:
        for split, found in splits.items():
            _pack(found.images, folder, output / split, params.ingest, digest)
        tables.write_table(people, output / "people.parquet", params_hash=digest)
        rejects = coco.rejects_table(_rejects(splits))
        tables.write_table(rejects, output / "rejects.parquet", params_hash=digest)
        viz.write_jpeg(output / "sheet.jpg", _sheet(splits["train"], output / "train"))
    metrics = {split: _metrics(found) for split, found in splits.items()}
    write_json(root / "data/metrics/ingest.json", metrics)
    for split, counts in metrics.items():
        _log(split, counts)


def _pack(
    images: Sequence[coco.Image], folder: Path, output: Path, settings: parameters.Ingest, digest: str
) -> None:
    """Write the files of some images to shards, in the order of their ids."""
    ordered = sorted(images, key=lambda image: image.id)
    rows = (
        {
            "image_id": image.id,
            "file_name": image.file_name,
            "height": image.height,
            "width": image.width,
            "image": (folder / image.file_name).read_bytes(),
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


def _ingest(layout: coco.Layout, *, with_people_only: bool) -> Ingested:
    """Check a split; `with_people_only` leaves out the images that show nobody."""
    records = coco.load(layout)
    label, total = f"ingest: {layout.split} images", len(records.images)
    images = list(progress(coco.check_images(layout, records.images), total=total, label=label))
    by_id = coco.images_by_id(records.images, images)
    label, total = f"ingest: {layout.split} people", len(records.people)
    people = list(progress(coco.check_people(layout, records.people, by_id), total=total, label=label))

    accepted = [image for image in images if isinstance(image, coco.Image)]
    persons = [person for person in people if isinstance(person, coco.Person)]
    showing = {person.image_id for person in persons} if with_people_only else {i.id for i in accepted}
    return Ingested(
        images=[image for image in accepted if image.id in showing],
        people=persons,
        rejected_images=[image for image in images if isinstance(image, coco.Reject)],
        rejected_people=[person for person in people if isinstance(person, coco.Reject)],
        left_out=[image for image in accepted if image.id not in showing],
    )


def _sheet(train: Ingested, images: Path) -> ImageArray:
    """The first training images with their annotations."""
    people = defaultdict(list)
    for person in train.people:
        people[person.image_id].append(person.annotation)
    first = [image.id for image in train.images[:SHEET]]
    rows = shards.read_images(images, first)
    shown = [viz.draw_annotations(pixels(rows[image_id]), people[image_id]) for image_id in first]
    return viz.contact_sheet(shown, columns=6, cell=(320, 240))


def _rejects(splits: Mapping[Split, Ingested]) -> list[coco.Reject]:
    return [reject for found in splits.values() for reject in found.rejects]


def _check_rejects(splits: Mapping[Split, Ingested], allowed: float, root: Path) -> None:
    """Refuse data of which too much is rejected; the list is written where it outlives the failed stage."""
    rejects = _rejects(splits)
    listed = root / "runs/ingest-rejects.csv"
    listed.unlink(missing_ok=True)
    share = len(rejects) / sum(found.rows_in for found in splits.values())
    if share > allowed:
        write_atomic(listed, _csv(rejects))
        first = "".join(f"\n  {r.file}, {r.record}: {r.reason}" for r in rejects[:SHOWN])
        raise UserError(
            f"ingest: {len(rejects)} records ({share:.1%}) rejected, more than ingest.max_reject_fraction "
            f"allows ({allowed:.1%}). Repair the data, or allow more. All are listed in {listed}; "
            f"the first:{first}"
        )
    for split, found in splits.items():
        if not found.images:
            raise UserError(
                f"ingest: no image of {split} is left: {len(found.rejected_images)} rejected, "
                f"{len(found.left_out)} left out since they show nobody; use other data (acquire.source)"
            )


def _csv(rejects: Iterable[coco.Reject]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(field.name for field in fields(coco.Reject))
    writer.writerows(astuple(reject) for reject in rejects)
    return text.getvalue()


def _metrics(found: Ingested) -> Metrics:
    kinds = Counter(_kind(person.annotation) for person in found.people)
    with_keypoints = {p.image_id for p in found.people if _kind(p.annotation) == "with_keypoints"}
    images = {
        "in": len(found.images) + len(found.left_out) + len(found.rejected_images),
        "out": len(found.images),
        "left_out": len(found.left_out),
        "rejected": len(found.rejected_images),
        "with_keypoints": len(with_keypoints),
    }
    people = {
        "in": len(found.people) + len(found.rejected_people),
        "out": len(found.people),
        "rejected": len(found.rejected_people),
        **{kind: kinds[kind] for kind in KINDS},
    }
    return {"images": images, "people": people}


def _kind(person: Annotation) -> str:
    if person.crowd:
        return "crowds"
    if person.visibility.any():
        return "with_keypoints"
    return "small_without_keypoints" if person.area < SMALL else "large_without_keypoints"


def _log(split: Split, metrics: Metrics) -> None:
    images, people = metrics["images"], metrics["people"]
    log.info(
        "ingest: %s: %d images in = %d out + %d left out (they show nobody) + %d rejected",
        *(split, images["in"], images["out"], images["left_out"], images["rejected"]),
    )
    kinds = ", ".join(f"{people[kind]} {kind.replace('_', ' ')}" for kind in KINDS)
    log.info(
        "ingest: %s: %d people in = %d out (%s) + %d rejected",
        *(split, people["in"], people["out"], kinds, people["rejected"]),
    )
