"""Parameter files: what is valid is read, what is not is named."""

from pathlib import Path

import pytest

from personlab import params
from personlab.errors import UserError
from tests.conftest import ROOT

CONFIGS = [ROOT / "params.yaml", *sorted((ROOT / "configs").glob("*.yaml"))]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_committed_parameters_are_valid(path: Path) -> None:
    params.load(path)


def test_the_paper_run_has_the_papers_values() -> None:
    paper = params.load(ROOT / "configs" / "coco2017-resnet101.yaml")
    assert (paper.codec.radius, paper.codec.nms_radius, paper.codec.mask_distance) == (32, 10, 0.25)
    assert (paper.train.crop, paper.train.stride, paper.train.batch) == (801, 16, 8)
    assert (paper.train.learning_rate, paper.train.momentum, paper.train.steps) == (1e-3, 0.9, 1_000_000)
    assert paper.train.loss_weights == (4, 2, 1, 1 / 4, 1 / 8)
    assert (paper.infer.sides, paper.infer.stride, paper.infer.max_people) == ((1401,), 8, 20)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("train: {stepz: 3}", r"unknown key 'train\.stepz'"),
        ("trian: {}", "unknown key 'trian'"),
        ("train: {stride: 12}", r"train\.stride"),
        ("train: {batch: 0}", r"train\.batch"),
        ("train: {crop: 800}", "multiple of stride 16 plus 1"),
        ("train: {batch: 8, workers: 3}", "cannot be shared by 3 workers"),
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
