"""Score the predictions of the validation images: metrics, plots, a report and a gallery."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from personlab import viz
from personlab.data.example import pixels
from personlab.data.transform import ImageArray
from personlab.metrics import report
from personlab.metrics.coco import ground_truth, match
from personlab.metrics.errors import Errors
from personlab.params import Params
from personlab.people import Annotation, Detection
from personlab.skeleton import Skeleton
from personlab.tables import read_dataset, shards
from personlab.tables.shards import Row
from personlab.utils.files import atomic_folder, write_atomic, write_json
from personlab.utils.progress import progress

log = logging.getLogger("personlab")

Detections = Mapping[int, Sequence[Detection]]  # by image id

_OVERVIEW_CELL: Final = (520, 200)  # width and height of a pair of pictures, pixels
_OVERVIEW_COLUMNS: Final = 3


@dataclass(frozen=True)
class Exhibit:
    """An image of the gallery."""

    row: Row  # of image shards, with `people`
    detections: Sequence[Detection]  # the confident ones, best first
    name: str  # rank and image id
    caption: str  # average precision of poses and masks


def run(params: Params, root: Path) -> None:
    """Write data/evaluate (report.md, gallery.jpg, gallery/NN-<image id>.jpg), metrics and plots.

    Raises:
        UserError: there are no images, or the predictions are those of other images.
    """
    val = root / "data/ingest/val"
    images = shards.annotated(val, root / "data/targets/val")
    detections = shards.detections(root / "data/infer", images, val)

    skeleton = read_dataset(root / "data").skeleton
    truth = ground_truth(images.values(), skeleton)
    keypoints = match(truth, detections, "keypoints")
    segm = match(truth, detections, "segm", params.decode.max_people)
    for matches in (keypoints, segm):
        log.info("evaluate: %d images, %s\n%s", len(images), matches.task, report.text(matches))
    errors = [Errors.of(matches, detections, progress) for matches in (keypoints, segm)]

    threshold = keypoints.best_threshold()  # of the best F1
    confident = threshold if math.isfinite(threshold) else 0.0  # not finite if no person is correct
    qualities = keypoints.per_image(), segm.per_image()
    chosen = _spread(_mean_quality(*qualities), params.evaluate.gallery)
    files = shards.read_images(val, chosen)  # of these only: 5000 files have a gigabyte
    rows = [images[image_id] | files[image_id] for image_id in chosen]
    exhibits = _exhibits(rows, detections, confident, qualities)
    with atomic_folder(root / "data/evaluate") as output:
        _write_gallery(output, exhibits, skeleton)
        facts = _facts(images, detections, confident)
        picture = "gallery.jpg" if exhibits else None
        text = report.markdown((keypoints, segm), errors, facts=facts, picture=picture)
        write_atomic(output / "report.md", text)
    write_json(root / "data/metrics/evaluate.json", {each.task: report.scores(each) for each in errors})
    curves = report.precision_recall(keypoints) + report.precision_recall(segm)
    write_json(root / "data/plots/evaluate/precision_recall.json", curves)
    write_json(root / "data/plots/evaluate/oks_per_keypoint.json", report.oks_per_keypoint(keypoints))
    write_json(root / "data/plots/evaluate/errors_per_keypoint.json", report.errors_per_keypoint(errors[0]))
    log.info("evaluate: %d pictures in data/evaluate/gallery, worst to best", len(exhibits))


# --- the gallery --------------------------------------------------------------------------------------------


def _mean_quality(poses: Mapping[int, float], masks: Mapping[int, float]) -> dict[int, float]:
    """Mean quality of poses and masks by image id; without images for which neither is defined."""
    defined = {i: [q for q in (poses[i], masks[i]) if not math.isnan(q)] for i in poses}
    return {image_id: sum(values) / len(values) for image_id, values in defined.items() if values}


def _spread(quality: Mapping[int, float], count: int) -> list[int]:
    """`count` images from the worst to the best, evenly spaced in rank."""
    ranked = sorted(quality, key=lambda image_id: (quality[image_id], image_id))
    ranks = np.linspace(0, len(ranked) - 1, min(count, len(ranked))).round().astype(int)
    return [ranked[rank] for rank in ranks]


def _exhibits(
    rows: Sequence[Row], detections: Detections, confident: float, qualities: Sequence[Mapping[int, float]]
) -> list[Exhibit]:
    digits = max(2, len(str(len(rows))))
    return [
        Exhibit(
            row=row,
            detections=[person for person in detections[row["image_id"]] if person.score >= confident],
            name=f"{rank:0{digits}}-{row['image_id']}",
            caption="poses {}, masks {}".format(*(_percent(each[row["image_id"]]) for each in qualities)),
        )
        for rank, row in enumerate(rows, start=1)
    ]


def _percent(quality: float) -> str:
    return "n/a" if math.isnan(quality) else f"{quality:.0%}"


def _write_gallery(output: Path, exhibits: Sequence[Exhibit], skeleton: Skeleton) -> None:
    """Write gallery/<name>.jpg for each exhibit, and gallery.jpg with all of them."""
    (output / "gallery").mkdir()
    pairs: list[ImageArray] = []
    for exhibit in progress(exhibits, label="evaluate gallery"):
        pair = _pictures(exhibit, skeleton)
        people = sum(not person["crowd"] for person in exhibit.row["people"])
        captions = [
            f"image {exhibit.row['image_id']}, annotated: {people}",
            f"detected: {len(exhibit.detections)} ({exhibit.caption})",
        ]
        sheet = viz.contact_sheet(pair, 2, captions)
        viz.write_jpeg(output / "gallery" / f"{exhibit.name}.jpg", sheet)
        pairs.append(np.hstack(pair))
    if pairs:
        captions = [f"{exhibit.name}: {exhibit.caption}" for exhibit in exhibits]
        overview = viz.contact_sheet(pairs, _OVERVIEW_COLUMNS, captions, cell=_OVERVIEW_CELL)
        viz.write_jpeg(output / "gallery.jpg", overview)


def _pictures(exhibit: Exhibit, skeleton: Skeleton) -> tuple[ImageArray, ImageArray]:
    """The image with the annotated and with the detected people."""
    image = pixels(exhibit.row)
    people = sorted(map(Annotation.from_row, exhibit.row["people"]), key=lambda person: person.area)
    annotated = viz.draw_annotations(image, people, skeleton)
    return annotated, viz.draw_people(image, exhibit.detections, skeleton)


# --- the report ---------------------------------------------------------------------------------------------


def _facts(images: Mapping[int, Row], detections: Detections, confident: float) -> list[str]:
    people = [person for row in images.values() for person in row["people"] if not person["crowd"]]
    posed = sum(any(person["visibility"]) and not person["imputed"] for person in people)
    detected = [person for image in detections.values() for person in image]
    count = sum(person.score >= confident for person in detected)
    return [
        f"{len(images)} images",
        f"{len(people)} annotated people (without crowds), {posed} with keypoints",
        f"{len(detected)} detections, {count} of them confident (score at least {confident:.3f})",
    ]
