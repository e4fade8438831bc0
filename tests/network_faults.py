"""Faults of a network between hosts: `python -m tests.network_faults [ROW ...]`, as root.

Prints a line for each row: what happened, and whether the bytes are those of an undisturbed run.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

import psutil

from tests import hosts
from tests.batches import begin, check_truth, digests, job, make_all, save_pictures, save_weights
from tests.hosts import Cluster, Host
from tests.test_stage_train_faults import EVERY, Project, Trained, make_project

IMAGES, PART = 120, 2
SECONDS: Final = 600  # for a run
ROWS: Final = ("none", "5s", "stop", "60s", "good", "100ms", "1%")
BAD_CABLES: Final = ("ms", "%")  # ends of the rows that need them


@contextmanager
def disturbed(row: str, cluster: Cluster, host: Host) -> Iterator[None]:
    """Cause a fault; after the block, put the host right again."""
    if row == "stop":  # a node that is slow rather than dead
        stopped = host.processes()
        for process in stopped:
            process.suspend()
        time.sleep(15)
        for process in stopped:
            if process.is_running():
                process.send_signal(signal.SIGCONT)
    elif row == "100ms":
        host.cable.seconds = 0.1
    elif row == "1%":
        host.cable.loss = 0.01
    elif row != "none":
        host.unplug()
        if row != "good":
            time.sleep(float(row.removesuffix("s")))
            host.plug()
    try:
        yield
    finally:
        if row.endswith(BAD_CABLES):
            host.cable.seconds = host.cable.loss = 0
        if row in ("60s", "good"):
            cluster.restart(host)


def batch(row: str, cluster: Cluster, folder: Path) -> str:
    out = folder / f"out-{row}"
    options = ["--side", "65", "--max-people", "2", "--part-size", str(PART)]
    command = [sys.executable, "-m", "personlab", "infer-batch", str(folder / "in")]
    driver = subprocess.Popen(
        cluster.head.command(
            *command, "--weights", str(folder / "w.safetensors"), "--out", str(out), *options
        ),
        env=os.environ | {"RAY_ADDRESS": cluster.address},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        while driver.poll() is None and len(list(out.glob("part-*"))) < IMAGES / PART / 4:
            time.sleep(0.05)
        with disturbed(row, cluster, cluster.workers[0]):
            output = driver.communicate(timeout=SECONDS)[0]
    finally:
        driver.kill()
    if driver.returncode:
        return f"status {driver.returncode}: {output.strip()[-300:]}"
    check_truth(out)
    return "same bytes" if digests(out) == digests(folder / "plain") else "OTHER BYTES"


def train(row: str, cluster: Cluster, project: Project, undisturbed: Trained | None) -> tuple[str, Trained]:
    project.write(workers=2)
    driver = project.start()
    try:
        project.wait_for(driver, 2 * EVERY)
        host = next(host for host in cluster.workers if has_worker(host))
        with disturbed(row, cluster, host):
            found = project.end(driver)
    finally:
        driver.kill()
    if undisturbed is None:
        return "the bytes that others have to be", found
    same = "same bytes" if found.files == undisturbed.files else "OTHER BYTES"
    return f"{same}, resumed {found.output.count('resuming from step')} times", found


def has_worker(host: Host) -> bool:
    for process in host.processes():
        try:
            if "RayTrainWorker" in " ".join(process.cmdline()):
                return True
        except psutil.Error:
            continue
    return False


def save_inputs(folder: Path) -> None:
    """Images, weights, and what a plain loop without Ray makes of them."""
    save_weights(folder / "w.safetensors")
    save_pictures(folder / "in", IMAGES)
    make_all(begin(job(folder / "in", folder / "w.safetensors", folder / "plain", part_size=PART)))


def run_all(rows: list[str], cluster: Cluster, folder: Path, undisturbed: Trained | None) -> Trained | None:
    """Run and print rows. Returns the training that others are compared with: the first."""
    (folder / "project").mkdir(exist_ok=True)
    project = replace(make_project(folder / "project", cluster), prefix=cluster.head.command())
    for row in rows:
        kind, _, fault = row.partition(":")
        start = time.monotonic()
        try:
            if kind == "batch":
                outcome = batch(fault, cluster, folder)
            else:
                outcome, found = train(fault, cluster, project, undisturbed)
                undisturbed = undisturbed or found
        except (AssertionError, subprocess.TimeoutExpired) as error:
            outcome = f"FAILED: {str(error)[-1500:]}"
        print(f"{row}: {outcome} ({time.monotonic() - start:.0f} s)", flush=True)
    return undisturbed


def main(rows: list[str]) -> None:
    bad = [row for row in rows if row.endswith(BAD_CABLES)]
    with tempfile.TemporaryDirectory(prefix="pl", dir="/tmp") as name:
        folder = Path(name)
        save_inputs(folder)
        with hosts.cluster(2, folder) as cluster:
            undisturbed = run_all([row for row in rows if row not in bad], cluster, folder, None)
        if bad:
            with hosts.cluster(2, folder, bad_cables=True) as cluster:
                run_all(bad, cluster, folder, undisturbed)


if __name__ == "__main__":
    main(sys.argv[1:] or [f"{kind}:{row}" for row in ROWS for kind in ("batch", "train")])
