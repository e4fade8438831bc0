"""Plans, parts and the folder of a batch run, without Ray."""

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch
from PIL import Image

from personlab import tables
from personlab.codec.decode import Level
from personlab.data import images as picture
from personlab.data.transform import ImageArray
from personlab.errors import UserError
from personlab.inference import job as batch
from personlab.inference.job import write_plan
from personlab.inference.worker import Worker
from personlab.params import Infer
from personlab.predictor import Predictor
from tests.batches import (
    DECODE,
    INFER,
    begin,
    check_truth,
    digests,
    job,
    make_all,
    save_pictures,
    save_weights,
    spoil,
)

IMAGES = 10


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_weights(tmp_path_factory.mktemp("weights") / "w.safetensors")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return save_pictures(tmp_path / "in", IMAGES)


def rows(out: Path, number: int) -> list[dict]:
    path = out / batch.part_name(number)
    return tables.read_table(path, tables.NAMED_PREDICTIONS).to_pylist()


def errors(out: Path) -> dict[str, str]:
    return {
        row["image"]: row["reason"]
        for path in sorted(out.glob("errors-*.parquet"))
        for row in tables.read_table(path, tables.FAILURES).to_pylist()
    }


def test_every_image_is_predicted_once_as_the_predictor_would(
    pictures: Path, weights: Path, tmp_path: Path
) -> None:
    worker = begin(job(pictures, weights, tmp_path / "out"))
    parts = make_all(worker)
    assert [part.predictions for part in parts] == [4, 4, 2]
    found = [row for number in range(3) for row in rows(tmp_path / "out", number)]
    assert [row["image_id"] for row in found] == list(range(IMAGES))
    assert [row["image"] for row in found] == [f"{number:03}.png" for number in range(IMAGES)]
    row, image = found[7], picture.read(pictures / "007.png")
    assert (row["height"], row["width"]) == (36, 48)
    expected = worker.predictor(image)
    assert expected
    np.testing.assert_array_equal(row["people"][0]["keypoints"], expected[0].keypoints.ravel())
    assert check_truth(tmp_path / "out").proposals == sum(len(row["people"]) for row in found)
    tables.validate(tables.read_table(tmp_path / "out/part-00000.parquet", tables.PREDICTIONS))


def test_the_bytes_depend_on_the_plan_alone(pictures: Path, weights: Path, tmp_path: Path) -> None:
    """Not on the order in which parts are made, nor on where the pictures and the results lie."""
    make_all(begin(job(pictures, weights, tmp_path / "a")))
    pictures.rename(tmp_path / "moved")
    worker = begin(job(f"file://{tmp_path}/moved", weights, f"fsspec+file://{tmp_path}/b"))
    parts = [worker.make_part(number) for number in (2, 0, 1, 0)][:3]
    batch.write_manifest(worker.job, sorted(parts, key=lambda part: part.number))
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    check_truth(tmp_path / "b")


def test_what_cannot_be_read_is_listed_with_reasons(pictures: Path, weights: Path, tmp_path: Path) -> None:
    for number, how in ((1, 0), (2, 1), (5, 2)):
        spoil(pictures / f"{number:03}.png", how)
    worker = begin(job(pictures, weights, tmp_path / "out"))
    (pictures / "006.png").unlink()
    assert [(part.predictions, part.errors) for part in make_all(worker)] == [(2, 2), (2, 2), (2, 0)]
    reasons = errors(tmp_path / "out")
    assert list(reasons) == ["001.png", "002.png", "005.png", "006.png"]
    assert "truncated" in reasons["001.png"]
    assert "not an image" in reasons["002.png"]
    assert reasons["006.png"] == "no such file"
    assert check_truth(tmp_path / "out").errors == 4


def test_a_part_of_nothing_but_errors(pictures: Path, weights: Path, tmp_path: Path) -> None:
    for number in range(4):
        spoil(pictures / f"{number:03}.png", number)
    make_all(begin(job(pictures, weights, tmp_path / "out")))
    assert rows(tmp_path / "out", 0) == []
    assert check_truth(tmp_path / "out").parts[0].errors == 4


