"""Ray Train's trainer of PyTorch models, with fewer processes."""

from typing import Any

from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback


class Trainer(TorchTrainer):  # type: ignore[misc]
    """A `TorchTrainer` without Ray Data: its actor would start with every group of workers, in seconds."""

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return [each for each in callbacks if not isinstance(each, DatasetsCallback)]
