"""The whole pipeline as one flow: the stage flows in order, and the metrics they end in.

Run it with `python -m flows.retrain`, or from the UI (`make ui`). It works where `dvc repro` works, in the
project's folder and with its params.yaml; stages that are up to date are shown as cached.
"""

import sys
from pathlib import Path
from typing import Any

from prefect import State, flow
from prefect.artifacts import create_table_artifact
from prefect.states import Completed, Failed

from flows.artifacts import publish_metrics
from flows.stages import HERE, STAGES

METRICS = Path("data/evaluate/metrics.json")


@flow(persist_result=False)
def retrain(project: Path = HERE) -> State[None]:
    """Bring every stage up to date, in order, each as a sub-flow of its own.

    Args:
        project: the folder with dvc.yaml.
    """
    outcomes: list[tuple[str, State[Any]]] = []
    for stage in STAGES:
        state = stage(project, return_state=True)
        outcomes.append((stage.name, state))
        if not state.is_completed():
            break
    publish_outcomes(outcomes)
    name, last = outcomes[-1]
    if not last.is_completed():
        return Failed(message=f"{name}: {last.message}")
    publish_metrics("retrain", METRICS, project.absolute())
    ran = [name for name, state in outcomes if state.name != "Cached"]
    return Completed(message="ran " + ", ".join(ran) if ran else "nothing to do: every stage was up to date")


def publish_outcomes(outcomes: list[tuple[str, State[Any]]]) -> None:
    rows = [{"stage": name, "outcome": state.name, "reason": state.message} for name, state in outcomes]
    create_table_artifact(rows, key="retrain-stages", description="what each stage did")


if __name__ == "__main__":
    sys.exit(not retrain(return_state=True).is_completed())
