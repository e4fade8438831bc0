"""Parameter files: every key is there and explained, what is valid is read, what is not is named."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from personlab import params
from personlab.errors import UserError
from personlab.params import Compute, Decode, Infer, Model, Params
from tests.conftest import ROOT

CONFIGS = [ROOT / "params.yaml", *sorted((ROOT / "configs").glob("*.yaml"))]
V01 = ROOT / "tests/fixtures/v0.1"

configs = pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)


def keys(tree: Any, *above: str) -> Iterator[str]:
    for name, value in tree.items():
        yield ".".join((*above, name))
        if isinstance(value, dict):
            yield from keys(value, *above, name)


@configs
def test_committed_parameters_are_valid_and_complete(path: Path) -> None:
    params.load(path)
    assert list(keys(yaml.safe_load(path.read_text()))) == list(keys(Params().model_dump()))


@configs
def test_every_key_has_a_one_line_comment(path: Path) -> None:
    lines = [line for line in path.read_text().splitlines() if line and not line.lstrip().startswith("#")]
    assert [line for line in lines if not re.fullmatch(r" *(- )?[a-z_-]+:?.* # \S.*", line)] == []


def test_the_paper_run_has_the_papers_values() -> None:
    paper = params.load(ROOT / "configs" / "coco2017-resnet101.yaml")
    assert (paper.model.radius, paper.decode.nms_radius, paper.decode.mask_distance) == (32, 10, 0.25)
    assert (paper.train.crop, paper.train.stride, paper.train.batch) == (801, 16, 8)
    assert (paper.train.learning_rate, paper.train.momentum, paper.train.steps) == (1e-3, 0.9, 1_000_000)
    assert tuple(paper.train.loss_weights.model_dump().values()) == (4, 2, 1, 1 / 4, 1 / 8)
    assert paper.train.pos_weight == 1
    assert (paper.infer.sides, paper.infer.stride, paper.decode.max_people) == ((1401,), 8, 20)
    own = Decode(extensions=(), trace_refinements=2)
    assert paper.decode == own
    assert Decode.scaled(paper.model.radius) == Decode()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("train: {stepz: 3}", r"unknown key 'train\.stepz' \(misspelt\?\)"),
        ("trian: {}", "unknown key 'trian'"),
        ("train: {stride: 12}", r"train\.stride"),
        ("train: {batch: 0}", r"train\.batch"),
        ("train: {pos_weight: 0}", r"train\.pos_weight"),
        ("train: {crop: 800}", r"params\.yaml: train: crop: 800 is not a multiple of stride 16 plus 1$"),
        ("compute: {workers: 3}", r"params\.yaml: train\.batch: 8 cannot be shared by 3 workers"),
        ("{export: {initial_share: 0.5}}", r"needs a model\.init"),
        ("{train: {batch: 8}, compute: {workers: 3}}", r"cannot be shared by 3 workers \(compute\.workers\)"),
        ("infer: {sides: []}", r"infer\.sides"),
        ("acquire: {source: directory}", "needs acquire.directory"),
        ("train: [1, 2", "not valid YAML"),
        ("- a\n- b", "top level"),
        ("infer: {nms: hard}", r"'infer\.nms'; it is now 'decode\.nms'"),
        ("train: {workers: 2}", r"'train\.workers'; it is now 'compute\.workers'"),
        ("impute: {gpu: true}", r"'impute\.gpu'; it is now 'compute\.gpu'"),
        ("codec: {radius: 12}", "'codec'; its keys are in other sections now"),
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
    for content, found in (
        ("# own\nacquire: {directory: Zürich}".encode("latin-1"), "in line 2, but Latin-1 or Windows-1252"),
        ("train: {steps: 7}".encode("utf-16"), "but UTF-16"),
        ("train: {steps: 7}".encode("utf-16-le"), "but UTF-16"),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=rf"params\.yaml: not UTF-8 {found}.*; save it as UTF-8"):
            params.load(path)
    path.write_bytes(b"\xef\xbb\xbftrain: {steps: 7}")  # a byte order mark
    assert params.load(path).train.steps == 7


@pytest.mark.parametrize("init", [None, params.RANDOM])
def test_random_weights_have_a_file_that_dvc_can_depend_on(init: str | None) -> None:
    assert Model(init=init).init is None
    assert Model(init=init).model_dump(mode="json")["init"] == params.RANDOM
    assert (ROOT / params.RANDOM).is_file()


def test_parameters_of_version_01_keep_their_meaning() -> None:
    saved = params.from_saved(yaml.safe_load((V01 / "params.yaml").read_text()))
    assert saved.model.radius == 12
    assert (saved.ingest.shard_mb, saved.ingest.row_group) == (4, 64)
    assert saved.decode == Decode(nms_radius=5, bin=1, extensions=())
    assert saved.infer == Infer(sides=(193, 385, 577), stride=8, precision="float32")
    assert saved.compute == Compute(checkpoint_every=500)
    assert saved.train.loss_weights.model_dump() == {
        "heatmap": 4, "seg": 2, "short": 4, "mid": 0.5, "long": 0.125
    }  # fmt: skip
    assert saved.impute.max_area is None  # it imputed people of any size


def test_moved_parameters_are_found_under_their_old_names() -> None:
    old = {
        "infer": {"nms": "hard", "scoring": "hough", "max_people": 7, "gpu": True},
        "train": {"workers": 2, "gpu": True, "max_failures": 5},
        "ray": {"address": "auto", "storage_path": "s3://b"},
        "model": {"backbone": "tf-resnet50"},
    }
    saved = params.from_saved(old)
    assert (saved.decode.nms, saved.decode.scoring, saved.decode.max_people) == ("hard", "hough", 7)
    left_out = Infer(sides=(1401,), stride=8, precision="float32")
    assert saved.infer == left_out
    assert saved.compute == Compute(
        gpu=True, workers=2, max_failures=5, ray_address="auto", storage_path="s3://b"
    )
    assert saved.model.backbone == "slim-resnet50"
    assert params.from_saved({"infer": {"precision": "auto"}}).infer.precision == "float32"
    newer = {"codec": {"radius": 12, "bin": 1}, "decode": {"bin": 3}}  # decoded anew by this version
    assert params.from_saved(newer) == Params(
        model=Model(radius=12), infer=Infer(precision="float32"), decode=Decode(bin=3, extensions=())
    )


def test_what_is_saved_is_read_back_whatever_other_versions_add() -> None:
    now = Params(decode=Decode(nms="hard"), infer=Infer(sides=(65,)), compute=Compute(gpu=True))
    saved = now.model_dump(mode="json")
    assert params.from_saved(saved) == now
    later = saved | {"zoo": {"name": "x"}, "decode": saved["decode"] | {"tracking": True}}
    assert params.from_saved(later) == now
    del later["decode"]["bin"]
    assert params.from_saved(later) == now
    with pytest.raises(ValidationError, match="nms_radius"):
        params.from_saved(saved | {"decode": {"nms_radius": "wide"}})
