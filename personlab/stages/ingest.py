"""COCO JSON and JPEGs to validated tables; every record that is not taken over is explained.

Writes images.parquet, people.parquet, rejects.parquet, metrics.json and sheet.jpg (a look at the data) to
data/ingest. Rows in are rows out and rejects (and images that are left out on purpose), counted for images
and people of each split.
"""

import csv
import io
import json
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Final

from personlab import tables
from personlab.data import coco
from personlab.data.crops import read_image
from personlab.data.transform import ImageArray
from personlab.errors import UserError
from personlab.params import Params
from personlab.people import Annotation
from personlab.stages.acquire import check_unchanged, image_root
from personlab.tables import SPLITS, Split
from personlab.utils.files import atomic_folder, write_atomic
from personlab.utils.progress import progress
from personlab.viz import contact_sheet, draw_annotations, write_jpeg

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
    """Check every record and image, and write the tables.

    Raises:
        UserError: the data changed since acquire, a file is not COCO's, nothing is left of a split, or more
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
    metrics = {split: _metrics(found) for split, found in splits.items()}
    outputs = {
        "images": coco.images_table({split: found.images for split, found in splits.items()}),
        "people": coco.people_table({split: found.people for split, found in splits.items()}),
        "rejects": coco.rejects_table(_rejects(splits)),
    }
    with atomic_folder(root / "data/ingest") as output:
        for name, table in outputs.items():
            path = output / f"{name}.parquet"
            tables.write_table(table, path, params_hash=tables.params_hash(params.ingest))
        write_atomic(output / "metrics.json", json.dumps(metrics, indent=2) + "\n")
        write_jpeg(output / "sheet.jpg", _sheet(splits["train"], folder))
    for split, counts in metrics.items():
        _log(split, counts)


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


def _sheet(train: Ingested, folder: Path) -> ImageArray:
    """The first training images with what is annotated on them: look at it before you believe it."""
    people = defaultdict(list)
    for person in train.people:
        people[person.image_id].append(person.annotation)
    shown = [
        draw_annotations(read_image(folder / image.file_name), people[image.id])
        for image in train.images[:SHEET]
    ]
    return contact_sheet(shown, columns=6, cell=(320, 240))


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