def test_a_decoder_that_stumbles_costs_one_image(pictures: Path, weights: Path, tmp_path: Path) -> None:
    bad = (pictures / "003.png").read_bytes()

    def decode(content: bytes) -> ImageArray:
        if content == bad:
            raise IndexError("no such scan line")
        return picture.decode(content)

    make_all(begin(job(pictures, weights, tmp_path / "out", read=decode)))
    assert errors(tmp_path / "out") == {"003.png": "IndexError: no such scan line"}
    check_truth(tmp_path / "out")


@pytest.mark.parametrize("error", [MemoryError("too much"), RuntimeError("no such convolution")], ids=repr)
@pytest.mark.parametrize("gpu", [False, True])
def test_a_predictor_that_stumbles_costs_one_image(
    pictures: Path,
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    gpu: bool,
    error: Exception,
) -> None:
    """On a GPU too, as long as it computes."""
    worker = begin(job(pictures, weights, tmp_path / "out"))
    worker.batch_size, worker.job = 3, replace(worker.job, gpu=gpu)
    bad, levels, ones = picture.read(pictures / "008.png"), Predictor.levels, torch.ones

    def stumble(predictor: Predictor, images: Sequence[ImageArray]) -> list[list[Level]]:
        if any(np.array_equal(image, bad) for image in images):
            raise error
        return levels(predictor, images)

    monkeypatch.setattr(Predictor, "levels", stumble)
    monkeypatch.setattr(torch, "ones", lambda *size, device="cpu": ones(*size))
    make_all(worker)
    assert errors(tmp_path / "out") == {"008.png": f"{type(error).__name__}: {error}"}
    check_truth(tmp_path / "out")


