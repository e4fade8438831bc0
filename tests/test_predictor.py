"""From image to people, with a network that sees perfectly: what comes out are the people that are there."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
import torch
from pycocotools import mask as rle_tools
from torch import Tensor, nn

from personlab import params
from personlab.codec.encode import encode
from personlab.codec.fields import Fields, padded_side
from personlab.data.example import project_people
from personlab.data.transform import Transform, fit
from personlab.errors import UserError
from personlab.inference.job import make_plan
from personlab.inference.listing import list_images
from personlab.model import checkpoint
from personlab.model.network import PersonLab, build
from personlab.people import Annotation
from personlab.predictor import Predictor, decoder, probabilities
from personlab.skeleton import COCO_PERSON
from tests.batches import save_pictures
from tests.coco_person import K
from tests.conftest import ROOT

T = TypeVar("T")

HEIGHT, WIDTH, STRIDE = 240, 320, 8
MODEL = params.Model(width=8)
V01 = ROOT / "tests/fixtures/v0.1/model.safetensors"


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
    """Knows the people; the size of its input tells at what scale."""

    model, decode, stride, skeleton = MODEL, None, STRIDE, COCO_PERSON

    def forward(self, images: Tensor) -> Fields:
        for side in (321, 401, 641):
            scale, height, width = fit(HEIGHT, WIDTH, side)
            transform = Transform(scale, (0.0, 0.0), padded_side(height, STRIDE), padded_side(width, STRIDE))
            if (transform.height, transform.width) == tuple(images.shape[-2:]):
                seen = project_people(
                    PEOPLE, transform, height=HEIGHT, width=WIDTH, stride=STRIDE, skeleton=COCO_PERSON
                )
                fields = encode(seen, stride=STRIDE, radius=MODEL.radius, skeleton=COCO_PERSON).fields
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


def save(path: Path, radius: float = 32.0, **card: object) -> Path:
    torch.manual_seed(0)
    network = build(MODEL.model_copy(update={"radius": radius}), stride=16, skeleton=COCO_PERSON)
    checkpoint.save(path, network.state_dict(), network.card({}) | card)
    return path


def test_other_arrays_than_images_are_refused() -> None:
    network = Clairvoyant()
    predictor = Predictor(network, decoder(network), (321,), torch.device("cpu"))  # type: ignore[arg-type]
    image = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    for other in (image, image[..., 0], image[..., :3] / 255, image[..., :3].tolist()):
        with pytest.raises(TypeError, match="height x width x 3, RGB, uint8, not "):
            predictor(other)


def test_a_checkpoint_is_all_it_needs(tmp_path: Path) -> None:
    weights = save(tmp_path / "model.safetensors")
    predictor = Predictor.from_checkpoint(str(weights), params.Infer(sides=(129,)), max_people=3)
    image = np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8)
    first, second = predictor(image), predictor(image)
    assert len(first) <= 3
    assert [d.score for d in first] == [d.score for d in second]
    assert [d.rle for d in first] == [d.rle for d in second]


@pytest.mark.parametrize("backbone", ["mobilenet", "resnet50"])
def test_fields_do_not_depend_on_the_number_of_threads(tmp_path: Path, backbone: params.BackboneKind) -> None:
    torch.manual_seed(0)
    network = build(params.Model(backbone=backbone, width=16), stride=8, skeleton=COCO_PERSON)
    for head in network.heads.parameters():
        nn.init.normal_(head, std=0.1)
    checkpoint.save(tmp_path / "w.safetensors", network.state_dict(), network.card({}))
    infer = params.Infer(sides=(449,), stride=8, precision="float32")
    predictor = Predictor.from_checkpoint(tmp_path / "w.safetensors", infer)
    image = np.random.default_rng(0).integers(0, 255, (449, 449, 3), np.uint8)
    first, *others = with_threads(lambda: predictor.level(image, 449).fields.tensors())
    for name, field in first.items():
        assert all(torch.equal(field, other[name]) for other in others), name


@pytest.mark.parametrize(("precision", "bound"), [("bfloat16", 0.05), ("float16", 0.005)])
def test_16_bits_move_fields_little(tmp_path: Path, precision: params.InferPrecision, bound: float) -> None:
    weights = save(tmp_path / "model.safetensors")
    image = np.random.default_rng(0).integers(0, 255, (129, 129, 3), np.uint8)
    exact, rounded = (
        Predictor.from_checkpoint(weights, params.Infer(precision=each)).level(image, 129).fields.tensors()
        for each in ("float32", precision)
    )
    for name, field in rounded.items():
        assert field.dtype == torch.float32
        assert 0 < float((field - exact[name]).abs().max()) < bound * float(exact[name].abs().max())


def test_numbers_too_large_for_float16(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = build(MODEL, stride=16, skeleton=COCO_PERSON)
    with torch.no_grad():
        next(network.backbone.parameters()).mul_(1e7)
    checkpoint.save(tmp_path / "w.safetensors", network.state_dict(), network.card({}))
    image = np.random.default_rng(0).integers(0, 255, (129, 129, 3), np.uint8)
    exact, half = (
        Predictor.from_checkpoint(tmp_path / "w.safetensors", params.Infer(sides=(129,), precision=precision))
        for precision in ("float32", "float16")
    )
    exact(image)
    with pytest.raises(UserError, match="not finite: float16 ends at 65504; predict in float32"):
        half(image)


def test_probabilities_do_not_depend_on_the_number_of_threads() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 8 * torch.randn(1, 17, 99, 97, generator=generator)
    rest = torch.zeros(1, 17, 2, 99, 97)
    fields = Fields(logits, rest, rest, logits[:, 0], rest, stride=8)
    first, *others = with_threads(lambda: probabilities(fields).heatmap)
    assert all(torch.equal(first, other) for other in others)


def with_threads(function: Callable[[], T]) -> list[T]:
    """What a function returns with 1, 2, 3 and 4 threads."""
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 4):
            torch.set_num_threads(threads)
            found.append(function())
    finally:
        torch.set_num_threads(before)
    return found


def test_a_network_trained_without_refinement_is_decoded_without() -> None:
    made = decoder(build(params.Model(width=8, refine=False), stride=16, skeleton=COCO_PERSON))
    assert (made.trace_refinements, made.long_refinements) == (0, 0)


def decoding_of(weights: Path, *, decode: params.Decode | None = None, **options: int) -> dict[str, object]:
    """All parameters of the decoder that a checkpoint gets, its radius too."""
    settings = asdict(Predictor.from_checkpoint(weights, decode=decode, **options).decoder)
    assert settings.pop("long_refinements") == 2
    assert settings.pop("skeleton") == COCO_PERSON.to_record()
    return settings


def test_there_is_one_set_of_defaults(tmp_path: Path) -> None:
    """Of the checkpoint's card, or else the paper's at the network's radius; given ones come first."""
    paper = params.Decode()
    assert decoding_of(save(tmp_path / "a.safetensors")) == {"radius": 32.0} | paper.model_dump()
    small = save(tmp_path / "b.safetensors", radius=8.0)
    scaled = paper.model_copy(update={"nms_radius": 2.5, "bin": 0.5})
    assert decoding_of(small) == {"radius": 8.0} | scaled.model_dump()
    judged = params.Decode(nms_radius=4, nms="hard", max_people=7)
    served = save(tmp_path / "c.safetensors", radius=8.0, decode=judged.model_dump())
    assert decoding_of(served) == {"radius": 8.0} | judged.model_dump()
    assert decoding_of(served, max_people=3) == {"radius": 8.0} | judged.model_dump() | {"max_people": 3}
    assert decoding_of(served, decode=paper, max_people=3) == {"radius": 8.0} | paper.model_dump() | {
        "max_people": 3
    }
    predictor = Predictor.from_checkpoint(served)
    assert (predictor.sides, predictor.network.stride) == (params.Infer().sides, params.Infer().stride)
    listing = list_images(str(save_pictures(tmp_path / "in", 1)))
    plan = make_plan(listing, served, params.Infer(), part_size=1)
    assert plan.decode == judged
    assert make_plan(listing, small, params.Infer(), max_people=3, part_size=1).decode == scaled.model_copy(
        update={"max_people": 3}
    )


