"""Commands, sub-flows and the Prefect server, for all flows."""

import logging
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from prefect import Flow, State, get_run_logger, runtime
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import FailedRun
from prefect.settings import PREFECT_API_URL
from prefect.states import Crashed

from flows.progress import ProgressBar
from personlab.errors import UserError
from personlab.utils import process
from personlab.utils.process import CommandError, OutputLine

# Ray reports as an error that a pool of actors of Ray Data, which can always be restarted, can be restarted.
NOISE: Final = re.compile(
    r"\[[^]]*\] core_worker\.cc:\d+: Actor with class name.* has constructor arguments in "
)


def is_unexpected(record: logging.LogRecord) -> bool:
    """Whether a record reports another error than those that are messages of failed runs."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, UserError | CommandError | FailedRun)


# The process of a deployment's run ends with a traceback of every error, expected or not.
for _name in ("prefect.engine", "prefect.flow_runs"):
    logging.getLogger(_name).addFilter(is_unexpected)


def run_module(
    module: str, *arguments: str, name: str, project: Path, environment: Mapping[str, str] | None = None
) -> list[str]:
    """Run `python -m <module>` in the project's folder and return the lines that it printed.

    They are logged by the running flow; progress is shown as a bar called `<name>-progress`.

    Args:
        environment: variables added to those of this process.

    Raises:
        CommandError: it failed.
    """
    logger, bar, lines = get_run_logger(), ProgressBar(f"{name}-progress"), list[str]()

    def on_line(line: OutputLine) -> None:
        if NOISE.match(line.text):
            return
        logger.log(line.level, "%s", line.text)
        bar.on_line(line)
        lines.append(line.text)

    # all log lines of a flow run, its sub-flows included, name the same run
    run = {"PERSONLAB_RUN": str(runtime.flow_run.root_flow_run_id)}
    process.run((sys.executable, "-m", module, *arguments), project, on_line, {**run, **(environment or {})})
    return lines


def personlab(*arguments: str, project: Path, environment: Mapping[str, str] | None = None) -> None:
    """Run a `personlab` command as `run_module` does."""
    run_module("personlab", *arguments, name=arguments[0], project=project, environment=environment)


def active_runs(client: SyncPrefectClient, **which: Any) -> list[FlowRun]:
    """Runs that are running, pending or being cancelled. which: further fields of a `FlowRunFilter`."""
    states = {"type": {"any_": ["RUNNING", "PENDING", "CANCELLING"]}}
    return client.read_flow_runs(flow_run_filter=FlowRunFilter.model_validate({"state": states, **which}))


def crash_runs(client: SyncPrefectClient, message: str | None, **which: Any) -> None:
    """Mark active runs whose process is gone as crashed; they would count as running for ever."""
    while runs := active_runs(client, **which):
        for run in runs:
            client.set_flow_run_state(run.id, Crashed(message=message), force=True)


def end_sub_flows(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Mark the active sub-flows of a run that crashed as crashed; a hook for `on_crashed`."""
    with get_client(sync_client=True) as client:
        crash_runs(client, state.message, parent_flow_run_id={"any_": [flow_run.id]})


def require_server() -> None:
    """Exit with an error if Prefect is set to use a server that does not answer.

    Without PREFECT_API_URL, Prefect starts a server for the time of the run.
    """
    if not PREFECT_API_URL.value():
        return
    try:
        with get_client(sync_client=True) as client:
            client.raise_for_api_version_mismatch()
    except RuntimeError as error:
        sys.exit(f"error: {error}; 'make ui' starts a Prefect server, or set PREFECT_API_URL")
