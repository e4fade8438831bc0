"""What flows share: commands, whose lines become the log and whose progress a bar, and a decent end."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect import Flow, State, get_run_logger, runtime
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterParentFlowRunId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.states import Crashed

from flows.progress import ProgressBar
from personlab.utils import process
from personlab.utils.process import OnLine, OutputLine


def personlab(*arguments: str, project: Path, environment: Mapping[str, str] | None = None) -> None:
    """Run a command of `personlab` in the project's folder.

    Raises:
        CommandError: it failed.
    """
    command = (sys.executable, "-m", "personlab", *arguments)
    process.run(command, project, listener(arguments[0]), {**run_name(), **(environment or {})})


def listener(name: str) -> OnLine:
    """Hears a command called `name` for the running flow."""
    logger, bar = get_run_logger(), ProgressBar(f"{name}-progress")

    def say(said: OutputLine) -> None:
        logger.log(said.level, "%s", said.text)
        bar.hear(said)

    return say


def run_name() -> dict[str, str]:
    """Lets the log lines of every command of a run say to which run they belong."""
    return {"PERSONLAB_RUN": str(runtime.flow_run.root_flow_run_id)}


def end_sub_flows(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Say of the sub-flows of a run whose process was killed that they are no more; nobody else would."""
    at_work = FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.RUNNING, StateType.PENDING]))
    of_run = FlowRunFilterParentFlowRunId(any_=[flow_run.id])
    with get_client(sync_client=True) as client:
        for each in client.read_flow_runs(
            flow_run_filter=FlowRunFilter(parent_flow_run_id=of_run, state=at_work)
        ):
            client.set_flow_run_state(each.id, Crashed(message=state.message), force=True)
