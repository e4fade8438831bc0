"""Fixtures that many tests share: the real COCO images and quiet libraries."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("DVC_NO_ANALYTICS", "1")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
# Tests run beside each other, and so do the processes they start: threads would wait for each other's turn.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, the stages foremost: of two processes, neither is left alone with them."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.path not in slow, not item.path.name.startswith("test_stage")))


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
def ray_local() -> Iterator[None]:
    """One local Ray for every test that needs one: starting it takes seconds."""
    from personlab.stages import cluster

    with cluster.connect():
        yield


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """A throw-away Prefect server with an empty database, shared by all tests that run flows."""
    from prefect.settings import PREFECT_SERVER_CSRF_PROTECTION_ENABLED, temporary_settings
    from prefect.testing.utilities import prefect_test_harness

    as_make_ui_does = {PREFECT_SERVER_CSRF_PROTECTION_ENABLED: True}
    with temporary_settings(as_make_ui_does), prefect_test_harness(server_startup_timeout=600):
        yield
