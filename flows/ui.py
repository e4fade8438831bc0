"""`make ui`: a Prefect server for this project and a runner of its deployments; Ctrl-C stops both.

The server listens on 127.0.0.1 only, serves no pages of other origins, keeps its database in .prefect/ of
the project and sends no telemetry. PERSONLAB_UI_PORT sets its port, 4200 by default.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import httpx
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.sorting import FlowRunSort
from prefect.states import Cancelling

from flows.tools import active_runs, crash_runs
from personlab.errors import UserError
from personlab.utils.process import supervised

HOST: Final = "127.0.0.1"
START_SECONDS: Final = 600.0  # creating a database takes more than a minute on a slow machine
STOP_SECONDS: Final = 60.0  # for the runner to end the stage that it runs
SIGNALLED: Final = 128  # an exit status above it, or below 0, means that a signal ended the process
DEPLOYED: Final = {"is_null_": False}  # not runs that users started in a terminal


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # a background job of a shell starts with SIGINT ignored
        signal.signal(number, signal.default_int_handler)
    try:
        serve(Path.cwd(), free_port(os.environ.get("PERSONLAB_UI_PORT") or "4200"))
    except KeyboardInterrupt:
        print("stopped", flush=True)
    except UserError as error:
        sys.exit(f"error: {error}")


def free_port(text: str) -> int:
    """Parse a port and check that it can be listened on.

    Raises:
        UserError: it is not a port, is in use, or not allowed.
    """
    other = "choose another: PERSONLAB_UI_PORT=4201 make ui"
    if not (text.isascii() and text.isdecimal() and 0 < int(text) < 2**16):
        raise UserError(f"{text} is not a port, a number from 1 to 65535; {other}")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
        try:
            probe.bind((HOST, int(text)))
        except OSError as error:
            raise UserError(f"port {text}: {error.strerror}; {other}") from None
    return int(text)


def serve(project: Path, port: int) -> None:
    """Run the server and the runner until one of them exits or this process is interrupted.

    A runner that was killed, e.g. because memory ran out, is started again.

    Raises:
        UserError: the server or the runner exited.
    """
    url = f"http://{HOST}:{port}"
    env = environment(project, url)
    start = ("prefect", "server", "start", "--host", HOST, "--port", str(port))
    print("starting the Prefect server ...", flush=True)
    with supervised((sys.executable, "-m", *start), project, env, stdout=None) as server:
        wait_until_healthy(f"{url}/api", server)
        while True:
            with connected(f"{url}/api") as client:
                crash_orphans(client)
            command = (sys.executable, "-m", "flows.deployments")
            with supervised(command, project, env, stdout=None) as runner:
                print(f"\nPrefect UI: {url}   (Ctrl-C stops it)\n", flush=True)
                try:
                    watch(server, runner)
                except KeyboardInterrupt:
                    with suppress(UserError), connected(f"{url}/api") as client:
                        cancel_runs(client)
                    raise
            print("the runner was killed; starting it again ...", flush=True)


def watch(server: subprocess.Popen[str], runner: subprocess.Popen[str]) -> None:
    """Return when the runner was killed.

    Raises:
        UserError: the server exited, or the runner did without a signal.
    """
    while server.poll() is None and runner.poll() is None:
        time.sleep(0.5)
    if server.poll() is not None:
        raise UserError(f"the server exited with status {server.returncode}; see above")
    if 0 <= runner.returncode <= SIGNALLED:
        raise UserError(f"the runner exited with status {runner.returncode}; see above")


@contextmanager
def connected(api: str) -> Iterator[SyncPrefectClient]:
    """A client of the server.

    Raises:
        UserError: in the block, the server did not answer a request.
    """
    try:
        with SyncPrefectClient(api) as client:
            yield client
    except httpx.HTTPError as error:
        raise UserError(f"the server does not answer {api} ({error}); see above") from error


def cancel_runs(client: SyncPrefectClient) -> None:
    """Cancel the runs of deployments and wait until they have ended: a runner that stops kills its runs."""
    deadline = time.monotonic() + STOP_SECONDS
    while (runs := active_runs(client, deployment_id=DEPLOYED)) and time.monotonic() < deadline:
        for run in runs:
            if run.state and run.state.is_running():
                print(f"cancelling {run.name} ...", flush=True)
                client.set_flow_run_state(run.id, Cancelling())
        time.sleep(0.5)


def crash_orphans(client: SyncPrefectClient) -> None:
    """Mark the runs that were active when their runner was killed, and their sub-flows, as crashed."""
    for run in active_runs(client, deployment_id=DEPLOYED):
        print(f"{run.name} was interrupted", flush=True)
    crash_runs(client, "its runner is gone", deployment_id=DEPLOYED)
    # A run may have ended as crashed and been killed before it ended its sub-flows.
    crashed = {"deployment_id": DEPLOYED, "state": {"type": {"any_": ["CRASHED"]}}}
    parents = client.read_flow_runs(
        flow_run_filter=FlowRunFilter.model_validate(crashed), sort=FlowRunSort.START_TIME_DESC
    )
    crash_runs(client, "its run crashed", parent_flow_run_id={"any_": [run.id for run in parents]})


def wait_until_healthy(api: str, server: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + START_SECONDS
    with SyncPrefectClient(api) as client:
        while client.api_healthcheck():
            if server.poll() is not None:
                raise UserError(f"the server exited with status {server.returncode}; see above")
            if time.monotonic() > deadline:
                raise UserError(f"the server did not answer {api} within {START_SECONDS:.0f} s; see above")
            time.sleep(0.5)


def environment(project: Path, url: str) -> dict[str, str]:
    """The variables of the server and the runner."""
    return {
        "PREFECT_HOME": str(project / ".prefect"),
        "PREFECT_API_URL": f"{url}/api",
        # Pages of other origins cannot read the answers, so they get no CSRF token and can do nothing.
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": f"{url},{url.replace(HOST, 'localhost')}",
        "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        # Pages of the newer UI use a server of Amplitude, whatever the settings.
        "PREFECT_SERVER_UI_V2_ENABLED": "false",
        # A restarted server knows which runs hold the places of deployments.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        "DO_NOT_TRACK": "1",
    }


if __name__ == "__main__":
    main()
