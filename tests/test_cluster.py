"""Ray's cluster: bad addresses and folders are explained at once; requests without room are refused."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from personlab.distributed import cluster
from personlab.errors import UserError


@pytest.mark.slow
def test_requests_that_fit_are_accepted(ray_local: None) -> None:
    cluster.require(1, cpus=cluster.node_cpus(), gpus=0, hint="")
    cluster.require(2 * cluster.node_cpus(), cpus=0.5, gpus=0, hint="")


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "cpus", "gpus"), [(10**6, 0.5, 0), (1, 10**6, 0), (1, 0, 10**6)])
def test_requests_without_room_are_refused(ray_local: None, workers: int, cpus: float, gpus: int) -> None:
    total = rf"room for \d+ \({cluster.node_cpus()} CPUs and \d+ GPUs on 1 nodes\)"
    with pytest.raises(UserError, match=rf"^{workers} workers with .* {total}; set x to 1, or add nodes$"):
        cluster.require(workers, cpus=cpus, gpus=gpus, hint="set x to 1")


def test_room_for_workers_that_share_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [{"CPU": 8.0, "GPU": 2.0}, {"CPU": 1.0, "GPU": 1.0}, {"CPU": 4.0}]
    monkeypatch.setattr(cluster, "_nodes", lambda: nodes)
    room = [cluster.room(cpus=1, gpus=gpus) for gpus in (0, 1, 0.5, 0.1)]
    assert room == [13, 3, 5, 9]  # of at least one processor each


@pytest.fixture
def web_server() -> Iterator[str]:
    """The address of a server that speaks HTTP/1, as Ray's dashboard does."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(99)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        thread.join(10)


def refusal(address: str) -> str:
    with pytest.raises(UserError) as raised:
        cluster._join(address, "RAY_ADDRESS")
    message = str(raised.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("http://10.0.0.5:8265", "not an address of the form HOST:PORT"),
        ("s3://bucket/ray", "not an address of the form HOST:PORT"),
        ("head", "Invalid address format: head"),
        ("127.0.0.1:port", "invalid literal"),
        ("127.0.0.1:9", "Connection refused"),
        ("nowhere.invalid:6379", ""),  # the resolver's reason
        ("ray://127.0.0.1:9", "Connection refused"),
    ],
)
def test_addresses_without_a_cluster_are_explained(address: str, reason: str) -> None:
    message = refusal(address)
    assert message.startswith(f"no Ray cluster at {address} (RAY_ADDRESS): {reason}")
    assert message.endswith(
        "; give HOST:PORT of its head, such as 10.0.0.5:6379, or 'auto' on one of its nodes"
    )


def test_another_program_at_the_port_is_recognised(web_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "canonicalize_bootstrap_address_or_die", str)  # it replaces 127.0.0.1
    assert "another program answers at this port" in refusal(web_server)


def test_the_variable_comes_before_the_parameter(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(cluster, "_join", lambda *place: asked.append(place))
    monkeypatch.setattr(cluster, "_start", lambda: asked.append("private"))
    monkeypatch.setattr(cluster, "_configure_data", lambda: None)
    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(cluster.ray, "shutdown", lambda: None)
    for variable in ("a:1", "local", ""):
        monkeypatch.setenv("RAY_ADDRESS", variable)
        with cluster.connect("b:2"):
            pass
    monkeypatch.delenv("RAY_ADDRESS")
    for parameter in ("", None):
        with cluster.connect(parameter):
            pass
    assert asked == [("a:1", "RAY_ADDRESS"), "private", ("b:2", "compute.ray_address"), "private", "private"]


@pytest.mark.parametrize("folder", ["/scratch/" + 31 * "x", "/scratch/über", "scratch"])
def test_folders_that_do_not_suit_rays_sockets_are_not_used(
    monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    for variable in ("RAY_TMPDIR", "TMPDIR"):
        monkeypatch.delenv("RAY_TMPDIR", raising=False)
        monkeypatch.setenv(variable, folder)
        assert cluster._temp_dir() == "/tmp/ray"
        monkeypatch.setenv(variable, "/scratch/" + 30 * "x")
        assert cluster._temp_dir() is None


def test_a_machine_that_is_too_busy_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: object) -> None:
        raise Exception("The current node timed out during startup.")  # as Ray does

    monkeypatch.setattr(cluster, "_PRIVATE", {})  # sets variables
    monkeypatch.setattr(cluster.ray, "init", init)
    with pytest.raises(UserError, match=r"^Ray cannot start: .* timed out during startup; RAY_TMPDIR"):
        cluster._start()


@pytest.mark.slow
def test_ray_starts_where_temporary_files_have_a_long_path_and_names_a_folder_that_it_cannot_make(
    tmp_path: Path,
) -> None:
    long = tmp_path / (60 * "x")
    long.mkdir()
    started = start(TMPDIR=str(long))
    assert (started.returncode, int(started.stdout) > 0) == (0, True), started.stderr
    refused = start(RAY_TMPDIR="/dev/null")
    assert "UserError: Ray cannot start: " in refused.stderr
    assert "'/dev/null/ray'; RAY_TMPDIR sets the folder of its files, /tmp by default" in refused.stderr


def start(**variables: str) -> subprocess.CompletedProcess[str]:
    """Start a private Ray in another process, which prints the number of CPUs."""
    code = "from personlab.distributed import cluster\nwith cluster.connect(): print(cluster.node_cpus())"
    environment = os.environ | variables
    return subprocess.run((sys.executable, "-c", code), env=environment, capture_output=True, text=True)
