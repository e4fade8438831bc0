"""Average precision during training, for monitoring only."""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from torch import Tensor

from personlab import params
from personlab.data.images import pixels
from personlab.errors import UserError
from personlab.metrics.coco import evaluate, ground_truth
from personlab.model.network import PersonLab
from personlab.predictor import Predictor, decoder
from personlab.tables.shards import Row, row_groups, with_people


@dataclass(frozen=True)
class Validation:
    """Scores a network's weights on a fixed set of images."""

    predictor: Predictor
    images: Sequence[Row]  # of tables.IMAGES, with `people`

    @classmethod
    def of(cls, network: PersonLab, data: Path, train: params.Train) -> Self:
        """Score copies of `network`, on its device, on the first validation images in `data`.

        Decoding uses default parameters, one input size and the stride of training, because training does not
        depend on `infer` and `decode`.

        Raises:
            UserError: there are no images.
        """
        copied = copy.deepcopy(network).eval()
        device = next(copied.parameters()).device
        predictor = Predictor(copied, decoder(copied), (train.validate_side,), device)
        return cls(predictor, _first(train.validate_images, data))

    def __call__(self, weights: Mapping[str, Tensor]) -> dict[str, float]:
        """COCO's AP of `keypoints` and `segm`, without tasks that have no annotated people.

        Raises:
            UserError: an image cannot be decoded, or the network's output is not finite.
        """
        self.predictor.network.load_state_dict(weights)
        detections = {row["image_id"]: self.predictor(pixels(row)) for row in self.images}
        scores = evaluate(ground_truth(self.images, self.predictor.skeleton), detections)
        columns = {"keypoints": scores.keypoints, "segm": scores.segm}
        return {task: each["AP"] for task, each in columns.items() if not math.isnan(each["AP"])}


def _first(count: int, data: Path) -> list[Row]:
    """The first rows. Only the row groups that hold them are read."""
    images = list[Row]()
    for group in row_groups(data / "ingest/val"):
        if len(images) < count:
            images += with_people(group, data / "targets/val").to_pylist()
    if not images:
        raise UserError(
            f"{data / 'ingest/val'}: no images for validation; add some, or set train.validate_every to 0"
        )
    return images[:count]
