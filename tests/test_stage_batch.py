"""Batch inference on a real Ray: what is done, what is left alone, and what is refused."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from personlab import tables
from personlab.data import images as picture
from personlab.data.transform import ImageArray
from personlab.distributed import batch
from personlab.errors import UserError
from tests.batches import begin, check_truth, digests, job, make_all, save_pictures, save_weights, spoil

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_local")]

IMAGES = 24


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_weights(tmp_path_factory.mktemp("weights") / "w.safetensors")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return save_pictures(tmp_path / "in", IMAGES)


@pytest.fixture(scope="module")
def whole(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a plain loop without Ray makes."""
    folder = tmp_path_factory.mktemp("whole")
    make_all(begin(job(save_pictures(folder / "in", IMAGES), weights, folder / "out")))
    check_truth(folder / "out")
    return folder / "out"


def times(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in out.glob("part-*.parquet")}


def test_what_cannot_be_read_or_decoded_is_listed_and_stops_nothing(
    pictures: Path, weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for how, number in enumerate((7, 23)):
        spoil(pictures / f"{number:03}.png", how)
    stumbling, deadly = ((pictures / name).read_bytes() for name in ("011.png", "013.png"))

    def decode(content: bytes) -> ImageArray:
        if content == stumbling:
            raise RuntimeError("the decoder stumbled")
        if content == deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        return picture.decode(content)

    manifest = batch.run(*job(pictures, weights, tmp_path / "out", read=decode))
    assert (manifest.images, manifest.predictions, manifest.errors) == (IMAGES, IMAGES - 4, 4)
    check_truth(tmp_path / "out")
    reasons = {
        row["image"]: row["reason"]
        for path in sorted((tmp_path / "out").glob("errors-*.parquet"))
        for row in tables.read_table(path, tables.FAILURES).to_pylist()
    }
    assert list(reasons) == ["007.png", "011.png", "013.png", "023.png"]
    assert reasons["011.png"] == "RuntimeError: the decoder stumbled"
    assert "kills the process" in reasons["013.png"]
    assert "4 images could not be read, see errors-*.parquet; the first: 007.png: " in caplog.text


def test_only_what_is_missing_or_broken_is_made_again(
    pictures: Path, weights: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    given, before = job(pictures, weights, out), times(out)
    batch.run(*given)  # complete: nothing happens
    assert times(out) == before

    (out / "part-00002.parquet").unlink()  # though the manifest is there
    broken = out / "part-00005.parquet"
    broken.write_bytes(broken.read_bytes()[:100])
    (out / ".part-00002.parquet.0a").write_text("half")
    batch.run(*given)
    assert digests(out) == digests(whole)
    made = {name for name, time in times(out).items() if time != before[name]}
    assert made == {"part-00002.parquet", "part-00005.parquet"}

    before = times(out)
    (out / "manifest.json").unlink()  # though all parts are there
    batch.run(*given)
    assert (digests(out), times(out)) == (digests(whole), before)
    check_truth(out)


HOLD = """
import sys
from personlab.utils.storage import Folder
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
    other.kill()
    other.communicate()
    with given[0].out.locked():  # a dead run leaves no lock
        pass


def test_a_folder_that_cannot_be_written_to(pictures: Path, weights: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot be written to"):
        batch.run(*job(pictures, weights, tmp_path / "file/out"))

    before = sorted(pictures.iterdir())
    with pytest.raises(UserError, match=r"holds 000\.png and no run; choose an empty folder"):
        batch.run(*job(pictures, weights, pictures))
    assert sorted(pictures.iterdir()) == before

    given = job(pictures, weights, tmp_path / "out")
    (tmp_path / "out").mkdir()
    batch.batch.write_plan(*given)
    (tmp_path / "out/part-00003.parquet").mkdir()  # in the middle of the run
    with pytest.raises(UserError, match="cannot be written to"):
        batch.run(*given)
    assert not (tmp_path / "out/manifest.json").exists()


def test_what_is_not_local(pictures: Path, weights: Path, whole: Path, tmp_path: Path) -> None:
    """In a plain loop; tests/test_stage_batch_faults.py has actors that use an object store."""
    make_all(begin(job(f"fsspec+file://{pictures}", weights, f"fsspec+file://{tmp_path}/out")))
    assert digests(tmp_path / "out") == digests(whole)
    check_truth(tmp_path / "out")


def test_an_actor_that_cannot_start_is_explained(pictures: Path, weights: Path, tmp_path: Path) -> None:
    weights = save_weights(tmp_path / "w.safetensors")
    given = job(pictures, weights, tmp_path / "out")
    save_weights(weights, seed=1)
    with pytest.raises(UserError, match="has changed since the run began"):
        batch.run(*given)
