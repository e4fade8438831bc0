"""Offer every flow to the Prefect server, and run what it asks for, on this machine.

`make ui` does this beside a server of its own; `python -m flows.deployments` alone does it for the server
that PREFECT_API_URL names. Run it in the project's folder. For a work pool instead, see flows/prefect.yaml.
"""

from typing import Any

from prefect import Flow, serve
from prefect.deployments.runner import RunnerDeployment
from prefect.schedules import Cron, Schedule
from prefect.types.entrypoint import EntrypointType

from flows.batch_inference import batch_inference
from flows.evaluation import evaluation
from flows.retrain import retrain
from flows.stages import STAGES

# Mondays at 03:00; what is retrained without anybody asking is retrained for the sake of new data
WEEKLY = Cron("0 3 * * 1", timezone="UTC", parameters={"settings": {"refresh_data": True}})


def deployments() -> list[RunnerDeployment]:
    others: list[Flow[..., Any]] = [batch_inference, evaluation, *STAGES]
    return [deployed(retrain, WEEKLY), *(deployed(flow) for flow in others)]


def deployed(flow: Flow[..., Any], schedule: Schedule | None = None) -> RunnerDeployment:
    return RunnerDeployment.from_flow(
        flow, name="local", schedule=schedule, concurrency_limit=1, entrypoint_type=EntrypointType.MODULE_PATH
    )


if __name__ == "__main__":
    # one run at a time, whatever the flow: stages share a project, and a training takes the whole machine
    serve(*deployments(), limit=1, pause_on_shutdown=False)
