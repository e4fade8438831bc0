"""What many tests share: real COCO images, Ray, a cluster, Prefect. In which order and process tests run."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("DVC_NO_ANALYTICS", "1")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
# Tests run beside each other, and so do the processes they start: threads would wait for each other's turn.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # training sets its own number of threads
# At Ray's default of 15 its workers would wait for all others.
os.environ.setdefault("RAY_worker_niceness", "0")
# It watches for nodes that are drained, which tests do not do; its start takes seconds.
os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
# Every node would measure its processes every few seconds, for a dashboard.
os.environ.setdefault("REPORTER_UPDATE_INTERVAL_MS", "600000")

ROOT = Path(__file__).parent.parent

# Processes of a Ray cluster that tests do without.
NEEDLESS = {"include_dashboard": False, "include_log_monitor": False, "no_monitor": True}

# What takes longest, in the order to run it. Files in a row share what is slow to start: a Prefect server; a
# cluster and an object store; a Ray of one processor.
TOGETHER = (
    ("test_flows.py", "test_flows_inference.py", "test_counts.py", "test_retrain.py"),
    ("test_stage_batch_faults.py", "test_stage_train_faults.py", "test_object_store.py"),
    (
        *("test_pipeline.py", "test_stage_batch.py", "test_stage_infer.py", "test_stage_impute.py"),
        *("test_cluster.py", "test_board.py"),
    ),
    ("test_network_faults.py",),
    ("test_ablation.py",),
    ("test_flows_ui.py",),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest comes first: no process is left alone with it in the end."""
    order = {name: number for number, names in enumerate(TOGETHER) for name in names}
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (order.get(item.path.name, len(TOGETHER)), item.path not in slow))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Whole files go to a process, and those that share something to the same, whatever --dist says."""
    from xdist.scheduler import LoadScopeScheduling

    class Together(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return next((names[0] for names in TOGETHER if Path(file).name in names), file)

    return Together(config, log)


@pytest.fixture(autouse=True)
def own_sigint() -> Iterator[None]:
    """Ray Train replaces the handler of Ctrl-C and leaves its own behind."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def testdata() -> Path:
    """The folder of real COCO images and published weights; the test skips where it is absent."""
    folder = Path(os.environ.get("PERSONLAB_TESTDATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no test data at {folder} (set PERSONLAB_TESTDATA)")
    return folder


@pytest.fixture(scope="session")
def coco_mini(testdata: Path) -> Path:
    return testdata / "coco-mini"


@pytest.fixture(scope="session")
def ray_local() -> Iterator[str]:
    """The address of one Ray on this machine for every test that needs one: starting it takes seconds.

    It has one processor, so that stages start one actor: importing torch, its start takes longer than the
    tests' images. `ray_cluster` has several actors.
    """
    from ray.cluster_utils import Cluster

    from personlab.distributed import cluster

    with pytest.MonkeyPatch.context() as patch:
        for name, value in cluster._PRIVATE.items():
            patch.setenv(name, value)
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **NEEDLESS})
    with cluster.connect(made.address):
        yield made.address
    made.shutdown()


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[Any]:
    """Three nodes of one processor each, and a head without any. Who removes a node adds another."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **NEEDLESS})
    for _ in range(3):
        cluster.add_node(num_cpus=1)
    yield cluster
    cluster.shutdown()


@pytest.fixture(scope="session")
def object_store() -> Iterator[Any]:
    """An S3 store (tests/object_store.py)."""
    from tests.object_store import S3

    store = S3()
    yield store
    store.stop()


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """A throw-away Prefect server with an empty database, shared by all tests that run flows."""
    from prefect.settings import (
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
        PREFECT_SERVER_CSRF_PROTECTION_ENABLED,
        temporary_settings,
    )
    from prefect.testing.utilities import prefect_test_harness

    settings = {
        PREFECT_SERVER_CSRF_PROTECTION_ENABLED: True,  # as `make ui` does
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None,  # to end it takes each flow up to a second
    }
    with temporary_settings(settings), prefect_test_harness(server_startup_timeout=600):
        yield
