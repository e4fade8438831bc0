"""Offer every flow to the Prefect server, and run what it asks for, on this machine.

`make ui` does this beside a server of its own; `python -m flows.deployments` alone does it for the server
that PREFECT_API_URL names. Run it in the project's folder. For a work pool instead, see flows/prefect.yaml.
"""

from typing import Any

from prefect import Flow, serve
from prefect.deployments.runner import RunnerDeployment
from prefect.types.entrypoint import EntrypointType

from flows.batch_inference import batch_inference
from flows.evaluation import evaluation
from flows.retrain import retrain
from flows.stages import STAGES

WEEKLY = "0 3 * * 1"  # Mondays at 03:00, UTC


def deployments() -> list[RunnerDeployment]:
    others: list[Flow[..., Any]] = [batch_inference, evaluation, *STAGES]
    return [deployed(retrain, cron=WEEKLY), *(deployed(flow) for flow in others)]


def deployed(flow: Flow[..., Any], cron: str | None = None) -> RunnerDeployment:
    return RunnerDeployment.from_flow(
        flow, name="local", cron=cron, concurrency_limit=1, entrypoint_type=EntrypointType.MODULE_PATH
    )


if __name__ == "__main__":
    # one run at a time, whatever the flow: DVC locks the project
    serve(*deployments(), limit=1, pause_on_shutdown=False)
