"""Batch inference on a real Ray: what is done, what is left alone, and what is refused."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from personlab import tables
from personlab.data import picture
from personlab.data.view import ImageArray
from personlab.errors import UserError
from personlab.stages import batch
from tests.batches import check_truth, digests, job, save_pictures, save_weights, spoil

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_local")]

IMAGES = 40


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_weights(tmp_path_factory.mktemp("weights") / "w.safetensors")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return save_pictures(tmp_path / "in", IMAGES)


def test_an_image_that_kills_its_process_is_found_out(pictures: Path, weights: Path, tmp_path: Path) -> None:
    bad = (pictures / "013.png").read_bytes()

    def decode(content: bytes) -> ImageArray:
        if content == bad:
            os.abort()
        return picture.decode(content)

    manifest = batch.run(*job(pictures, weights, tmp_path / "out", decode=decode))
    assert (manifest.predictions, manifest.errors) == (IMAGES - 1, 1)
    check_truth(tmp_path / "out")
    [row] = tables.read_table(tmp_path / "out/errors-00003.parquet", tables.FAILURES).to_pylist()
    assert row["image"] == "013.png"
    assert "kills the process" in row["reason"]


def times(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in out.glob("part-*.parquet")}


def test_a_corrupt_twentieth_and_a_stumbling_decoder_are_listed_and_stop_nothing(
    pictures: Path, weights: Path, tmp_path: Path
) -> None:
    for how, number in enumerate((7, 23)):
        spoil(pictures / f"{number:03}.png", how)
    bad = (pictures / "011.png").read_bytes()

    def decode(content: bytes) -> ImageArray:
        if content == bad:
            raise RuntimeError("the decoder stumbled")
        return picture.decode(content)

    manifest = batch.run(*job(pictures, weights, tmp_path / "out", decode=decode))
    assert (manifest.images, manifest.predictions, manifest.errors) == (IMAGES, IMAGES - 3, 3)
    check_truth(tmp_path / "out")
    reasons = [
        (row["image"], row["reason"])
        for path in sorted((tmp_path / "out").glob("errors-*.parquet"))
        for row in tables.read_table(path, tables.FAILURES).to_pylist()
    ]
    assert [image for image, _ in reasons] == ["007.png", "011.png", "023.png"]
    assert reasons[1][1] == "RuntimeError: the decoder stumbled"


def test_only_what_is_missing_or_broken_is_made_again(pictures: Path, weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    given = job(pictures, weights, out)
    batch.run(*given)
    whole, before = digests(out), times(out)
    (out / "manifest.json").unlink()
    (out / "part-00002.parquet").unlink()
    broken = out / "part-00005.parquet"
    broken.write_bytes(broken.read_bytes()[:100])
    (out / ".part-00002.parquet.0a").write_text("half")
    batch.run(*given)
    assert digests(out) == whole
    made = {name for name, time in times(out).items() if time != before[name]}
    assert made == {"part-00002.parquet", "part-00005.parquet"}
    check_truth(out)

    batch.run(*given)  # complete: nothing happens
    assert digests(out) == whole

    (out / "part-00003.parquet").unlink()  # though the manifest is there
    batch.run(*given)
    assert digests(out) == whole


HOLD = """
import sys
from personlab.storage import Folder
with Folder(sys.argv[1]).locked():
    print(flush=True)
    sys.stdin.read()
"""


def test_another_run_does_not_get_in(pictures: Path, weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    given = job(pictures, weights, out)
    out.mkdir()
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert other.stdout
    other.stdout.readline()
    with pytest.raises(UserError, match="another run is writing here"):
        batch.run(*given)
    assert not digests(out)
    other.kill()  # a dead run locks nobody out
    other.communicate()
    batch.run(*given)
    check_truth(out)


def test_a_folder_that_cannot_be_written_to(pictures: Path, weights: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot be written to"):
        batch.run(*job(pictures, weights, tmp_path / "file/out"))

    given = job(pictures, weights, tmp_path / "out")
    (tmp_path / "out").mkdir()
    batch.batch.settle(*given)
    (tmp_path / "out/part-00003.parquet").mkdir()  # in the middle of the run
    with pytest.raises(UserError, match="cannot be written to"):
        batch.run(*given)
    assert not (tmp_path / "out/manifest.json").exists()
    (tmp_path / "out/part-00003.parquet").rmdir()
    batch.run(*given)
    check_truth(tmp_path / "out")


def test_what_is_not_local(pictures: Path, weights: Path, tmp_path: Path) -> None:
    batch.run(*job(pictures, weights, tmp_path / "a"))
    batch.run(*job(f"fsspec+file://{pictures}", weights, f"fsspec+file://{tmp_path}/b"))
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    check_truth(tmp_path / "b")


def test_an_actor_that_cannot_start_is_explained(pictures: Path, weights: Path, tmp_path: Path) -> None:
    weights = save_weights(tmp_path / "w.safetensors")
    given = job(pictures, weights, tmp_path / "out")
    save_weights(weights, seed=1)
    with pytest.raises(UserError, match="not what the run began with"):
        batch.run(*given)