def test_a_gpu_that_fails_stops_the_run(
    pictures: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a fault of CUDA all later calls fail: the images are not to blame."""
    worker = begin(job(pictures, weights, tmp_path / "out"))
    worker.batch_size, worker.job = 2, replace(worker.job, gpu=True)
    calls, levels = count(1), Predictor.levels

    def fail(*_: object, **__: object) -> NoReturn:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    def fail_after_three(predictor: Predictor, images: Sequence[ImageArray]) -> list[list[Level]]:
        return fail() if next(calls) > 3 else levels(predictor, images)

    monkeypatch.setattr(Predictor, "levels", fail_after_three)
    monkeypatch.setattr(torch, "ones", fail)
    with pytest.raises(UserError, match=r"the GPU failed: CUDA error: an illegal .*; run the same command"):
        make_all(worker)
    assert [path.name for path in sorted((tmp_path / "out").glob("*0.parquet"))] == ["part-00000.parquet"]
    assert not list((tmp_path / "out").glob("errors-*"))
    monkeypatch.undo()
    make_all(worker)
    check_truth(tmp_path / "out")


def test_a_part_has_several_batches(
    pictures: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = list[float]()
    monkeypatch.setattr(Predictor, "batch_size", lambda _, share: shares.append(share) or 32)
    for part_size, expected in ((1, 1), (64, 16), (1024, 32)):
        made, listing = job(pictures, weights, tmp_path / f"{part_size}", part_size=part_size)
        made.out.create()
        write_plan(made, listing)
        assert Worker(made, 0.5).batch_size == expected
    assert shares == [0.5] * 3


def test_images_that_pass_the_network_together(
    pictures: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, with its threads: the same people in the same order, but for rounding."""
    Image.new("RGB", (36, 48), (9, 9, 9)).save(pictures / "005.png")  # of another shape
    spoil(pictures / "006.png", 1)
    alone, together = (begin(job(pictures, weights, tmp_path / name)) for name in ("alone", "together"))
    together.batch_size, together.job = 3, replace(together.job, gpu=True)
    passed = list[int]()
    levels = Predictor.levels

    def counted(predictor: Predictor, images: Sequence[ImageArray]) -> list[list[Level]]:
        passed.append(len(images))
        return levels(predictor, images)

    make_all(alone)
    monkeypatch.setattr(Predictor, "levels", counted)
    make_all(together)
    assert sorted(passed) == [1, 1, 2, 2, 3]  # parts of 4, 4 and 2, one image unreadable
    for number in range(3):
        pairs = zip(rows(tmp_path / "alone", number), rows(tmp_path / "together", number), strict=True)
        for one, other in pairs:
            assert one["image"] == other["image"]
            found = [np.array([person["keypoints"] for person in row["people"]]) for row in (one, other)]
            np.testing.assert_allclose(*found, atol=1e-3)
    assert errors(tmp_path / "together") == errors(tmp_path / "alone")
    check_truth(tmp_path / "together")


def test_errors_of_an_earlier_attempt_do_not_stay(pictures: Path, weights: Path, tmp_path: Path) -> None:
    good = (pictures / "000.png").read_bytes()
    spoil(pictures / "000.png", 1)
    worker = begin(job(pictures, weights, tmp_path / "out"))
    assert worker.make_part(0).errors == 1
    (pictures / "000.png").write_bytes(good)
    assert worker.make_part(0).errors == 0
    make_all(worker)
    assert check_truth(tmp_path / "out").errors == 0


def test_after_a_death_the_same_bytes_are_made_one_by_one(
    pictures: Path, weights: Path, tmp_path: Path
) -> None:
    spoil(pictures / "001.png", 0)
    make_all(begin(job(pictures, weights, tmp_path / "a")))
    worker = begin(job(pictures, weights, tmp_path / "b"))
    (tmp_path / "b/.attempt-00000").write_text("[2, 1]")
    make_all(worker)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")


def test_an_image_that_killed_twice_is_an_error(pictures: Path, weights: Path, tmp_path: Path) -> None:
    worker = begin(job(pictures, weights, tmp_path / "out"))
    (tmp_path / "out/.attempt-00001").write_text("[5, 5]")
    make_all(worker)
    assert list(errors(tmp_path / "out")) == ["005.png"]
    assert "kills the process" in errors(tmp_path / "out")["005.png"]
    check_truth(tmp_path / "out")


class TestFinished:
    """A part counts only if its files hold all of it."""

    @pytest.fixture
    def worker(self, pictures: Path, weights: Path, tmp_path: Path) -> Worker:
        spoil(pictures / "001.png", 1)
        return begin(job(pictures, weights, tmp_path / "out"))

    def test_as_made(self, worker: Worker) -> None:
        assert batch.read_part(worker.job, 0) is None
        made = worker.make_part(0)
        assert made == batch.read_part(worker.job, 0)
        assert (made.predictions, made.errors, len(made.sha256)) == (3, 1, 2)

    def test_without_its_errors(self, worker: Worker, tmp_path: Path) -> None:
        worker.make_part(0)
        (tmp_path / "out/errors-00000.parquet").unlink()
        assert batch.read_part(worker.job, 0) is None

    def test_broken_off(self, worker: Worker, tmp_path: Path) -> None:
        worker.make_part(0)
        path = tmp_path / "out/part-00000.parquet"
        path.write_bytes(path.read_bytes()[:-50])
        assert batch.read_part(worker.job, 0) is None

    def test_that_cannot_be_opened(self, worker: Worker, tmp_path: Path) -> None:
        (tmp_path / "out/part-00000.parquet").mkdir()
        assert batch.read_part(worker.job, 0) is None

    def test_another_part_under_its_name(self, worker: Worker, tmp_path: Path) -> None:
        worker.make_part(1)
        (tmp_path / "out/part-00001.parquet").rename(tmp_path / "out/part-00000.parquet")
        assert batch.read_part(worker.job, 0) is None

    def test_of_another_plan(self, worker: Worker) -> None:
        worker.make_part(0)
        other = worker.job.plan.model_copy(update={"weights": "others"})
        assert batch.read_part(replace(worker.job, plan=other), 0) is None


class TestSettle:
    """A folder takes one run and no other."""

    @pytest.mark.parametrize(
        "change",
        ["weights", "sides, stride or precision", "decoding parameters", "images", "part size"],
    )
    def test_other_runs_are_refused(self, pictures: Path, weights: Path, tmp_path: Path, change: str) -> None:
        make_all(begin(job(pictures, weights, tmp_path / "out")))
        before = digests(tmp_path / "out")
        settings: dict = {}
        if change == "weights":
            weights = save_weights(tmp_path / "other.safetensors", seed=1)
        elif change == "sides, stride or precision":
            settings["infer"] = INFER.model_copy(update={"sides": (97,)})
        elif change == "decoding parameters":
            settings["decode"] = DECODE.model_copy(update={"nms": "hard"})
        elif change == "images":
            (pictures / "003.png").rename(pictures / "new.png")
        else:
            settings["part_size"] = 5
        with pytest.raises(UserError, match=rf"holds a run with other {change}; choose"):
            begin(job(pictures, weights, tmp_path / "out", **settings))
        assert digests(tmp_path / "out") == before

    def test_the_same_run_goes_on(self, pictures: Path, weights: Path, tmp_path: Path) -> None:
        make_all(begin(job(pictures, weights, tmp_path / "out")))
        before = digests(tmp_path / "out")
        begin(job(pictures, weights, tmp_path / "out"))
        assert digests(tmp_path / "out") == before

    def test_a_folder_of_other_things_is_refused(self, pictures: Path, weights: Path, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out/part-00000.parquet").write_text("other")
        with pytest.raises(UserError, match=r"holds part-00000\.parquet and no run"):
            begin(job(pictures, weights, tmp_path / "out"))
        assert (tmp_path / "out/part-00000.parquet").read_text() == "other"

    def test_a_plan_of_another_version_is_refused(
        self, pictures: Path, weights: Path, tmp_path: Path
    ) -> None:
        given = job(pictures, weights, tmp_path / "out")
        begin(given)
        now = given[0].plan.model_dump(mode="json")
        decode = now.pop("decode")
        v01 = now | {
            "infer": {
                **now["infer"],
                "scoring": "expected-oks",
                "nms": "soft",
                "max_people": 2,
                "gpu": False,
            },
            "codec": {
                "radius": 12.0,
                "mid_refinements": 2,
                "long_refinements": 2,
                "nms_radius": 5.0,
                "bin": 1.0,
            },
        }
        later = now | {"decode": decode | {"tracking": True}}
        for other in (v01, later, {}):
            (tmp_path / "out/plan.json").write_text(json.dumps(other))
            with pytest.raises(
                UserError, match=r"plan\.json is not of this version of personlab .*choose another"
            ):
                begin(given)
        (tmp_path / "out/plan.json").write_text(json.dumps(now | {"decode": decode, "version": "0.0.9"}))
        with pytest.raises(
            UserError, match="holds a run with other version of personlab; choose another folder"
        ):
            begin(given)


def test_no_manifest_while_an_image_is_missing(pictures: Path, weights: Path, tmp_path: Path) -> None:
    worker = begin(job(pictures, weights, tmp_path / "out"))
    parts = [worker.make_part(number) for number in (0, 2)]
    with pytest.raises(UserError, match="10 images in, 6 predictions and 0 errors out"):
        batch.write_manifest(worker.job, parts)
    assert not (tmp_path / "out/manifest.json").exists()


def test_no_manifest_over_a_plan_that_another_run_wrote(
    pictures: Path, weights: Path, tmp_path: Path
) -> None:
    worker = begin(job(pictures, weights, tmp_path / "out"))
    parts = [worker.make_part(number) for number in range(3)]
    other = worker.job.plan.model_copy(update={"infer": Infer(sides=(33,))})
    (tmp_path / "out/plan.json").write_text(other.model_dump_json())
    with pytest.raises(UserError, match="another run has written to this folder"):
        batch.write_manifest(worker.job, parts)


def test_leftovers_of_killed_processes_are_swept(pictures: Path, weights: Path, tmp_path: Path) -> None:
    worker = begin(job(pictures, weights, tmp_path / "out"))
    for name in (".part-00000.parquet.0a", "..part-00000.parquet.0a.partial", ".0a"):
        (tmp_path / "out" / name).write_text("half")
    make_all(worker)
    batch.delete_temporary(worker.job.out)
    check_truth(tmp_path / "out")


def test_weights_that_changed_are_not_used(pictures: Path, tmp_path: Path) -> None:
    weights = save_weights(tmp_path / "w.safetensors")
    given = job(pictures, weights, tmp_path / "out")
    save_weights(weights, seed=1)
    with pytest.raises(UserError, match="has changed since the run began"):
        begin(given)


def test_a_part_that_cannot_be_written_is_an_error(pictures: Path, weights: Path, tmp_path: Path) -> None:
    worker = begin(job(pictures, weights, tmp_path / "out"))
    (tmp_path / "out/part-00001.parquet").mkdir()
    worker.make_part(0)
    with pytest.raises(UserError, match="cannot be written to"):
        worker.make_part(1)
