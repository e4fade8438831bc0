"""Serve every deployment of prefect.yaml on this machine: register it with the server and run what is due.

`make ui` does this beside a server of its own; `python -m flows.deployments` does it for the server at
PREFECT_API_URL. For a work pool instead, see prefect.yaml.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import yaml
from prefect import serve
from prefect.deployments.runner import RunnerDeployment
from prefect.flows import load_flow_from_entrypoint
from prefect.schedules import Schedule
from prefect.types.entrypoint import EntrypointType

from flows.tools import require_server

FILE: Final = Path(__file__).parent.parent / "prefect.yaml"


def deployments() -> Iterator[RunnerDeployment]:
    """The deployments of prefect.yaml, to be served from code."""
    for each in yaml.safe_load(FILE.read_text(encoding="utf-8"))["deployments"]:
        yield RunnerDeployment.from_flow(
            load_flow_from_entrypoint(each["entrypoint"]),
            name=each["name"],
            description=each["description"],
            tags=each["tags"],
            parameters=each.get("parameters"),
            schedules=[Schedule(**schedule) for schedule in each.get("schedules", ())],
            concurrency_limit=each["concurrency_limit"],
            entrypoint_type=EntrypointType.MODULE_PATH,
        )


def main() -> None:
    require_server()
    # One run at a time, whatever the flow: stages share a project, and a training takes the whole machine.
    serve(*deployments(), limit=1, pause_on_shutdown=False)


if __name__ == "__main__":
    main()
