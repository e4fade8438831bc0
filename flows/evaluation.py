"""Score anybody's results, or the champion or any weights, beside the champion's own scores.

Run it from the UI (`make ui`), or with `prefect deployment run evaluation/local --param scoring=...`.
"""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from prefect import State, flow
from prefect.artifacts import create_table_artifact
from prefect.states import Completed, Failed
from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from flows.artifacts import for_show, metrics_rows
from flows.batch_inference import Batch, batch_inference
from flows.stages import HERE
from flows.tools import end_sub_flows, personlab
from personlab.errors import UserError
from personlab.registry.models import Registry
from personlab.report.differences import compare, flatten
from personlab.utils.process import CommandError


class Scoring(BaseModel):
    """What to score, and against what."""

    model_config = ConfigDict(extra="forbid")

    annotations: str = Field(description="COCO person keypoints JSON")
    results: str | Batch = Field(
        description="COCO results JSON: keypoints, masks or both; or the folder of a batch inference; or a "
        "batch inference to make first, of the folder that the annotations' file names are relative to"
    )
    max_people: PositiveInt = Field(default=20, description="Masks per image that count; of poses always 20")

    @property
    def place(self) -> str:
        """Where the results are."""
        return self.results.out if isinstance(self.results, Batch) else self.results


@flow(persist_result=False, on_crashed=[end_sub_flows])
def evaluation(scoring: Scoring, project: Path = HERE) -> State[dict[str, Any]]:
    """Score results by pycocotools: somebody's, or what the champion or other weights find.

    The champion's scores stand beside them; they were measured on its own validation images.

    Args:
        scoring: what to score, and against what.
        project: the folder that relative paths are relative to.
    """
    project = project.absolute()
    if isinstance(scoring.results, Batch):
        found = batch_inference(scoring.results, project, return_state=True)
        if not found.is_completed():
            return Failed(message=f"{batch_inference.name}: {found.message}")
    try:
        scores = scored(scoring, project)
        champion = Registry(project).champion()
    except (CommandError, UserError) as failure:
        return Failed(message=str(failure), data=failure)
    before = {
        task: values
        for task, values in (champion.lineage.metrics if champion else {}).items()
        if task in scores
    }
    differences = compare(flatten(before), flatten(scores))
    with for_show("the scores"):
        create_table_artifact(
            metrics_rows(differences, before="champion, on its own images"),
            key="evaluation-scores",
            description=f"{scoring.place} against {scoring.annotations}",
        )
    said = ", ".join(f"{task} AP {values['AP']}" for task, values in scores.items())
    return Completed(message=said, data=scores)


def scored(scoring: Scoring, project: Path) -> dict[str, Any]:
    with TemporaryDirectory() as name:
        file = Path(name) / "scores.json"
        options = ("--max-people", str(scoring.max_people), "--json", str(file))
        inputs = ("--annotations", scoring.annotations, "--results", scoring.place)
        personlab("score", *inputs, *options, project=project)
        scores: dict[str, Any] = json.loads(file.read_text())
        return scores
