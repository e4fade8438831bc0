"""`make ui`: a Prefect server for this project alone, with its flows ready to run; Ctrl-C ends both.

The server listens on 127.0.0.1 only and to no page from elsewhere, keeps its database in .prefect/ inside the
project and sends no telemetry. PERSONLAB_UI_PORT chooses another port than 4200.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from http import HTTPStatus
from pathlib import Path
from types import FrameType
from typing import Any

from personlab.errors import UserError
from personlab.utils.process import SUPERVISOR

HOST = "127.0.0.1"
START_SECONDS = 600.0  # a new database takes a slow machine more than a minute
BUSY_SECONDS = 120.0
STOP_SECONDS = 60.0  # a runner first ends the stage that it runs
KILLED = 128  # a status above this, or below 0, is that of a process which a signal ended


def main() -> None:
    for request in (signal.SIGINT, signal.SIGTERM):  # a shell's background job starts with SIGINT ignored
        signal.signal(request, interrupt)
    try:
        show(Path.cwd(), port=int(os.environ.get("PERSONLAB_UI_PORT", "4200")))
    except KeyboardInterrupt:
        print("stopped", flush=True)
    except UserError as error:
        sys.exit(f"error: {error}")


def show(project: Path, port: int) -> None:
    """Run the server and the runner until one of them ends or we are interrupted.

    A runner that was killed, for want of memory, say, is started again: the schedule goes on.

    Raises:
        UserError: the port is taken, or the server or the runner ended by itself.
    """
    if taken(port):
        raise UserError(f"port {port} is in use; choose another: PERSONLAB_UI_PORT=4201 make ui")
    url = f"http://{HOST}:{port}"
    env = environment(project, url)
    serve = ("-m", "prefect", "server", "start", "--host", HOST, "--port", str(port))
    print("starting the Prefect server ...", flush=True)
    with child(serve, env) as server:
        wait_until_healthy(f"{url}/api/health", server)
        while True:
            end_orphans(f"{url}/api")
            with child(("-m", "flows.deployments"), env) as runner:
                print(f"\nPrefect UI: {url}   (Ctrl-C stops it)\n", flush=True)
                try:
                    watch(server, runner)
                except KeyboardInterrupt:
                    cancel_runs(f"{url}/api")
                    raise
            print("the runner was killed; starting it again ...", flush=True)


def watch(server: subprocess.Popen[bytes], runner: subprocess.Popen[bytes]) -> None:
    """Return when the runner has been killed.

    Raises:
        UserError: the server has ended, or the runner by itself.
    """
    while server.poll() is None and runner.poll() is None:
        time.sleep(0.5)
    if server.poll() is not None:
        raise UserError(f"the server ended with status {server.returncode}; see above")
    if 0 <= runner.returncode <= KILLED:
        raise UserError(f"the runner ended with status {runner.returncode}; see above")


def cancel_runs(api: str) -> None:
    """Cancel what the runner runs, as the UI's button does, and wait: a runner that stops kills its runs."""
    ours = {"deployment_id": {"is_null_": False}, "state": {"type": {"any_": ["RUNNING", "CANCELLING"]}}}
    deadline = time.monotonic() + STOP_SECONDS
    with suppress(UserError):  # the server may have ended too
        while (runs := ask(api, "/flow_runs/filter", {"flow_runs": ours})) and time.monotonic() < deadline:
            for run in runs:
                if run["state_type"] == "RUNNING":
                    print(f"cancelling {run['name']} ...", flush=True)
                    ask(api, f"/flow_runs/{run['id']}/set_state", {"state": {"type": "CANCELLING"}})
            time.sleep(0.5)


def end_orphans(api: str) -> None:
    """Say of runs that were at work when their runner was killed, or the power went, that they are no more.

    They would count as running for ever, and those that wait for them would too.
    """
    question, ours = "/flow_runs/filter", {"deployment_id": {"is_null_": False}}
    at_work = {"state": {"type": {"any_": ["RUNNING", "PENDING", "CANCELLING"]}}}
    gone = {"type": "CRASHED", "message": "its runner is gone"}

    def end(which: Mapping[str, Any]) -> None:
        while runs := ask(api, question, {"flow_runs": {**which, **at_work}}):
            for run in runs:
                print(f"{run['name']} was interrupted", flush=True)
                ask(api, f"/flow_runs/{run['id']}/set_state", {"state": gone, "force": True})

    end(ours)
    crashed = {"flow_runs": {**ours, "state": {"type": {"any_": ["CRASHED"]}}}, "sort": "START_TIME_DESC"}
    # a run may have had time to say so of itself, and not of its stages
    end({"parent_flow_run_id": {"any_": [run["id"] for run in ask(api, question, crashed)]}})


def ask(api: str, route: str, question: Mapping[str, Any]) -> Any:
    """The server's answer; one that is busy with its database is asked again.

    Raises:
        UserError: there is none.
    """
    content = json.dumps(question).encode()
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            headers = {"Content-Type": "application/json", **proof(api)}
            request = urllib.request.Request(api + route, content, headers)
            with urllib.request.urlopen(request, timeout=10) as answer:
                return json.load(answer)
        except OSError as error:
            if not is_busy(error) or time.monotonic() > deadline:
                raise UserError(f"the server does not answer {api}{route} ({error}); see above") from error
        time.sleep(0.5)


def proof(api: str) -> dict[str, str]:
    """The headers without which the server does nothing."""
    client = f"personlab-{os.getpid()}"  # each has one valid token
    with urllib.request.urlopen(f"{api}/csrf-token?client={client}", timeout=10) as answer:
        return {"Prefect-Csrf-Client": client, "Prefect-Csrf-Token": json.load(answer)["token"]}


def is_busy(error: OSError) -> bool:
    if isinstance(error, urllib.error.HTTPError):
        return error.code == HTTPStatus.SERVICE_UNAVAILABLE
    return isinstance(error, TimeoutError)


def environment(project: Path, url: str) -> dict[str, str]:
    return os.environ | {
        "PREFECT_HOME": str(project / ".prefect"),
        "PREFECT_API_URL": f"{url}/api",
        # A page from elsewhere that the browser shows may not drive the server: it cannot read the answers,
        # and so has no token, without which the server does nothing.
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": f"{url},{url.replace(HOST, 'localhost')}",
        "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        # the newer UI has the browser ask a server of Amplitude's, whatever one has switched off
        "PREFECT_SERVER_UI_V2_ENABLED": "false",
        # who holds the one place of a deployment is not forgotten when the server is started again
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        "DO_NOT_TRACK": "1",
    }


@contextmanager
def child(arguments: tuple[str, ...], env: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A Python process that ends when the block is left, or we do, and with it all that it started.

    It gets a session of its own, so that Ctrl-C reaches us alone and we choose who ends first.
    """
    command = (sys.executable, str(SUPERVISOR), sys.executable, *arguments)
    process = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, start_new_session=True)
    assert process.stdin is not None
    try:
        yield process
    finally:
        process.stdin.close()
        process.wait()


def wait_until_healthy(url: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise UserError(f"the server ended with status {server.returncode}; see above")
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise UserError(f"the server did not answer {url} within {START_SECONDS:.0f} s; see above")


def taken(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


def interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
