"""Parameter files: what is valid is read, what is not is named."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from personlab import params
from personlab.errors import UserError
from tests.conftest import ROOT

CONFIGS = [ROOT / "params.yaml", *sorted((ROOT / "configs").glob("*.yaml"))]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_committed_parameters_are_valid(path: Path) -> None:
    params.load(path)


def test_the_paper_run_has_the_papers_values() -> None:
    paper = params.load(ROOT / "configs" / "coco2017-resnet101.yaml")
    assert (paper.model.radius, paper.decode.nms_radius, paper.decode.mask_distance) == (32, 10, 0.25)
    assert (paper.train.crop, paper.train.stride, paper.train.batch) == (801, 16, 8)
    assert (paper.train.learning_rate, paper.train.momentum, paper.train.steps) == (1e-3, 0.9, 1_000_000)
    assert list(paper.train.loss_weights.model_dump().values()) == [4, 2, 1, 1 / 4, 1 / 8]
    assert (paper.infer.sides, paper.infer.stride, paper.decode.max_people) == ((1401,), 8, 20)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("train: {stepz: 3}", r"unknown key 'train\.stepz'"),
        ("trian: {}", "unknown key 'trian'"),
        ("train: {stride: 12}", r"train\.stride"),
        ("train: {batch: 0}", r"train\.batch"),
        ("train: {crop: 800}", "multiple of stride 16 plus 1"),
        ("{train: {batch: 8}, compute: {workers: 3}}", "cannot be shared by 3 workers"),
        ("train: {gpu: true}", r"unknown key 'train\.gpu'; it is now 'compute\.gpu'"),
        ("codec: {radius: 3}", "unknown key 'codec'; its keys have moved"),
        ("acquire: {source: directory}", "needs acquire.directory"),
        ("train: [1, 2", "not valid YAML"),
        ("- a\n- b", "top level"),
    ],
)
def test_bad_parameters_are_named(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=reason) as error:
        params.load(path)
    assert "params.yaml" in str(error.value)


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--params"):
        params.load(tmp_path / "params.yaml")


def test_other_encodings_than_utf8_are_named(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes("acquire: {directory: Zürich}".encode("latin-1"))
    with pytest.raises(UserError, match=r"params\.yaml: not UTF-8"):
        params.load(path)
    path.write_bytes("train: {steps: 7}".encode("utf-16"))
    with pytest.raises(UserError, match=r"params\.yaml: not UTF-8"):
        params.load(path)
    path.write_bytes(b"\xef\xbb\xbftrain: {steps: 7}")  # a byte order mark
    assert params.load(path).train.steps == 7


# --- every key is in the files --------------------------------------------------------------------------------


def keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Dotted names of all parameters below a model."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel) and kind is not params.LossWeights:
            yield from keys(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def has(tree: Any, name: str) -> bool:
    for part in name.split("."):
        if not isinstance(tree, dict) or part not in tree:
            return False
        tree = tree[part]
    return True


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_files_hold_every_key(path: Path) -> None:
    """`dvc exp run -S` changes only keys that are in params.yaml."""
    tree = yaml.safe_load(path.read_text())
    assert [name for name in keys(params.Params) if not has(tree, name)] == []
    assert set(tree["train"]["loss_weights"]) == set(params.LossWeights.model_fields)


def test_params_yaml_explains_its_keys() -> None:
    """Every leaf has a comment, but for names that explain themselves."""
    plain = {"train_images", "val_images", "seed", "height", "crop_width", "batch", "steps"}
    plain |= {"learning_rate", "optimizer", "max_scale", "stride", "weight_decay"}
    leaves = re.findall(r"^ +([a-z_0-9]+): [^#\n]+(#.*)?$", (ROOT / "params.yaml").read_text(), re.MULTILINE)
    assert len(leaves) > 60
    assert [name for name, comment in leaves if not comment and name not in plain] == []


# --- what older versions saved --------------------------------------------------------------------------------

OLD = ROOT / "tests/fixtures/v0.1"


def test_parameters_of_older_versions_keep_their_meaning() -> None:
    lineage = json.loads((OLD / "lineage.json").read_text())
    found = params.from_saved(lineage["params"])
    assert (found.model.radius, found.decode.nms_radius, found.decode.bin) == (12, 5, 1)
    assert (found.infer.sides, found.infer.stride) == ((193, 385, 577), 8)
    assert found.train.loss_weights == params.LossWeights(heatmap=4, seg=2, short=4, mid=0.5, long=0.125)
    assert (found.compute.checkpoint_every, found.ingest.shard_mb) == (500, 4)
    assert found.impute.max_area is None  # people of any size were imputed


def test_unknown_and_missing_parameters_of_other_versions_are_no_obstacle() -> None:
    later = {"decode": {"nms": "hard", "a_later_option": 1}, "a_later_section": {"key": 2}}
    assert params.from_saved(later).decode == params.Decode(nms="hard")
    assert params.from_saved({}).infer == params.Infer(sides=(1401,), stride=8)  # the defaults of 0.1
    old_backbone = {"model": {"backbone": "tf-resnet50"}, "decode": {}}
    assert params.from_saved(old_backbone).model.backbone == "slim-resnet50"


def test_random_weights_have_a_name_that_dvc_can_depend_on() -> None:
    assert params.load(ROOT / "params.yaml").model.init is None
    assert (ROOT / params.RANDOM).is_file()
