"""Keypoints that are not COCO's, through all eight stages and what follows them."""

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from personlab import params
from personlab.codec.decode import Decoder
from personlab.data import coco, images
from personlab.inference.job import Job, make_plan
from personlab.inference.listing import list_images
from personlab.inference.overlays import draw
from personlab.metrics import oracle
from personlab.model.network import from_checkpoint
from personlab.params import Params
from personlab.report import page
from personlab.stages import acquire, estimator, evaluate, impute, infer, ingest, targets, train
from personlab.synthetic.dataset import LIMBS
from personlab.tables import read_dataset
from personlab.utils.storage import Folder
from personlab.weights import onnx
from tests.batches import begin, make_all

STAGES: list[Callable[[Params, Path], None]] = [
    *(acquire.run, ingest.run, estimator.run, impute.run, targets.run, train.run, infer.run, evaluate.run)
]
TINY: dict[str, Any] = {
    "acquire": {"sample": {"train_images": 6, "val_images": 4, "width": 160, "height": 120, "keypoints": 14}},
    "ingest": {"train_images_with_people_only": False},
    "estimator": {"steps": 2, "batch": 2, "width": 8, "crop_height": 65, "crop_width": 49},
    "model": {"width": 8, "radius": 12},
    "train": {"crop": 97, "batch": 2, "steps": 3, "optimizer": "adam", "validate_every": 3},
    "infer": {"sides": [129]},
    "decode": {"nms_radius": 5, "bin": 1},
    "evaluate": {"gallery": 2},
}


def run(root: Path, *stages: Callable[[Params, Path], None], **changes: Any) -> Path:
    settings = Params.model_validate(TINY | changes)
    for stage in stages:
        stage(settings, root)
    return root


@pytest.fixture(scope="module")
def limbs(tmp_path_factory: pytest.TempPathFactory, ray_local: None) -> Path:
    """A folder in which all stages have run on rendered people of 14 keypoints."""
    return run(tmp_path_factory.mktemp("limbs"), *STAGES)


def results(root: Path, stage: str = "evaluate") -> Any:
    return json.loads((root / f"data/metrics/{stage}.json").read_bytes())


@pytest.mark.slow
def test_every_stage_has_the_keypoints_of_the_data(limbs: Path) -> None:
    skeleton = read_dataset(limbs / "data").skeleton
    assert skeleton.keypoints == LIMBS
    assert ("neck", "head_top") in [(LIMBS[a], LIMBS[b]) for a, b in skeleton.tree]
    assert from_checkpoint(limbs / "data/infer/model.safetensors", stride=16).skeleton == skeleton
    assert results(limbs).keys() == {"keypoints", "segm"}
    assert "head top" in (limbs / "data/evaluate/report.md").read_text()
    for picture in ("ingest/sheet.jpg", "evaluate/gallery.jpg"):
        Image.open(limbs / "data" / picture).verify()


@pytest.mark.slow
def test_the_model_is_exported_and_used_with_its_keypoints(limbs: Path, tmp_path: Path) -> None:
    import onnxruntime

    weights = limbs / "data/infer/model.safetensors"
    onnx.export(weights, tmp_path / "model.onnx")
    described = onnxruntime.InferenceSession(tmp_path / "model.onnx").get_modelmeta().custom_metadata_map
    assert json.loads(described["personlab.keypoints"]) == list(LIMBS)

    listing = list_images(str(limbs / "data/acquire/val2017"))
    plan = make_plan(listing, weights, Params.model_validate(TINY).infer, part_size=4)
    out = Folder(str(tmp_path / "out"))
    make_all(begin((Job(plan, listing.root, out, str(weights), images.decode), listing)))
    for path in draw(listing, out, tmp_path / "drawn", 2):
        Image.open(path).verify()


@pytest.mark.slow
def test_the_report_shows_it(limbs: Path, tmp_path: Path) -> None:
    (limbs / "params.yaml").write_text("{}")
    page.write(page.Results(limbs, None), tmp_path / "index.html")
    assert (tmp_path / "index.html").read_text().count("<figure") >= 3


@pytest.mark.slow
def test_without_masks_poses_are_trained_and_scored(
    limbs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """From the model with masks of the same keypoints, whose heads for poses are taken."""
    shutil.copytree(limbs / "data/acquire", tmp_path / "mine")
    for path in (tmp_path / "mine/annotations").iterdir():
        content = json.loads(path.read_bytes())
        for person in content["annotations"]:
            del person["segmentation"], person["area"]
        path.write_text(json.dumps(content))
    source = {"source": "directory", "directory": str(tmp_path / "mine")}
    init = str(limbs / "data/train/model.safetensors")
    changes: dict[str, Any] = {"acquire": source, "model": {**TINY["model"], "init": init}}
    run(tmp_path, acquire.run, ingest.run, **changes)
    steps = params.Estimator.model_validate(TINY["estimator"])
    batches = list(estimator._batches(steps, tmp_path, done=0))  # its training, but for the steps
    assert len(batches) == steps.steps
    assert all(batch.labelled.any() for batch in batches)
    shutil.copytree(limbs / "data/estimator", tmp_path / "data/estimator")
    run(tmp_path, impute.run, targets.run, train.run, infer.run, evaluate.run, **changes)
    assert not read_dataset(tmp_path / "data").masks
    assert not from_checkpoint(tmp_path / "data/infer/model.safetensors", stride=16).masks
    assert results(tmp_path)["segm"]["AP"] is None
    assert results(tmp_path, "ingest")["train"]["people"]["no mask"] > 0
    assert "only its backbone" not in caplog.text


# --- annotation files of other projects ---------------------------------------------------------------------


def quiet(items: Iterable[Any], **options: Any) -> Any:
    return items


@pytest.mark.testdata
def test_other_projects_annotations_survive_encoding_and_decoding(testdata: Path) -> None:
    """Animals, hands, insects, clothes, whole bodies; 14 to 294 keypoints, most without masks."""
    files = sorted((testdata / "keypoint-zoo").glob("*/*.json"))
    assert len(files) == 15
    for path in files:
        found = oracle.read(path)
        decoder = Decoder(trace_refinements=0, long_refinements=0, skeleton=found.skeleton)
        report = oracle.score(found.truth, decoder, side=801, stride=8, complete=True, progress=quiet)
        assert report.keypoints.columns()["AP"] >= 0.97, path


@pytest.mark.testdata
def test_other_projects_annotations_are_ingested(testdata: Path, tmp_path: Path) -> None:
    for path in sorted((testdata / "keypoint-zoo").glob("*/*.json")):
        layout = {"train": path.name, "train_images": ".", "val": None, "val_share": 0.4}
        source = {"source": "directory", "directory": str(path.parent), "layout": layout}
        run(tmp_path, acquire.run, ingest.run, acquire=source)
        counts = results(tmp_path, "ingest")
        assert all(each[kind]["rejected"] == 0 for each in counts.values() for kind in ("images", "people"))
        records = coco.load(path)
        assert sum(each["people"]["out"] for each in counts.values()) == len(records.people)
        assert read_dataset(tmp_path / "data").skeleton.keypoints == records.category.keypoints
