"""The codec's round trip, for people with every keypoint labelled and for people with gaps."""

import dataclasses
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as rle_tools

from personlab.codec.decode import Decoder
from personlab.codec.extensions import EXTENSIONS
from personlab.errors import UserError
from personlab.metrics import oracle
from personlab.metrics.coco import has_masks
from personlab.people import Annotation
from personlab.utils.progress import progress
from tests import layouts
from tests.coco_person import KEYPOINTS, TREE, K

MEAN = oracle.MeanPose(np.stack([np.linspace(0.1, 0.9, K), np.linspace(0, 1, K)], 1).astype(np.float32))

PERFECT = Decoder(trace_refinements=0, long_refinements=0, extensions=())  # targets are refined already


def person(visibility: np.ndarray) -> Annotation:
    mask = np.zeros((200, 160), np.uint8, order="F")
    mask[20:180, 30:110] = 1
    box = (30.0, 20.0, 80.0, 160.0)
    keypoints = MEAN.keypoints * np.array([80, 160], np.float32) + np.array([30, 20], np.float32)
    return Annotation(
        id=1,
        keypoints=keypoints,
        visibility=visibility.astype(np.int8),
        imputed=False,
        box=box,
        area=float(mask.sum()),
        crowd=False,
        rle=rle_tools.encode(mask)["counts"],
    )


@pytest.mark.parametrize("stride", [8, 16])
def test_a_person_with_every_keypoint_is_recovered(stride: int) -> None:
    whole = person(np.full(K, 2))
    found = oracle.round_trip([whole], PERFECT, height=200, width=160, side=401, stride=stride)
    np.testing.assert_allclose(found[0].keypoints, whole.keypoints, atol=0.5)
    assert found[0].score > 0.9
    overlap = rle_tools.iou(
        [{"size": [200, 160], "counts": found[0].rle}], [{"size": [200, 160], "counts": whole.rle}], [0]
    )
    assert overlap[0, 0] > 0.9


def test_a_gap_at_the_elbow_loses_the_wrist() -> None:
    visibility = np.full(K, 2)
    visibility[KEYPOINTS.index("left_elbow")] = 0
    (best,) = oracle.largest_components([person(visibility)], TREE)
    lost = [name for name, score in zip(KEYPOINTS, best.keypoint_scores, strict=True) if score == 0]
    assert lost == ["left_elbow", "left_wrist"]


def test_completing_labels_every_keypoint_and_moves_no_labelled_one() -> None:
    visibility = np.arange(K) % 3
    gaps = person(visibility)
    whole = MEAN.complete(gaps)
    assert (whole.visibility > 0).all()
    np.testing.assert_array_equal(whole.keypoints[visibility > 0], gaps.keypoints[visibility > 0])
    np.testing.assert_allclose(whole.keypoints, gaps.keypoints, atol=1e-3)  # they were the mean pose


def test_the_mean_pose_is_the_mean_of_the_labelled_keypoints() -> None:
    visibility = np.full(K, 2)
    visibility[3] = 0
    elsewhere = dataclasses.replace(person(visibility), keypoints=person(visibility).keypoints.copy())
    elsewhere.keypoints[3] = 1e6
    mean = oracle.MeanPose.of([person(np.full(K, 2)), elsewhere])
    np.testing.assert_allclose(mean.keypoints, MEAN.keypoints, atol=1e-5)


@pytest.mark.parametrize("content", ["", "{}", '{"images": [], "annotations": []}', "[1, 2]"])
def test_errors_name_a_file_that_is_not_cocos(tmp_path: Path, content: str) -> None:
    path = tmp_path / "broken.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"broken\.json"):
        oracle.read(path)


def test_the_mask_of_a_crowd_leaves_out_no_person(tmp_path: Path) -> None:
    crowd = layouts.person(6, 1, iscrowd=1, keypoints=[0] * 51)
    people = [layouts.person(5, 1, segmentation=[]), crowd]
    path = layouts.write_json(tmp_path, "val", layouts.document([layouts.image(1)], people))
    truth = oracle.read(path).truth
    assert len(truth.anns) == 2
    assert not has_masks(truth)


@pytest.mark.testdata
@pytest.mark.slow
def test_real_annotations_survive_the_round_trip(coco_mini: Path) -> None:
    truth = oracle.read(coco_mini / "annotations" / "person_keypoints_val2017.json").truth
    report = oracle.score(truth, PERFECT, side=801, stride=8, complete=True, progress=progress)
    assert report.keypoints.columns()["AP"] >= 0.97
    assert report.connected_ap == pytest.approx(1.0)


@pytest.mark.testdata
@pytest.mark.slow
@pytest.mark.parametrize("complete", [False, True])
def test_steps_beyond_the_paper_lose_nothing_on_perfect_fields(coco_mini: Path, complete: bool) -> None:
    truth = oracle.read(coco_mini / "annotations" / "person_keypoints_val2017.json").truth
    paper, ours = (
        oracle.score(truth, decoder, side=801, stride=8, complete=complete, progress=progress)
        for decoder in (PERFECT, replace(PERFECT, extensions=EXTENSIONS))
    )
    assert ours.keypoints.columns()["AP"] >= paper.keypoints.columns()["AP"] - 0.002
    assert ours.segm.columns()["AP"] >= paper.segm.columns()["AP"] - 0.002


def test_a_complete_person_has_an_ap_of_one(tmp_path: Path) -> None:
    annotation = person(np.full(K, 2))
    triples = np.concatenate([annotation.keypoints, annotation.visibility[:, None]], 1)
    record = {
        "id": 1,
        "image_id": 7,
        "category_id": 1,
        "keypoints": triples.ravel().tolist(),
        "num_keypoints": K,
        "bbox": list(annotation.box),
        "area": annotation.area,
        "iscrowd": 0,
        "segmentation": {"size": [200, 160], "counts": annotation.rle.decode()},
    }
    path = tmp_path / "people.json"
    category = {"id": 1, "name": "person"}
    image = {"id": 7, "height": 200, "width": 160}
    path.write_text(json.dumps({"images": [image], "annotations": [record], "categories": [category]}))
    report = oracle.score(
        oracle.read(path).truth, PERFECT, side=401, stride=8, complete=False, progress=progress
    )
    assert report.keypoints.columns()["AP"] == pytest.approx(1.0)
