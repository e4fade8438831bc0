"""Batch inference while processes and nodes die, and nodes join: same files, nothing lost, nothing doubled.

On a real cluster of three nodes and a head; drivers are processes of their own. What is expected is what a
plain loop without Ray makes, byte by byte.
"""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from personlab.data import images
from personlab.data.transform import ImageArray
from personlab.distributed import batch, cluster
from tests.batches import begin, check_truth, digests, job, make_all, save_pictures, save_weights, spoil
from tests.nodes import removed
from tests.object_store import S3

pytestmark = pytest.mark.slow

IMAGES, PART = 160, 2
FEW = 12  # images on the object store, whose server is slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, a twentieth of them corrupt, and weights."""
    folder = tmp_path_factory.mktemp("batch")
    save_weights(folder / "w.safetensors")
    save_pictures(folder / "in", IMAGES)
    for number in range(0, IMAGES, 20):
        spoil(folder / f"in/{number:03}.png", number // 20)
    return folder


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str, str]:
    """What a plain loop without Ray makes."""
    make_all(begin(job(folder / "in", folder / "w.safetensors", folder / "plain", part_size=PART)))
    return digests(folder / "plain")


class Run:
    """`personlab infer-batch` in a process of its own, on local folders or on those of a store."""

    def __init__(self, folder: Path, out: Path, cluster: Any, store: S3 | None = None) -> None:
        options = ["--side", "65", "--max-people", "2", "--part-size", str(PART)]
        place = store.uri if store else str
        self.out, self.store = out, store
        self.total = (FEW if store else IMAGES) / PART
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "personlab", "infer-batch", place(folder / "in")),
                *("--weights", place(folder / "w.safetensors"), "--out", place(out), *options),
            ],
            env=os.environ | {"RAY_ADDRESS": cluster.address},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def parts(self) -> list[Path]:
        files = map(Path, self.store.keys(str(self.out))) if self.store else self.out.glob("*")
        return sorted(path for path in files if path.match("part-*.parquet"))

    def wait_for(self, share: float, seconds: float = 300) -> None:
        """Until this share of the parts is there."""
        end = time.monotonic() + seconds
        while len(self.parts()) < share * self.total:
            assert self.process.poll() is None, self.process.communicate()[0]
            assert time.monotonic() < end, "never came to the point where it was to be killed"
            time.sleep(0.1 if self.store else 0.01)
        assert len(self.parts()) < self.total, "too late to be killed"

    def end(self) -> str:
        """What it printed; it must have succeeded."""
        output, _ = self.process.communicate(timeout=300)
        assert self.process.returncode == 0, output
        return output


def test_a_driver_and_then_an_actor_are_killed_and_a_node_is_removed(
    folder: Path, ray_cluster: Any, expected: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run = Run(folder, out, ray_cluster)
    run.wait_for(0.25)
    run.process.kill()
    run.process.communicate()
    done = {path.name: path.stat().st_mtime_ns for path in run.parts()}
    run = Run(folder, out, ray_cluster)
    run.wait_for(0.5)
    actors(busy(ray_cluster)[0])[0].kill()
    run.wait_for(0.75)
    with removed(ray_cluster, busy(ray_cluster)[-1]):
        assert "resuming" in run.end()
    assert {name: (out / name).stat().st_mtime_ns for name in done} == done  # nothing is made again
    assert digests(out) == expected
    assert check_truth(out).errors == IMAGES // 20


def test_a_node_that_joins_is_used(
    folder: Path, ray_cluster: Any, expected: dict[str, str], tmp_path: Path
) -> None:
    run = Run(folder, tmp_path / "out", ray_cluster)
    run.wait_for(0.1)
    waiting = [actor for node in busy(ray_cluster) for actor in actors(node)]
    for actor in waiting:
        actor.suspend()
    done = len(run.parts())
    node = ray_cluster.add_node(num_cpus=1)
    try:
        run.wait_for((done + 1) / run.total)
        assert actors(node)
    finally:
        for actor in waiting:
            actor.resume()
    run.end()
    ray_cluster.remove_node(node)
    assert digests(tmp_path / "out") == expected


def test_two_actors_share_a_gpu(
    folder: Path, ray_cluster: Any, expected: dict[str, str], tmp_path: Path
) -> None:
    """A GPU that only Ray knows of; networks run on the CPU."""
    node = ray_cluster.add_node(num_cpus=3, num_gpus=1)
    seen = tmp_path / "seen"
    seen.mkdir()

    def decode(content: bytes) -> ImageArray:
        (seen / str(os.getpid())).write_text(os.environ["CUDA_VISIBLE_DEVICES"])
        end = time.monotonic() + 120
        while len(list(seen.iterdir())) < 2 and time.monotonic() < end:
            time.sleep(0.1)
        return images.decode(content)

    given = job(folder / "in", folder / "w.safetensors", tmp_path / "out", part_size=PART, read=decode)
    with cluster.connect(ray_cluster.address):
        batch.run(*given, gpus_per_actor=0.5)
    ray_cluster.remove_node(node)
    assert [path.read_text() for path in seen.iterdir()] == ["0", "0"]
    assert digests(tmp_path / "out") == expected


def test_images_weights_and_results_on_an_object_store(
    folder: Path, ray_cluster: Any, object_store: S3, tmp_path: Path
) -> None:
    """The driver is killed. tests/test_object_store.py has stores that are busy or away."""
    save_pictures(tmp_path / "in", FEW)
    spoil(tmp_path / "in/003.png", 1)
    make_all(begin(job(tmp_path / "in", folder / "w.safetensors", tmp_path / "local", part_size=PART)))
    object_store.upload(tmp_path / "in", "batch/in")
    object_store.upload(folder, "batch")
    given = (Path("batch"), Path("batch/out"), ray_cluster, object_store)
    run = Run(*given)
    run.wait_for(0.2)
    run.process.kill()
    run.process.communicate()
    assert "resuming" in Run(*given).end()
    out = object_store.download("batch/out", tmp_path / "out")
    assert digests(out) == digests(tmp_path / "local")
    assert check_truth(out).errors == 1


def actors(node: Any) -> list[psutil.Process]:
    """Processes on a node that make parts."""
    [raylet] = node.all_processes["raylet"]
    children = psutil.Process(raylet.process.pid).children(recursive=True)
    return [child for child in children if "MapWorker" in " ".join(child.cmdline())]


def busy(cluster: Any) -> list[Any]:
    """Nodes with an actor."""
    return [node for node in cluster.worker_nodes if actors(node)]
