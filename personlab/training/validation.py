"""Average precision during training, for monitoring only."""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from personlab import params
from personlab.data.example import pixels
from personlab.errors import UserError
from personlab.metrics.coco import evaluate, ground_truth
from personlab.model.network import PersonLab
from personlab.predictor import Predictor, decoder
from personlab.tables.shards import row_groups, with_people

Row = dict[str, Any]


@dataclass(frozen=True)
class Validation:
    """Scores weights of a network on a fixed set of images (rows of tables.IMAGES with their `people`)."""

    predictor: Predictor
    images: Sequence[Row]

    @classmethod
    def of(cls, network: PersonLab, data: Path, train: params.Train) -> Self:
        """Score a copy of `network`, on its device, on the first validation images below `data`.

        Decoding has the model's default parameters, one input size and the stride of training: `infer` and
        `decode` must not be reasons to train again.

        Raises:
            UserError: there are no images.
        """
        twin = copy.deepcopy(network).eval()
        device = next(twin.parameters()).device
        predictor = Predictor(twin, decoder(twin), (train.validate_side,), device)
        return cls(predictor, _first(train.validate_images, data))

    def __call__(self, weights: Mapping[str, Tensor]) -> dict[str, float]:
        """COCO's AP of `keypoints` and `segm`; a task without people to find is left out.

        Raises:
            UserError: an image cannot be decoded, or the network computes values that are not finite.
        """
        self.predictor.network.load_state_dict(weights)
        found = {row["image_id"]: self.predictor(pixels(row)) for row in self.images}
        scores = evaluate(ground_truth(self.images), found)
        columns = {"keypoints": scores.keypoints, "segm": scores.segm}
        return {task: each["AP"] for task, each in columns.items() if not math.isnan(each["AP"])}


def _first(count: int, data: Path) -> list[Row]:
    """The first rows; no more row groups are read than needed."""
    images = list[Row]()
    for group in row_groups(data / "ingest/val"):
        if len(images) < count:
            images += with_people(group, data / "targets/val").to_pylist()
    if not images:
        raise UserError(
            f"{data / 'ingest/val'}: no images to validate on; add some, or set train.validate_every to 0"
        )
    return images[:count]
