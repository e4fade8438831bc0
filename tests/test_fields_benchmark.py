"""benchmarks/fields.py: what is replaced, by what."""

import json
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmarks import fields
from personlab.errors import UserError
from personlab.metrics.coco import Task, match
from personlab.metrics.files import read_annotations
from personlab.params import Infer
from personlab.predictor import Predictor
from tests.batches import save_weights
from tests.coco_person import K

HEIGHT, WIDTH = 200, 160
SIDE, STRIDE = 401, 8


@pytest.fixture
def annotations(tmp_path: Path) -> Path:
    """One image of noise, with one person in it."""
    across, down = np.linspace(40, 100, K), np.linspace(30, 170, K)
    person = {
        "id": 1,
        "image_id": 1,
        "category_id": 1,
        "keypoints": np.stack([across, down, np.full(K, 2)], 1).ravel().tolist(),
        "num_keypoints": K,
        "segmentation": [[30, 20, 110, 20, 110, 180, 30, 180]],
        "bbox": [30, 20, 80, 160],
        "area": 12800,
        "iscrowd": 0,
    }
    image = {"id": 1, "file_name": "1.png", "height": HEIGHT, "width": WIDTH}
    categories = [{"id": 1, "name": "person"}]
    path = tmp_path / "people.json"
    path.write_text(json.dumps({"images": [image], "annotations": [person], "categories": categories}))
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "1.png"), noise)
    return path


@pytest.mark.parametrize("task", ["keypoints", "segm"])
def test_with_all_true_fields_an_untrained_network_is_perfect(annotations: Path, task: Task) -> None:
    weights = save_weights(annotations.parent / "w.safetensors")
    predictor = Predictor.from_checkpoint(weights, Infer(sides=(SIDE,), stride=STRIDE))
    truth = read_annotations(annotations).truth
    sources = {"true": partial(fields._true, truth, predictor)}
    found = fields.find(predictor, sources, {1: annotations.parent / "1.png"})
    ap = {choice: match(truth, people, task).columns()["AP"] for choice, people in found.items()}
    assert ap["none"] < 0.1
    assert ap["true heatmap, short, mid, seg, long"] > 0.9


def test_weights_of_another_radius_are_refused(annotations: Path) -> None:
    weights = save_weights(annotations.parent / "w.safetensors")
    predictor = Predictor.from_checkpoint(weights)
    card = annotations.parent / "w.json"
    content = json.loads(card.read_text())
    content["model"]["radius"] = 7.0
    card.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"model\.radius"):
        fields._like(predictor, weights)
