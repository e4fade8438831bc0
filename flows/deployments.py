"""Serve every deployment of prefect.yaml on this machine: register it with the server and run what is due.

`make ui` does this beside a server of its own; `python -m flows.deployments` alone does it for the server at
PREFECT_API_URL. For a work pool instead, see prefect.yaml.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import yaml
from prefect import serve
from prefect.deployments.runner import RunnerDeployment
from prefect.flows import load_flow_from_entrypoint
from prefect.schedules import Cron, Schedule
from prefect.types.entrypoint import EntrypointType

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
            schedules=[_schedule(schedule) for schedule in each.get("schedules", [])],
            concurrency_limit=each["concurrency_limit"],
            entrypoint_type=EntrypointType.MODULE_PATH,
        )


def _schedule(each: dict[str, Any]) -> Schedule:
    return Cron(each["cron"], timezone=each["timezone"], parameters=each["parameters"])


def main() -> None:
    # one run at a time, whatever the flow: stages share a project, and a training takes the whole machine
    try:
        serve(*deployments(), limit=1, pause_on_shutdown=False)
    except httpx.TransportError as error:
        sys.exit(f"error: no Prefect server answers ({error}); 'make ui' starts one, or set PREFECT_API_URL")


if __name__ == "__main__":
    main()
