"""Offer every flow to the Prefect server, and run what it asks for, on this machine.

`make ui` does this beside a server of its own; `python -m flows.deployments` alone does it for the server
that PREFECT_API_URL names. Run it in the project's folder.
"""

from prefect import serve
from prefect.deployments.runner import RunnerDeployment
from prefect.types.entrypoint import EntrypointType

from flows.retrain import retrain
from flows.stages import STAGES


def deployments() -> list[RunnerDeployment]:
    return [
        RunnerDeployment.from_flow(
            flow, name="local", concurrency_limit=1, entrypoint_type=EntrypointType.MODULE_PATH
        )
        for flow in (retrain, *STAGES)
    ]


if __name__ == "__main__":
    # one run at a time, whatever the flow: DVC locks the project
    serve(*deployments(), limit=1, pause_on_shutdown=False)
