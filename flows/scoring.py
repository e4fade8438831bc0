"""Score COCO results, or predictions to be made, beside the champion's scores, as a flow.

Run it from the UI (`make ui`), or with `prefect deployment run scoring/scoring --param scoring=...`.
"""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

from prefect import State, flow
from prefect.artifacts import create_table_artifact
from prefect.states import Completed, Failed
from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from flows.artifacts import Row, for_show, metrics_rows
from flows.batch_inference import Batch, batch_inference
from flows.stages import HERE
from flows.tools import end_sub_flows, personlab
from personlab.errors import UserError
from personlab.registry.models import Registry
from personlab.report.differences import compare, flatten
from personlab.utils.process import CommandError


class Scoring(BaseModel):
    """Results and the annotations to score them against."""

    model_config = ConfigDict(extra="forbid")

    annotations: str = Field(description="COCO keypoints JSON")
    results: str | Batch = Field(
        description="COCO results JSON: keypoints, masks or both; or the folder of a batch inference; or a "
        "batch inference to run first, of the folder that the annotations' file names are relative to"
    )
    max_people: PositiveInt = Field(default=20, description="Masks per image that count; of poses always 20")

    @property
    def place(self) -> str:
        """Path or URI of the results."""
        return self.results.out if isinstance(self.results, Batch) else self.results


@flow(persist_result=False, on_crashed=[end_sub_flows])
def scoring(scoring: Scoring, project: Path = HERE) -> State[Row]:
    """Score results with pycocotools, beside the champion's scores on its own validation images.

    Args:
        scoring: results and the annotations to score them against.
        project: the folder that relative paths are relative to.
    """
    project = project.absolute()
    if isinstance(scoring.results, Batch):
        inference = batch_inference(scoring.results, project, return_state=True)
        if not inference.is_completed():
            return Failed(message=f"{batch_inference.name}: {inference.message}")
    try:
        scores = score(scoring, project)
        champion = Registry(project).champion()
    except (CommandError, UserError) as failure:
        return Failed(message=str(failure), data=failure)
    before = champion.lineage.metrics if champion else {}
    differences = compare(flatten({task: before[task] for task in scores if task in before}), flatten(scores))
    with for_show("the scores"):
        create_table_artifact(
            metrics_rows(differences, before="champion, on its own images"),
            key="scoring-scores",
            description=f"{scoring.place} against {scoring.annotations}",
        )
    message = ", ".join(f"{task} AP {values['AP']}" for task, values in scores.items())
    return Completed(message=message, data=scores)


def score(scoring: Scoring, project: Path) -> Row:
    """Run `personlab errors`; its scores by task, AP without each kind of error included."""
    with TemporaryDirectory() as name:
        file = Path(name) / "errors.json"
        options = ("--max-people", str(scoring.max_people), "--json", str(file))
        inputs = ("--annotations", scoring.annotations, "--results", scoring.place)
        personlab("errors", *inputs, *options, project=project)
        return {task: each["scores"] for task, each in json.loads(file.read_bytes()).items()}
