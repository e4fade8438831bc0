"""Average precision while training goes on: a curve to watch. Nothing is chosen by it."""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Self

import pyarrow.parquet as pq
from torch import Tensor

from personlab import params
from personlab.data.example import decode_jpeg
from personlab.errors import UserError
from personlab.metrics.coco import evaluate, ground_truth
from personlab.model.network import PersonLab
from personlab.predictor import Predictor, decoder
from personlab.tables.shards import parts

Row = dict[str, Any]

_READ = 16  # images at once


@dataclass(frozen=True)
class Validation:
    """Scores the weights of a network, time and again, on the same images (complete rows of shards)."""

    predictor: Predictor
    images: Sequence[Row]

    @classmethod
    def of(cls, network: PersonLab, shards: Path, train: params.Train) -> Self:
        """On the first images of `shards`, by a copy of `network`, on its device.

        People are found as by default with a checkpoint of it, but at one size and at the stride of training:
        `infer` has its own parameters, which must not be reasons to train again.

        Raises:
            UserError: there are no images.
        """
        twin = copy.deepcopy(network).eval()
        infer = params.Infer(sides=(train.validate_side,), stride=train.stride)
        device = next(twin.parameters()).device
        predictor = Predictor(twin, decoder(twin, infer, twin.codec), infer.sides, device)
        return cls(predictor, _first(train.validate_images, shards))

    def __call__(self, weights: Mapping[str, Tensor]) -> dict[str, float]:
        """COCO's AP of "keypoints" and "segm"; a task that has nobody to find in these images is left out.

        Raises:
            UserError: an image cannot be read, or the network computes values that are not finite.
        """
        self.predictor.network.load_state_dict(weights)
        found = {
            row["image_id"]: self.predictor(decode_jpeg(row["jpeg"], name=row["file_name"]))
            for row in self.images
        }
        scores = evaluate(ground_truth(self.images), found)
        columns = {"keypoints": scores.keypoints, "segm": scores.segm}
        return {task: each["AP"] for task, each in columns.items() if not math.isnan(each["AP"])}


def _first(count: int, shards: Path) -> list[Row]:
    """Read no further than need be: a shard may hold a hundred megabytes."""
    rows = (
        row
        for part in parts(shards, "targets")
        for batch in pq.ParquetFile(part).iter_batches(_READ)
        for row in batch.to_pylist()
    )
    if not (images := list(islice(rows, count))):
        raise UserError(f"{shards}: no images to validate on; add some, or set train.validate_every to 0")
    return images
