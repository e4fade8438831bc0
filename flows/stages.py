"""Every DVC stage as a Prefect flow: bring the stage up to date, show its log and what it made.

Run one with `python -m flows.stages ingest`, or from the UI (`make ui`). A flow runs `dvc repro <stage>`,
so whatever the stage needs that is out of date is made first, and a stage that is up to date is not run:
its flow ends as `Cached`, with DVC's reason.

Only `acquire` is retried, and only where it downloads: elsewhere the same input fails the same way again,
and Ray already restarts the workers of a stage from their last checkpoint.
"""

import argparse
import sys
from pathlib import Path
from typing import Protocol

from prefect import State, flow, task
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed, Failed

from flows.artifacts import StageArtifacts, for_show
from flows.repro import repro
from flows.tools import listener, run_name
from personlab.errors import UserError
from personlab.params import load
from personlab.utils.process import CommandError

HERE = Path()  # flows run in the project's folder, unless told otherwise


class Reproduce(Protocol):
    def __call__(self, stage: str, project: Path, *, force: bool = False) -> str | None: ...


@flow(flow_run_name="acquire", persist_result=False)
def acquire(project: Path = HERE, refresh: bool = False) -> State[bool]:
    """Render the sample people, locate a COCO layout, or download COCO 2017.

    Args:
        project: the folder with dvc.yaml.
        refresh: look at the data again, though DVC knows of no change: it does not watch folders outside.
    """
    shows = StageArtifacts("acquire", metrics=None, tables=("source.json",))
    patience = reproduce_patiently if downloads(project) else reproduce
    return up_to_date(shows, project, patience, force=refresh)


@flow(flow_run_name="ingest", persist_result=False)
def ingest(project: Path = HERE) -> State[bool]:
    """COCO JSON to validated tables, every reject explained.

    Args:
        project: the folder with dvc.yaml.
    """
    return up_to_date(StageArtifacts("ingest", pictures=("sheet.jpg",)), project)


@flow(flow_run_name="estimator", persist_result=False)
def estimator(project: Path = HERE) -> State[bool]:
    """Train the single-person estimator that imputation asks.

    Args:
        project: the folder with dvc.yaml.
    """
    return up_to_date(StageArtifacts("estimator"), project)


@flow(flow_run_name="impute", persist_result=False)
def impute(project: Path = HERE) -> State[bool]:
    """Keypoints for small people that have a mask but no keypoints.

    Args:
        project: the folder with dvc.yaml.
    """
    return up_to_date(StageArtifacts("impute", pictures=("imputed.png",)), project)


@flow(flow_run_name="targets", persist_result=False)
def targets(project: Path = HERE) -> State[bool]:
    """Shards that hold all that training, inference and evaluation read.

    Args:
        project: the folder with dvc.yaml.
    """
    return up_to_date(StageArtifacts("targets"), project)


@flow(flow_run_name="train", persist_result=False)
def train(project: Path = HERE) -> State[bool]:
    """Train the network; a training that was cut short goes on from its last checkpoint.

    Args:
        project: the folder with dvc.yaml.
    """
    return up_to_date(StageArtifacts("train", curves=("plots/ap",)), project)


@flow(flow_run_name="infer", persist_result=False)
def infer(project: Path = HERE) -> State[bool]:
    """Poses and masks of the people in the validation shards.

    Args:
        project: the folder with dvc.yaml.
    """
    return up_to_date(StageArtifacts("infer"), project)


@flow(flow_run_name="evaluate", persist_result=False)
def evaluate(project: Path = HERE) -> State[bool]:
    """Score the predictions by COCO's rules.

    Args:
        project: the folder with dvc.yaml.
    """
    shows = StageArtifacts("evaluate", pictures=("gallery.jpg",), reports=("report.md",))
    return up_to_date(shows, project)


# in the order of the pipeline
STAGES = (acquire, ingest, estimator, impute, targets, train, infer, evaluate)


def reproduce(stage: str, project: Path, *, force: bool = False) -> str | None:
    """`dvc repro`: line by line into the log of the run, and how far the stage is as a bar."""
    return repro(stage, project, listener(stage), force=force, environment=run_name())


@task(name="dvc repro", retries=2, retry_delay_seconds=[30, 300], cache_policy=NO_CACHE, persist_result=False)
def reproduce_patiently(stage: str, project: Path, *, force: bool = False) -> str | None:
    """`reproduce`, twice more if it fails: networks come back, and downloads go on where they stopped."""
    return reproduce(stage, project, force=force)


def up_to_date(
    shows: StageArtifacts, project: Path, reproduce: Reproduce = reproduce, *, force: bool = False
) -> State[bool]:
    """The body of every stage flow: reproduce the stage, publish its artifacts, say what happened.

    Returns:
        The final state of the run: `Completed` (its result: whether the stage ran), `Completed` by the name
        of `Cached`, or `Failed`, whose message begins with the stage's own error.
    """
    try:
        reason = reproduce(shows.stage, project.absolute(), force=force)
    except CommandError as failure:
        return Failed(message=str(failure), data=failure)
    with for_show(f"data/{shows.stage}"):
        shows.publish(project.absolute())
    if reason is not None:
        return Completed(name="Cached", message=reason, data=False)
    return Completed(message="ran", data=True)


def downloads(project: Path) -> bool:
    """Whether `acquire` reaches for the network; a bad params.yaml is left for the stage to report."""
    try:
        return load(project / "params.yaml").acquire.source == "coco2017"
    except UserError:
        return False


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m flows.stages", description="run one stage as a flow")
    flows = {stage.name: stage for stage in STAGES}
    parser.add_argument("stage", choices=flows)
    state = flows[parser.parse_args().stage](return_state=True)
    sys.exit(not state.is_completed())


if __name__ == "__main__":
    main()
