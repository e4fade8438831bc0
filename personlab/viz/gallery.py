"""The gallery of an evaluation: images with their annotated people beside the detected ones.

Images with people come first, from the worst to the best; then images without people in which some are
detected, the most confident false alarm first.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from personlab.data.images import pixels
from personlab.data.transform import ImageArray
from personlab.metrics.coco import Matches
from personlab.people import Annotation, Detection
from personlab.skeleton import Skeleton
from personlab.utils.progress import progress
from personlab.viz.people import draw_annotations, draw_note, draw_people, draw_scores
from personlab.viz.sheet import contact_sheet, write_jpeg

Row = Mapping[str, Any]

_FALSE_ALARM_SHARE: Final = 6  # one picture in so many is of a false alarm
_OVERVIEW_CELL: Final = (520, 200)  # width and height of a pair of pictures, pixels
_OVERVIEW_COLUMNS: Final = 3


@dataclass(frozen=True)
class Gallery:
    """What is shown of an evaluation.

    Attributes:
        keypoints, segm: the matches of both tasks.
        confident: detections with at least this score are shown.
        skeleton: of the people.
    """

    keypoints: Matches
    segm: Matches
    confident: float
    skeleton: Skeleton

    def choose(self, count: int) -> list[int]:
        """Ids of up to `count` images, in the order of the module.

        Images with people are evenly spaced in rank.
        """
        quality = {image_id: self._quality(image_id) for image_id in self.keypoints.per_image}
        people = [image_id for image_id, value in quality.items() if not math.isnan(value)]
        ranked = sorted(people, key=lambda image_id: (quality[image_id], image_id))
        alarms = self._false_alarms()[: count // _FALSE_ALARM_SHARE]
        ranks = np.linspace(0, len(ranked) - 1, min(count - len(alarms), len(ranked))).round().astype(int)
        return [ranked[rank] for rank in ranks] + alarms

    def _quality(self, image_id: int) -> float:
        """The mean of poses and masks, where they are defined; NaN where neither is."""
        defined = [q for q in self.qualities(image_id) if not math.isnan(q)]
        return sum(defined) / len(defined) if defined else math.nan

    def qualities(self, image_id: int) -> tuple[float, float]:
        """The average precision of poses and of masks within an image; NaN for what nobody has annotated."""
        return self.keypoints.per_image[image_id], self.segm.per_image[image_id]

    def _false_alarms(self) -> list[int]:
        """Images without people that show confident detections, the most confident first."""
        best = {
            image_id: float(found.scores[0])
            for image_id, found in self.keypoints.images()
            if not self.is_annotated(image_id) and len(found.scores) and found.scores[0] >= self.confident
        }
        return sorted(best, key=lambda image_id: (-best[image_id], image_id))

    def is_annotated(self, image_id: int) -> bool:
        return bool(self.keypoints.evaluator.cocoGt.imgToAnns[image_id])

    def write(
        self, folder: Path, rows: Sequence[Row], detections: Mapping[int, Sequence[Detection]]
    ) -> list[Row]:
        """Write gallery/<name>.jpg for each image and gallery.jpg with all of them.

        Args:
            rows: of the image shards with `people`, in the order of `choose`.

        Returns a record for each picture: its file and image_id, whether anyone is annotated, how many are
        detected, and the qualities `poses` and `masks`.
        """
        (folder / "gallery").mkdir()
        pairs, records, captions = list[ImageArray](), list[Row](), list[str]()
        for rank, row in enumerate(progress(rows, label="evaluate gallery"), start=1):
            image_id = row["image_id"]
            shown = [person for person in detections[image_id] if person.score >= self.confident]
            pair = self._pictures(row, shown)
            count = sum(not person["crowd"] for person in row["people"])
            values = dict(zip(("poses", "masks"), map(_defined, self.qualities(image_id)), strict=True))
            known = [f"{name} {value:.0%}" for name, value in values.items() if value is not None]
            caption = ", ".join(known) if self.is_annotated(image_id) else "false alarm"
            lines = [f"image {image_id}, {count} annotated", f"{len(shown)} detected ({caption})"]
            name = f"{rank:0{max(2, len(str(len(rows))))}}-{image_id}.jpg"
            write_jpeg(folder / "gallery" / name, contact_sheet(pair, 2, lines))
            pairs.append(np.hstack(pair))
            captions.append(f"{name.removesuffix('.jpg')}: {caption}")
            annotated = self.is_annotated(image_id)
            record = {"file": name, "image_id": image_id, "annotated": annotated, "detected": len(shown)}
            records.append(record | values)
        if pairs:
            overview = contact_sheet(pairs, _OVERVIEW_COLUMNS, captions, cell=_OVERVIEW_CELL)
            write_jpeg(folder / "gallery.jpg", overview)
        return records

    def _pictures(self, row: Row, shown: Sequence[Detection]) -> tuple[ImageArray, ImageArray]:
        """The image with the annotated and with the detected people; a person has one colour in both."""
        image, image_id = pixels(row), row["image_id"]
        people = list(enumerate(map(Annotation.from_row, row["people"])))
        people.sort(key=lambda numbered: numbered[1].area)
        annotated = draw_annotations(
            image, [person for _, person in people], self.skeleton, colours=[number for number, _ in people]
        )
        if not shown:
            return annotated, draw_note(image, f"none with a score of at least {self.confident:.2f}")
        partners = self.segm.partners(image_id) | self.keypoints.partners(image_id)
        colours = [partners.get(place, len(people) + place) for place in range(len(shown))]
        detected = draw_people(image, shown, self.skeleton, colours=colours)
        return annotated, draw_scores(detected, shown, colours=colours)


def _defined(quality: float) -> float | None:
    return None if math.isnan(quality) else round(quality, 4)