def test_a_checkpoint_of_version_01_is_decoded_as_it_was() -> None:
    assert (
        decoding_of(V01) == {"radius": 12.0} | params.Decode(nms_radius=5, bin=1, extensions=()).model_dump()
    )
    assert (
        Predictor.from_checkpoint(V01, params.Infer(sides=(65,)))(np.zeros((48, 64, 3), np.uint8)) is not None
    )


def test_what_other_versions_put_into_a_card_does_not_matter(tmp_path: Path) -> None:
    shutil.copyfile(V01, tmp_path / "w.safetensors")
    card = json.loads(V01.with_suffix(".json").read_text())
    card["model"] |= {"dropout": 0.1}
    card["codec"] |= {"tiles": 4}
    card |= {"quantised": True, "infer": {"speed": "fast"}}
    (tmp_path / "w.json").write_text(json.dumps(card))
    assert decoding_of(tmp_path / "w.safetensors") == decoding_of(V01)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 300), (200, 3)])
def test_odd_shapes_are_images_too(height: int, width: int) -> None:
    torch.manual_seed(0)
    network = build(MODEL, stride=16, skeleton=COCO_PERSON).eval()
    predictor = Predictor(network, decoder(network), (65,), torch.device("cpu"))
    for detection in predictor(np.zeros((height, width, 3), np.uint8)):
        assert rle_tools.decode({"size": [height, width], "counts": detection.rle}).shape == (height, width)


def test_a_network_without_mask_heads_finds_poses_without_masks() -> None:
    torch.manual_seed(0)
    network = PersonLab(MODEL, stride=16, masks=False, skeleton=COCO_PERSON).eval()
    for weight in network.heads.parameters():
        nn.init.normal_(weight, std=0.1)
    predictor = Predictor(network, decoder(network), (65, 97), torch.device("cpu"))
    found = predictor(np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8))
    assert len(found) > 0
    assert all(person.rle == b"" for person in found)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_missed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no CUDA device"):
        Predictor.from_checkpoint(tmp_path / "any.safetensors", gpu=True)


@pytest.mark.parametrize(
    ("needed", "share", "size"), [(0.5, 1, 32), (6, 1, 3), (6, 0.5, 2), (2, 0.25, 3), (100, 1, 1)]
)
def test_as_many_images_pass_a_gpu_together_as_fit_twice(
    monkeypatch: pytest.MonkeyPatch, needed: float, share: float, size: int
) -> None:
    """64 of 80 GB are free, an image takes `needed` GB; torch's memory statistics are made up."""
    network = build(params.Model(width=8), stride=16, skeleton=COCO_PERSON)
    predictor = Predictor(network, decoder(network), (65,), torch.device("cuda"))
    seen = list[int]()
    monkeypatch.setattr(Predictor, "levels", lambda _, images: seen.append(len(images)))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 1e9)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 1e9 + needed * 1e9)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (64e9, 80e9))
    assert predictor.batch_size(share) == size
    assert seen == [1]
