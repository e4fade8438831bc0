"""Validation during training: its AP, its images, and that it does not change the training."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from personlab import params
from personlab.data.transform import ImageArray
from personlab.errors import UserError
from personlab.model import checkpoint
from personlab.model.network import PersonLab
from personlab.people import Detection
from personlab.predictor import Predictor
from personlab.training.engine import Average, Supervised, optimizer, train_step
from personlab.training.validation import Validation
from tests import test_engine as engines
from tests import test_stage_evaluate as scenes

TRAIN = params.Train(validate_every=1, validate_images=3, validate_side=65, optimizer="adam")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Images 1 and 2 with two people each, 3 and 4 without people, in two shards."""
    scenes.write(tmp_path)
    return tmp_path / "data"


def eager(seed: int = 0) -> PersonLab:
    """A random network that detects people everywhere."""
    network = engines.network(seed)
    torch.nn.init.ones_(network.heads["heatmap"].bias)
    return network


@dataclass(frozen=True, kw_only=True)
class Oracle(Predictor):
    """Detects three of the four people: both of image 1 and one of image 2."""

    numbers: Iterator[int]

    def __call__(self, image: ImageArray) -> list[Detection]:
        return [Detection.from_row(record) for record in scenes.FOUND[next(self.numbers)]]


def oracle(validation: Validation) -> Validation:
    return Validation(Oracle(**vars(validation.predictor), numbers=iter((1, 2, 3))), validation.images)


def test_three_of_four_people_are_an_ap_of_three_quarters(data: Path) -> None:
    network = engines.network()
    found = oracle(Validation.of(network, data, TRAIN))(network.state_dict())
    # precision is 1 at the recalls 0, .01, ..., .75 and 0 at the others
    assert found == {"keypoints": pytest.approx(76 / 101), "segm": pytest.approx(76 / 101)}


def test_people_are_found_as_with_a_checkpoint_of_the_weights(data: Path, tmp_path: Path) -> None:
    network, weights = eager(seed=0), eager(seed=1).state_dict()
    validation = Validation.of(network, data, TRAIN)
    validation(weights)
    path = tmp_path / "model.safetensors"
    checkpoint.save(path, weights, network.card({}))
    infer = params.Infer(sides=(65,), stride=TRAIN.stride, precision="float32")
    expected = Predictor.from_checkpoint(path, infer)
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    found, known = validation.predictor(image), expected(image)
    assert validation.predictor.decoder == expected.decoder
    assert len(found) == len(known) > 0
    assert all(np.array_equal(a.keypoints, b.keypoints) for a, b in zip(found, known, strict=True))


def test_the_first_images_are_used(data: Path) -> None:
    validation = Validation.of(engines.network(), data, TRAIN)
    assert [row["image_id"] for row in validation.images] == [1, 2, 3]
    everything = Validation.of(engines.network(), data, TRAIN.model_copy(update={"validate_images": 9}))
    assert [row["image_id"] for row in everything.images] == [1, 2, 3, 4]


def test_a_task_without_annotated_people_has_no_ap(tmp_path: Path) -> None:
    people = [scenes.person(1, *scenes.LEFT) | {"visibility": [0] * 17}]
    scenes.write(tmp_path, people={1: people, 2: [], 3: [], 4: []})
    network = engines.network()
    found = oracle(Validation.of(network, tmp_path / "data", TRAIN))(network.state_dict())
    assert set(found) == {"segm"}


def test_no_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.validate_every to 0"):
        Validation.of(engines.network(), tmp_path, TRAIN)


def test_training_is_not_changed(data: Path) -> None:
    assert trained(data, validate=True) == trained(data, validate=False)


def trained(data: Path, *, validate: bool) -> Any:
    """The state of everything after some steps, bit by bit."""
    network = eager().train()
    stepping, average = optimizer(network, TRAIN), Average(start=2)
    supervised = Supervised(network, engines.OBJECTIVE)
    random.seed(0)
    np.random.seed(0)
    validation = Validation.of(network, data, TRAIN) if validate else None
    assert validation is None or validation.predictor(np.zeros((60, 80, 3), np.uint8))  # there are people
    for step in range(1, 4):
        train_step(supervised, engines.batch(step), stepping, precision="bfloat16")
        average.update(network, step)
        if validation:
            validation(average.of(network))
    left = [network.state_dict(), average.of(network), *stepping.state_dict()["state"].values()]
    state = [(name, tensor.numpy().tobytes()) for each in left for name, tensor in each.items()]
    modes = {module.training for module in network.modules()}
    return state, modes, torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())
