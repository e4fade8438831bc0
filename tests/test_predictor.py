"""From image to people, with a network that sees perfectly: what comes out are the people that are there."""

from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as rle_tools
from torch import Tensor, nn

from personlab import params
from personlab.codec.decode import Decoder
from personlab.codec.encode import encode
from personlab.codec.fields import Fields, padded_side
from personlab.data.example import project_people
from personlab.data.transform import Transform, fit
from personlab.errors import UserError
from personlab.model import checkpoint
from personlab.model.network import PersonLab, build
from personlab.people import Annotation
from personlab.predictor import Predictor, decoder
from personlab.skeleton import K

HEIGHT, WIDTH, STRIDE = 240, 320, 8
MODEL = params.Model(width=8)


def person(left: float, top: float, size: float) -> Annotation:
    rng = np.random.default_rng(3)
    keypoints = (rng.uniform(0.1, 0.9, (K, 2)) * size + [left, top]).astype(np.float32)
    mask = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    mask[int(top) : int(top + size), int(left) : int(left + size)] = 1
    return Annotation(
        id=1,
        keypoints=keypoints,
        visibility=np.full(K, 2, np.int8),
        imputed=False,
        box=(left, top, size, size),
        area=size * size,
        crowd=False,
        rle=rle_tools.encode(mask)["counts"],
    )


PEOPLE = [person(20, 30, 90), person(180, 100, 120)]


class Clairvoyant(nn.Module):
    """Knows the people; tells at what scale it sees them from the size of its input."""

    model, decode, stride = MODEL, None, STRIDE

    def forward(self, images: Tensor) -> Fields:
        for side in (321, 401, 641):
            scale, height, width = fit(HEIGHT, WIDTH, side)
            transform = Transform(scale, (0.0, 0.0), padded_side(height, STRIDE), padded_side(width, STRIDE))
            if (transform.height, transform.width) == tuple(images.shape[-2:]):
                seen = project_people(PEOPLE, transform, height=HEIGHT, width=WIDTH, stride=STRIDE)
                fields = encode(seen, stride=STRIDE, radius=MODEL.radius).fields
                # as logits, which is what a network gives
                return fields.replace(heatmap=40 * fields.heatmap - 20, seg=40 * fields.seg - 20)
        raise AssertionError(f"unexpected input {tuple(images.shape)}")


@pytest.mark.parametrize("sides", [(321,), (401,), (321, 401, 641)], ids=str)
def test_people_are_found_in_the_pixels_of_the_image(sides: tuple[int, ...]) -> None:
    network = Clairvoyant()
    predictor = Predictor(network, decoder(network), sides, torch.device("cpu"))  # type: ignore[arg-type]
    found = predictor(np.zeros((HEIGHT, WIDTH, 3), np.uint8))[:2]
    for truth in PEOPLE:
        best = min(found, key=lambda d: float(np.abs(d.keypoints - truth.keypoints).max()))
        np.testing.assert_allclose(best.keypoints, truth.keypoints, atol=1.0)
        size = {"size": [HEIGHT, WIDTH]}
        overlap = rle_tools.iou([size | {"counts": best.rle}], [size | {"counts": truth.rle}], [0])
        assert overlap[0, 0] > 0.85
        assert best.score > 0.8


def test_a_checkpoint_is_all_it_needs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = build(MODEL, stride=16).eval()
    checkpoint.save(tmp_path / "model.safetensors", network.state_dict(), network.card({}))
    infer = params.Infer(sides=(129,), stride=16)
    predictor = Predictor.from_checkpoint(tmp_path / "model.safetensors", infer, max_people=3)
    image = np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8)
    first, second = predictor(image), predictor(image)
    assert len(first) <= 3
    assert [d.score for d in first] == [d.score for d in second]
    assert [d.rle for d in first] == [d.rle for d in second]


def test_a_network_trained_without_refinement_is_decoded_without() -> None:
    network = build(params.Model(width=8, refine=False), stride=16)
    made = decoder(network)
    assert (made.trace_refinements, made.long_refinements) == (0, 0)


def test_decoding_is_the_judged_one_or_the_papers_scaled_to_the_radius(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    network = build(params.Model(width=8, radius=16.0), stride=16)
    for card, decode in (
        ({}, params.Decode(nms_radius=5.0, bin=1.0)),
        ({"decode": {"nms_radius": 3.0, "nms": "hard"}}, params.Decode(nms_radius=3.0, nms="hard")),
    ):
        checkpoint.save(path, network.state_dict(), network.card({}) | card)
        found = Predictor.from_checkpoint(path)
        assert found.decoder == Decoder(radius=16.0, **decode.model_dump())
        assert (found.sides, found.network.stride) == ((801,), 16)
        given = Predictor.from_checkpoint(path, decode=params.Decode(max_people=3))
        assert given.decoder == Decoder(radius=16.0, max_people=3)
        assert Predictor.from_checkpoint(path, max_people=7).decoder.max_people == 7


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 300), (200, 3)])
def test_odd_shapes_are_images_too(height: int, width: int) -> None:
    torch.manual_seed(0)
    network = build(MODEL, stride=16).eval()
    infer = params.Infer(sides=(65,), stride=16)
    predictor = Predictor(network, decoder(network), infer.sides, torch.device("cpu"))
    for detection in predictor(np.zeros((height, width, 3), np.uint8)):
        assert rle_tools.decode({"size": [height, width], "counts": detection.rle}).shape == (height, width)


def test_a_network_without_mask_heads_finds_poses_without_masks() -> None:
    torch.manual_seed(0)
    network = PersonLab(MODEL, stride=16, masks=False).eval()
    for weight in network.heads.parameters():
        nn.init.normal_(weight, std=0.1)
    infer = params.Infer(sides=(65, 97), stride=16)
    predictor = Predictor(network, decoder(network), infer.sides, torch.device("cpu"))
    found = predictor(np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8))
    assert len(found) > 0
    assert all(person.rle == b"" for person in found)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_missed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no CUDA device"):
        Predictor.from_checkpoint(tmp_path / "any.safetensors", gpu=True)
