"""`make ui`: a server and a runner start together, stop together, and keep the schedule."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from prefect.client.schemas.filters import FlowRunFilter

from flows.deployments import deployments
from flows.ui import connected, crash_orphans, free_port, watch
from personlab.errors import UserError
from tests.conftest import ROOT


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def start_ui(folder: Path, port: int) -> subprocess.Popen[str]:
    env = os.environ | {"PERSONLAB_UI_PORT": str(port), "PYTHONPATH": str(ROOT)}
    command = (sys.executable, "-m", "flows.ui")
    return subprocess.Popen(
        command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def next_runs(port: int) -> dict[str, str]:
    """The time of day at which each scheduled run starts, by its id, once there are any."""
    deadline = time.monotonic() + 120
    scheduled = FlowRunFilter.model_validate({"state": {"type": {"any_": ["SCHEDULED"]}}})
    with connected(f"http://127.0.0.1:{port}/api") as client:
        while time.monotonic() < deadline:
            if runs := client.read_flow_runs(flow_run_filter=scheduled):
                return {str(run.id): f"{run.expected_start_time:%H:%M:%S}" for run in runs}
            time.sleep(0.5)
    return {}


def answered(port: int, method: str, **headers: str) -> int:
    """The status of the answer to a page that asks for runs."""
    url = f"http://127.0.0.1:{port}/api/flow_runs/filter"
    content = b"{}" if method == "POST" else None
    try:
        with urllib.request.urlopen(urllib.request.Request(url, content, headers, method=method)) as answer:
            status: int = answer.status
            return status
    except urllib.error.HTTPError as error:
        return error.code


def check_other_origins(port: int) -> None:
    """Check that a page of another origin cannot use the server, with a preflight request or without."""
    preflight = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "prefect-csrf-token",
    }
    assert answered(port, "OPTIONS", Origin=f"http://127.0.0.1:{port}", **preflight) == 200
    assert answered(port, "OPTIONS", Origin="https://elsewhere.example", **preflight) == 400
    assert answered(port, "POST", Origin="https://elsewhere.example") == 403


def child_of(parent: int, word: str) -> int:
    """The child process with a word in its command line."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    (found,) = (pid for pid in children if word in Path(f"/proc/{pid}/cmdline").read_text())
    return int(found)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="needs /proc")
def test_the_ui_starts_serves_every_flow_starts_a_killed_runner_again_and_stops(tmp_path: Path) -> None:
    port = unused_port()
    with start_ui(tmp_path, port) as ui:
        assert ui.stdout is not None
        output = "".join(iter(ui.stdout.readline, "Deployments\n"))
        assert f"Prefect UI: http://127.0.0.1:{port}" in output
        names = [f"{each.flow_name}/{each.name}" for each in deployments()]
        served = {line for _, line in zip(range(3 + len(names)), ui.stdout, strict=False)}
        assert all(any(f" {name} " in line for line in served) for name in names)
        assert set(next_runs(port).values()) == {"03:00:00"}
        check_other_origins(port)
        os.kill(child_of(child_of(ui.pid, "flows.deployments"), "flows.deployments"), signal.SIGKILL)
        again = "".join(iter(ui.stdout.readline, "Deployments\n"))
        assert "the runner was killed; starting it again ..." in again
        scheduled = next_runs(port)
        ui.send_signal(signal.SIGINT)
        assert ui.stdout.read().endswith("stopped\n")
    assert ui.returncode == 0
    assert (tmp_path / ".prefect" / "prefect.db").is_file()
    with start_ui(tmp_path, port) as ui:  # with the same database
        assert ui.stdout is not None
        "".join(iter(ui.stdout.readline, f"Prefect UI: http://127.0.0.1:{port}   (Ctrl-C stops it)\n"))
        assert scheduled.items() <= next_runs(port).items()
        ui.send_signal(signal.SIGINT)
        assert ui.stdout.read().endswith("stopped\n")
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_a_port_in_use_is_an_error(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        ui = start_ui(tmp_path, other.getsockname()[1])
        output = ui.communicate(timeout=120)[0]
    assert "Address already in use; choose another: PERSONLAB_UI_PORT=" in output
    assert "Traceback" not in output
    assert ui.returncode == 1


@pytest.mark.parametrize("end", ["exit 137", "kill -9 $$"])
def test_a_runner_is_killed_if_it_or_its_supervisor_was(end: str) -> None:
    with subprocess.Popen(("sleep", "20")) as server:
        with subprocess.Popen(("bash", "-c", end)) as runner:
            watch(server, runner)
        with subprocess.Popen(("bash", "-c", "exit 3")) as runner, pytest.raises(UserError, match="status 3"):
            watch(server, runner)
        server.kill()


@pytest.mark.parametrize("port", ["42x", "", "-1", "0", "65536", "4200 ", "²"])
def test_what_is_not_a_port_is_an_error(port: str) -> None:
    with pytest.raises(UserError, match="is not a port, a number from 1 to 65535; choose another"):
        free_port(port)


def test_a_server_that_does_not_answer_is_an_error() -> None:
    api = f"http://127.0.0.1:{unused_port()}/api"
    with pytest.raises(UserError, match="the server does not answer http"), connected(api) as client:
        crash_orphans(client)
