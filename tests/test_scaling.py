"""The cost model: its arithmetic, and that docs/notes/scaling.md shows what it says now."""

from dataclasses import fields, replace

import pytest

from benchmarks import scaling
from benchmarks.scaling import Assumed, Measured, actor, coco, images_per_s, step, tables
from tests.conftest import ROOT

M = replace(
    Measured(),
    train_tflop=1.2,
    parameters=50e6,
    loader_s=0.07,
    rasterise_s=0.004,
    infer_tflop=3.0,
    large_codec_s=0.02,
    large_rle_s=0.01,
    decode_s=0.005,
    part_s=0.01,
    jpeg_bytes=160e3,
)
A = replace(Assumed(), gpu_tflops=60, cores_per_gpu=8, gpus_per_node=8, nvlink_bytes=100e9, network_bytes=3e9)


def test_a_step_on_one_gpu_is_the_network_s_operations() -> None:
    alone = step(M, A, gpus=1, batch=8)
    assert alone.exchange == 0
    assert alone.seconds == pytest.approx(8 * 1.2 / 60)
    assert alone.bound == "GPU"


def test_gradients_take_the_network_once_workers_are_on_several_machines() -> None:
    near, far = step(M, A, gpus=8, batch=8), step(M, A, gpus=16, batch=16)
    assert near.exchange == pytest.approx(2 * 7 / 8 * 200e6 / 100e9)
    assert far.exchange == pytest.approx(2 * 15 / 16 * 200e6 / 3e9)
    assert far.bound == "exchange"
    assert far.seconds == far.gpu + far.exchange


def test_too_few_processors_leave_the_gpu_waiting() -> None:
    slow = step(M, replace(A, cores_per_gpu=2), gpus=1, batch=8)
    assert slow.bound == "loader"
    assert slow.seconds == pytest.approx(8 * 0.07)


def test_an_actor_computes_in_sequence_and_decodes_in_parallel() -> None:
    large = actor(M, A, "ResNet-101")
    assert large.seconds == pytest.approx(3 / 60 + 0.02 + 0.01)
    assert actor(replace(M, decode_s=0.5), A, "ResNet-101").seconds == 0.5


def test_more_actors_are_bound_by_the_driver_at_last() -> None:
    few, many = (images_per_s(M, A, "ResNet-101", gpus) for gpus in (8, 10_000))
    assert few == (pytest.approx(8 / 0.08), "GPU, then processor")
    assert many == (256 / 0.01, "driver")
    assert images_per_s(M, replace(A, storage_bytes=160e3), "ResNet-101", 8) == (1, "storage")


def test_eight_times_the_gpus_infer_in_an_eighth_of_the_time() -> None:
    few, many = ({stage.name: stage.seconds for stage in coco(M, A, gpus)} for gpus in (1, 8))
    assert few["infer"] == pytest.approx(8 * many["infer"])
    assert few["ingest"] == many["ingest"]


def test_every_input_has_been_measured() -> None:
    assert all(getattr(Measured(), field.name) > 0 for field in fields(Measured))


@pytest.mark.parametrize("title", tables(M, A))
def test_the_page_shows_the_model_s_tables(title: str) -> None:
    assert tables(Measured(), Assumed())[title] in (ROOT / "docs/notes/scaling.md").read_text()


def test_inputs_are_given_by_name() -> None:
    measured, assumed = scaling._given(["gpu_tflops=120", "decode_s=0.01"])
    assert (assumed.gpu_tflops, measured.decode_s) == (120, 0.01)
    with pytest.raises(SystemExit, match="no inputs: gpu_tflop"):
        scaling._given(["gpu_tflop=120"])
