"""Training while workers, nodes and drivers are killed, disks fill and checkpoints are damaged: same weights.

On a real cluster of three nodes and a head, with drivers in their own processes. One worker and two train on
the same batches.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest
import torch
import yaml

from personlab import tables
from personlab.model import checkpoint
from personlab.params import Params
from personlab.skeleton import COCO_PERSON
from tests.batches import save_weights
from tests.nodes import removed
from tests.object_store import S3
from tests.test_example import HEIGHT, WIDTH, person, row

pytestmark = pytest.mark.slow

STEPS, EVERY, IMAGES = 24, 4, 22
PARAMS = {
    # given weights: their normalisation statistics are frozen, as all workers have to have the same
    "model": {"backbone": "resnet18", "width": 8, "radius": 12, "init": "init.safetensors"},
    "train": {"crop": 65, "batch": 4, "steps": STEPS, "learning_rate": 1e-3}
    | {"validate_every": 12, "validate_images": 2, "validate_side": 65}
    | {"average_from": 0.1},  # before the first checkpoint: what is killed has averaged already
}
# Of rounding: the largest difference of a weight over the largest change by training. It was 1.8e-7; it would
# be about 0.06 if every worker divided by its own counts.
TOLERANCE = 1e-5
# Detect deaths soon, and do not start a watcher for warnings of preemption, which takes seconds.
ENVIRONMENT = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5", "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}


@dataclass
class Project:
    """A project with shards, weights to begin with, and nothing trained."""

    folder: Path
    cluster: Any
    prefix: Sequence[str] = ()  # of commands

    def write(self, **compute: Any) -> None:
        sections = PARAMS | {"compute": {"checkpoint_every": EVERY} | compute}
        complete = Params.model_validate(sections).model_dump(mode="json")
        (self.folder / "params.yaml").write_text(yaml.safe_dump(complete))

    def start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*self.prefix, sys.executable, "-m", "personlab", "train"],
            cwd=self.folder,
            env=os.environ | ENVIRONMENT | {"RAY_ADDRESS": self.cluster.address},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def train(self, **compute: Any) -> "Trained":
        self.write(**compute)
        return self.end(self.start())

    def end(self, driver: subprocess.Popen[str]) -> "Trained":
        """Wait for a successful end; the run's folder must be deleted."""
        output, _ = driver.communicate(timeout=600)
        assert driver.returncode == 0, output
        assert not list(self.folder.glob("runs/train-*"))
        return Trained.of(self.folder / "data", output)

    def checkpoints(self, folder: str = "runs") -> list[Path]:
        """Those that are complete, oldest first."""
        return sorted(path.parent for path in self.folder.glob(f"{folder}/train-*/step-*/state.sha256"))

    def wait_for(self, driver: subprocess.Popen[str], step: int, folder: str = "runs") -> None:
        """Until there is a checkpoint of this step, or of a later one."""
        self.wait(driver, lambda: any(step_of(path) >= step for path in self.checkpoints(folder)))

    def wait(self, driver: subprocess.Popen[str], ready: Callable[[], bool], seconds: float = 600) -> None:
        end = time.monotonic() + seconds
        while not ready():
            assert driver.poll() is None, driver.communicate()[0]
            assert time.monotonic() < end, "never came to the point where it was to fail"
            time.sleep(0.01)


@dataclass(frozen=True)
class Trained:
    """The outputs of a run and its log."""

    weights: dict[str, torch.Tensor]  # averaged
    files: dict[str, bytes]
    output: str

    @classmethod
    def of(cls, folder: Path, output: str) -> "Trained":
        weights, _ = checkpoint.load(folder / "train/model.safetensors")
        written = [folder / "metrics/train.json"]
        written += [path for name in ("train", "plots/train") for path in (folder / name).rglob("*.*")]
        files = {str(path.relative_to(folder)): path.read_bytes() for path in written}
        return cls(weights, files, output)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, ray_cluster: Any) -> Project:
    return make_project(tmp_path_factory.mktemp("project"), ray_cluster)


def make_project(folder: Path, cluster: Any) -> Project:
    save_weights(folder / "init.safetensors")
    generator = np.random.default_rng(0)
    rows = []
    for image_id in range(IMAGES):
        image = generator.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        # uneven batches: some people are crowds, and some images show no one
        people = [person(image_id, crowd=image_id % 5 == 0)] if image_id % 3 else []
        rows.append({**row(image, *people), "image_id": image_id})
    for split in ("train", "val"):
        tables.Dataset(COCO_PERSON, masks=True).write(folder / "data/ingest")
        for stage, schema in (("ingest", tables.IMAGES), ("targets", tables.TARGETS)):
            part = folder / f"data/{stage}/{split}/part-00000.parquet"
            table = pa.Table.from_pylist(rows, schema=schema)
            tables.write_table(table, part, params_hash="x", row_group_size=4)
    return Project(folder, cluster)


