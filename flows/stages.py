"""The stages of dvc.yaml as Prefect flows: one flow, one deployment per stage.

A run brings a stage up to date with `dvc repro <stage>`, shows its log and progress, and publishes what it
made. Stages that it needs and that are out of date run first. A stage that is up to date does not run; the
flow then ends as `Cached`, with DVC's reason.

    python -m flows.stages ingest

Only `acquire` is retried, and only if it downloads: elsewhere the same input fails the same way again, and
Ray restarts the workers of a training from their last checkpoint.
"""

import argparse
import sys
from pathlib import Path
from typing import Final, Literal, get_args

from prefect import State, flow, task
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed, Failed

from flows.artifacts import for_show, publish
from flows.repro import repro
from flows.tools import listener, run_name
from personlab.errors import UserError
from personlab.params import load
from personlab.utils.process import CommandError

HERE: Final = Path()  # flows run in the project's folder unless told otherwise

# In the order of the pipeline.
Stage = Literal["acquire", "ingest", "estimator", "impute", "targets", "train", "infer", "evaluate"]
STAGES: Final[tuple[Stage, ...]] = get_args(Stage)


@flow(name="stage", flow_run_name="{stage}", persist_result=False)
def run_stage(stage: Stage, project: Path = HERE, refresh: bool = False) -> State[bool]:
    """Bring a stage of dvc.yaml up to date.

    Args:
        stage: its name.
        project: the folder with dvc.yaml.
        refresh: run it, and none before it, even if it is up to date: DVC does not watch data outside the
            project.

    Returns:
        The final state: `Completed` (the stage ran), `Completed` named `Cached`, or `Failed`, whose message
        begins with the stage's own error. Its result is whether the stage ran.
    """
    project = project.absolute()
    reproduce = reproduce_with_retries if stage == "acquire" and downloads(project) else reproduce_once
    try:
        reason = reproduce(stage, project, force=refresh)
    except CommandError as failure:
        return Failed(message=str(failure), data=failure)
    with for_show(f"data/{stage}"):
        publish(stage, project)
    if reason is not None:
        return Completed(name="Cached", message=reason, data=False)
    return Completed(message="ran", data=True)


def reproduce_once(stage: str, project: Path, *, force: bool = False) -> str | None:
    """Run `dvc repro`, its lines in the log of the flow run and its progress as a bar."""
    return repro(stage, project, listener(stage), force=force, environment=run_name())


@task(name="dvc repro", retries=2, retry_delay_seconds=[30, 300], cache_policy=NO_CACHE, persist_result=False)
def reproduce_with_retries(stage: str, project: Path, *, force: bool = False) -> str | None:
    """`reproduce_once`, twice more if it fails: downloads resume where they stopped."""
    return reproduce_once(stage, project, force=force)


def downloads(project: Path) -> bool:
    """Whether `acquire` uses the network; a bad params.yaml is left for the stage to report."""
    try:
        return load(project / "params.yaml").acquire.source == "coco2017"
    except UserError:
        return False


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m flows.stages", description="Run one stage as a flow.")
    parser.add_argument("stage", choices=STAGES)
    state = run_stage(parser.parse_args().stage, return_state=True)
    sys.exit(not state.is_completed())


if __name__ == "__main__":
    main()
