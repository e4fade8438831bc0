"""The stages of dvc.yaml as a Prefect flow, which takes the name of the stage.

A run brings a stage up to date with `dvc repro <stage>`, shows its log and progress, and publishes its
results. Stages that it depends on and that are out of date run first. If the stage is up to date, the run
ends as `Cached`, with DVC's reason.

    python -m flows.stages ingest

Only `acquire` is retried, and only if it downloads: elsewhere the same input fails the same way again, and
Ray restarts the workers of a training from their last checkpoint.
"""

import argparse
import sys
from pathlib import Path
from typing import Annotated, Final

import yaml
from prefect import State, flow, task
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed, Failed
from pydantic import Field

from flows.artifacts import for_show, publish
from flows.tools import require_server, run_module
from personlab.errors import UserError
from personlab.params import load
from personlab.utils.process import CommandError

HERE: Final = Path()  # flows run in the project's folder unless told otherwise


def stages(project: Path) -> dict[str, str]:
    """The stages of dvc.yaml, in its order, with their descriptions."""
    found = yaml.safe_load((project / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    return {name: stage.get("desc", "") for name, stage in found.items()}


OURS: Final = stages(Path(__file__).parent.parent)
Stage = Annotated[
    str,
    Field(  # for the form alone: another project may have other stages
        json_schema_extra={
            "enum": [*OURS],
            "description": "; ".join(f"{name}: {what}" for name, what in OURS.items()),
        },
    ),
]


@flow(name="stage", flow_run_name="{stage}", persist_result=False)
def run_stage(stage: Stage, project: Path = HERE, refresh: bool = False) -> State[bool]:
    """Bring a stage of dvc.yaml up to date, and the stages before it.

    Args:
        project: the folder with dvc.yaml.
        refresh: run it, and none before it, even if it is up to date.

    Returns:
        The final state: `Completed` (the stage ran), `Completed` named `Cached`, or `Failed`, whose message
        begins with the stage's own error. Its result is whether the stage ran.
    """
    project = project.absolute()
    run = repro_with_retries if stage == "acquire" and downloads(project) else repro
    try:
        reason = run(stage, project, force=refresh)
    except CommandError as failure:
        return Failed(message=str(failure), data=failure)
    with for_show(f"data/{stage}"):
        publish(stage, project)
    if reason is not None:
        return Completed(name="Cached", message=reason, data=False)
    return Completed(message="ran", data=True)


def repro(stage: str, project: Path, *, force: bool = False) -> str | None:
    """Run `dvc repro <stage>`, after other DVC commands that hold the project's lock.

    Args:
        force: run the stage, and none before it, even if it is up to date.

    Returns:
        DVC's reason why the stage did not run; None if it ran.

    Raises:
        CommandError: DVC or a stage failed; the stage's own error comes before DVC's.
    """
    options = ("--force", "--single-item") if force else ()
    lines = run_module("dvc", "--wait-for-lock", "repro", *options, stage, name=stage, project=project)
    skipped = (f"Stage '{stage}' didn't change", f"Stage '{stage}' is cached")
    return next((line for line in reversed(lines) if line.startswith(skipped)), None)


@task(name="dvc repro", retries=2, retry_delay_seconds=[30, 300], cache_policy=NO_CACHE, persist_result=False)
def repro_with_retries(stage: str, project: Path, *, force: bool = False) -> str | None:
    """`repro`, up to three times: downloads resume where they stopped."""
    return repro(stage, project, force=force)


def downloads(project: Path) -> bool:
    """Whether `acquire` uses the network; a bad params.yaml is left for the stage to report."""
    try:
        return load(project / "params.yaml").acquire.source == "coco2017"
    except UserError:
        return False


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m flows.stages", description="Run a stage as a flow.")
    parser.add_argument("stage", help="one of dvc.yaml")
    stage = parser.parse_args().stage
    require_server()
    sys.exit(not run_stage(stage, return_state=True).is_completed())


if __name__ == "__main__":
    main()
