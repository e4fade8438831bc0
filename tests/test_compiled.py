"""The loops of the CPU and the vectorised steps of every other device: the same results, step by step."""

import pytest
import torch

from personlab.codec import compiled, decode, vectorised
from personlab.codec.fields import Fields
from personlab.codec.pyramid import Frame, Level
from personlab.codec.vectorised import Steps
from tests.reference.scenes import adversarial, predicted, random_fields
from tests.test_decode import Decoder, assert_matches_reference

RADIUS, NMS_RADIUS, THRESHOLD = 32.0, 10.0, 0.01


def levels_of(fields: Fields, scales: tuple[float, ...] = (1.0,)) -> tuple[list[Level], Frame]:
    """The same fields, in double precision, said to be of several scales; the image is as large as they."""
    exact = fields.replace(**{name: tensor.double() for name, tensor in fields.tensors().items()})
    levels = [Level(exact, scale) for scale in scales]
    height, width = ((n - 1) * fields.stride + 1 for n in fields.seg.shape[1:])
    return levels, Frame.common(levels, height, width)


def assert_same_steps(levels: list[Level], frame: Frame, bin: float = 2.0) -> None:
    """To 1e-6, in double precision: 16 edges of random offsets multiply what rounding leaves."""
    results = []
    for steps in (compiled, vectorised):
        hough, seeds = steps.vote(levels, frame, radius=RADIUS, bin=bin, threshold=THRESHOLD)
        found = steps.find_people(levels, frame, seeds, mid_steps=2, nms_radius=NMS_RADIUS, most=200)
        scores = steps.expected_oks(hough, found.keypoints, found.presence, radius=RADIUS)
        claimed = steps.claimed(found.keypoints, radius=NMS_RADIUS)
        poses = (found.keypoints, found.presence, scores, claimed)
        results.append((hough.score, seeds.score, *poses))
    for one, other in zip(*results, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", adversarial())
def test_adversarial_scenes(name: str) -> None:
    levels, frame = levels_of(predicted(adversarial()[name], radius=RADIUS))
    assert_same_steps(levels, frame)


@pytest.mark.parametrize("scales", [(1.0,), (0.5, 1.0), (0.7, 1.0, 1.6)])
def test_pyramids(scales: tuple[float, ...]) -> None:
    """Random offsets send votes everywhere, beyond the borders too."""
    levels, frame = levels_of(random_fields(3, rows=9, columns=7, stride=8, spread=10.0), scales)
    assert_same_steps(levels, frame)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_constant_heatmaps(value: float) -> None:
    fields = random_fields(0, rows=9, columns=9, stride=8, spread=6.0)
    levels, frame = levels_of(fields.replace(heatmap=torch.full_like(fields.heatmap, value)))
    assert_same_steps(levels, frame)


@pytest.mark.parametrize("steps", [compiled, vectorised])
def test_what_is_finite(steps: Steps) -> None:
    """Huge values are; those that are not are seen wherever they are."""
    huge = torch.full((3, 5), 3e38)
    huge[0] *= -1
    assert steps.is_finite(huge)
    for value in (float("nan"), float("inf"), -float("inf")):
        for place in (0, 7, 14):
            bad = torch.zeros(3, 5)
            bad.view(-1)[place] = value
            assert not steps.is_finite(bad)


@pytest.mark.parametrize("name", ["one person", "touching, 3 px apart", "on the border", "half outside"])
def test_the_vectorised_steps_match_the_reference(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU the decoder takes the loops, so here it is made to take the others."""
    monkeypatch.setattr(decode, "steps_for", lambda device: vectorised)
    assert_matches_reference(predicted(adversarial()[name], radius=RADIUS), Decoder())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["one person", "half outside", "1000 px tall"])
def test_a_gpu_finds_the_same_people(name: str) -> None:
    """To 1e-2 px: single precision, and sums of votes in any order."""
    fields = predicted(adversarial()[name], radius=RADIUS)
    height, width = ((n - 1) * fields.stride + 1 for n in fields.seg.shape[1:])
    one, other = (
        Decoder().poses([Level(fields.to(device), 1.0)], height=height, width=width)
        for device in ("cpu", "cuda")
    )
    assert len(one.scores) == len(other.scores)
    torch.testing.assert_close(other.keypoints.cpu(), one.keypoints, rtol=0, atol=1e-2)
    torch.testing.assert_close(other.scores.cpu(), one.scores, rtol=0, atol=1e-4)