@pytest.fixture(scope="module")
def alone(project: Project) -> Trained:
    """One worker, uninterrupted."""
    return project.train(workers=1)


@pytest.fixture(scope="module")
def pair(project: Project) -> Trained:
    """Two workers, uninterrupted."""
    return project.train(workers=2)


def test_two_workers_train_as_one_does(project: Project, alone: Trained, pair: Trained) -> None:
    begun = checkpoint.load_weights(project.folder / "init.safetensors")
    changes = {name: (tensor - begun[name]).abs().max() for name, tensor in alone.weights.items()}
    change = max(float(value) for value in changes.values())
    differences = {name: (tensor - pair.weights[name]).abs().max() for name, tensor in alone.weights.items()}
    assert change > 0.01
    assert max(float(value) for value in differences.values()) < TOLERANCE * change
    ours, theirs = (json.loads(found.files["metrics/train.json"]) for found in (alone, pair))
    assert ours == pytest.approx(theirs, rel=1e-3)
    for found in (alone, pair):
        steps = [line.split(b"\t")[0] for line in found.files["plots/train/ap.tsv"].splitlines()]
        assert steps == [b"step", b"12", b"24"]


def test_a_worker_and_then_a_node_are_lost(project: Project, ray_cluster: Any, pair: Trained) -> None:
    project.write(workers=2)
    driver = project.start()
    project.wait_for(driver, 2 * EVERY)
    busy(ray_cluster)[0][1].kill()
    project.wait_for(driver, 4 * EVERY)
    node, _ = busy(ray_cluster)[0]
    with removed(ray_cluster, node):
        found = project.end(driver)
    assert found.files == pair.files
    assert found.output.count("resuming from step") >= 2


@pytest.fixture
def small_disk(project: Project) -> Iterator[Path]:
    """A file system of its own that holds two checkpoints, of 4 MB each, and not a third."""
    place = project.folder / "small"
    place.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=10M", "tmpfs", place], capture_output=True
    ).returncode:
        pytest.skip("needs the right to mount a file system")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_the_disk_is_full_and_the_newest_checkpoint_damaged(
    project: Project, small_disk: Path, alone: Trained
) -> None:
    project.write(workers=1, storage_path="small")
    driver = project.start()
    output, _ = driver.communicate(timeout=600)
    assert driver.returncode == 1
    assert "No space left on device" in output
    assert "make room" in output
    assert "Traceback" not in output
    assert "resuming" not in output  # compute.max_failures allows retries, which would not help
    before, newest = project.checkpoints("small")
    state = newest / "state.pt"
    state.write_bytes(state.read_bytes()[:-1000])

    subprocess.run(["mount", "-o", "remount,size=30M", small_disk], check=True)
    found = project.train(workers=1, storage_path="small", max_failures=7)  # compute may change
    assert f"{newest.name} is damaged" in found.output
    assert f"resuming from step {step_of(before)}\n" in found.output
    assert found.files == alone.files
    assert not list(small_disk.iterdir())


def test_checkpoints_on_an_object_store(project: Project, object_store: S3, alone: Trained) -> None:
    """The driver is killed; then the store is away for longer than pyarrow tries."""

    def newest() -> int:
        keys = object_store.keys("runs")
        return max((step_of(Path(key).parent) for key in keys if key.endswith("state.sha256")), default=0)

    project.write(workers=1, storage_path=object_store.uri("runs"))
    driver = project.start()
    project.wait(driver, lambda: newest() >= EVERY)
    driver.kill()
    driver.communicate()
    kept = newest()
    driver = project.start()
    project.wait(driver, lambda: newest() >= kept + EVERY)
    object_store.close()
    time.sleep(8)
    object_store.open()
    found = project.end(driver)
    assert f"resuming from step {kept}\n" in found.output
    assert found.files == alone.files
    assert not object_store.keys("runs")


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.split("-")[1])


def busy(cluster: Any) -> list[tuple[Any, psutil.Process]]:
    """Nodes with a training worker, and the worker."""
    found = []
    for node in cluster.worker_nodes:
        [raylet] = node.all_processes["raylet"]
        for child in psutil.Process(raylet.process.pid).children(recursive=True):
            if "RayTrainWorker" in " ".join(child.cmdline()):
                found.append((node, child))
    return found
