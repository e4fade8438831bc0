"""Score the predictions of the validation images: metrics, plots, a report and a gallery."""

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from personlab.metrics import report
from personlab.metrics.coco import ground_truth, match
from personlab.metrics.errors import Errors
from personlab.params import Params
from personlab.people import Detection
from personlab.tables import read_dataset, shards
from personlab.tables.shards import Row
from personlab.utils.files import atomic_folder, write_atomic, write_json, write_tsv
from personlab.utils.progress import progress
from personlab.viz.gallery import Gallery

log = logging.getLogger("personlab")

Detections = Mapping[int, Sequence[Detection]]  # by image id


def run(params: Params, root: Path) -> None:
    """Write data/evaluate (report.md, gallery.jpg, gallery.json, gallery/NN-<image id>.jpg), metrics, plots.

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
    evaluations = (keypoints, segm)
    intervals = [report.ap_interval(matches) for matches in evaluations]
    errors = [Errors.of(matches, detections, progress) for matches in evaluations]

    threshold = keypoints.best_threshold()  # of the best F1
    confident = threshold if math.isfinite(threshold) else 0.0  # not finite if no person is correct
    gallery = Gallery(keypoints, segm, confident, skeleton)
    chosen = gallery.choose(params.evaluate.gallery)
    files = shards.read_images(val, chosen)  # of these only: 5000 files have a gigabyte
    with atomic_folder(root / "data/evaluate") as output:
        pictures = gallery.write(output, [images[i] | files[i] for i in chosen], detections)
        write_json(output / "gallery.json", pictures)
        facts = _facts(images, detections, confident)
        picture = "gallery.jpg" if pictures else None
        text = report.markdown(evaluations, errors, intervals=intervals, facts=facts, picture=picture)
        write_atomic(output / "report.md", text)
    plots = root / "data/plots/evaluate"
    write_json(root / "data/metrics/evaluate.json", {each.task: report.scores(each) for each in errors})
    write_tsv(plots / "precision_recall.tsv", report.precision_recall(evaluations))
    write_json(plots / "oks_per_keypoint.json", report.oks_per_keypoint(keypoints))
    write_json(plots / "errors_per_keypoint.json", report.errors_per_keypoint(errors[0]))
    log.info("evaluate: %d pictures in data/evaluate/gallery", len(pictures))
    for matches, interval in zip(evaluations, intervals, strict=True):
        log.info("evaluate: %d images\n%s\n%s", len(images), report.text(matches), interval)


# --- the report ---------------------------------------------------------------------------------------------


def _facts(images: Mapping[int, Row], detections: Detections, confident: float) -> list[str]:
    people = [person for row in images.values() for person in row["people"] if not person["crowd"]]
    posed = sum(any(person["visibility"]) and not person["imputed"] for person in people)
    detected = [person for image in detections.values() for person in image]
    count = sum(person.score >= confident for person in detected)
    return [
        f"{len(images)} images",
        f"{len(people)} annotated people (without crowds), {posed} with keypoints",
        f"{len(detected)} detections, {count} of them confident (score at least {confident:.3f}, at which F1 "
        "of keypoints at OKS 0.50 is highest)",
    ]
