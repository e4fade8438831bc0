"""`personlab score` and `personlab errors`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from cyclopts.types import PositiveInt

from personlab import params
from personlab.utils.files import write_json

if TYPE_CHECKING:  # --help must not wait for pycocotools
    from personlab.metrics.coco import Matches
    from personlab.metrics.files import Found

AnnotationsFile = Annotated[Path, Parameter(name="--annotations", help="COCO keypoints JSON.")]
Results = Annotated[
    str,
    Parameter(
        name="--results",
        help="COCO results JSON: keypoints, masks or both; the folder of predict --format coco or of "
        "infer-batch; or data/infer.",
    ),
]
MaxPeople = Annotated[
    PositiveInt, Parameter(name="--max-people", help="Masks per image that count; of poses always 20.")
]
ScoresFile = Annotated[Path | None, Parameter(name="--json", help="Also write the scores here.")]


def score(
    *, annotations: AnnotationsFile, results: Results, max_people: MaxPeople = 20, output: ScoresFile = None
) -> None:
    """Score COCO results with pycocotools and print the paper's columns.

    Reads annotations and results. Every annotated image counts, with or without results. Results of other
    images are refused: by id, and by file name where predict wrote images.json beside them.
    """
    from personlab.metrics import report

    evaluations = [matches for matches, _ in _matched(annotations, results, max_people)]
    print(*map(report.text, evaluations), sep="\n\n")
    if output:
        write_json(output, {matches.task: report.metrics(matches) for matches in evaluations})


def errors(
    *, annotations: AnnotationsFile, results: Results, max_people: MaxPeople = 20, output: ScoresFile = None
) -> None:
    """Say why results score as they do.

    Reads what score reads. Prints AP without each kind of error, and the share of each kind by size and by
    keypoint. Keypoints: jitter, inversion (left and right exchanged), swap (another person's) and miss.
    Masks: pixels taken from or lost to the background and other people. Both: wrong scores, duplicates, false
    positives and missed people. Errors are mended one kind at a time and scored by pycocotools.
    """
    from personlab.metrics import report
    from personlab.metrics.errors import Errors
    from personlab.utils.progress import progress

    matched = _matched(annotations, results, max_people)
    found = [Errors.of(matches, people, progress) for matches, people in matched]
    print(*map(report.errors_text, found), sep="\n\n")
    if output:
        write_json(output, {each.task: report.analysis(each) for each in found})


def _matched(annotations: Path, results: str, max_people: int) -> "list[tuple[Matches, Found]]":
    """The matches and the detections of each task."""
    from personlab.inference.read_run import read
    from personlab.metrics import files
    from personlab.metrics.coco import KEYPOINT_BUDGET, match

    project = params.of_project()
    annotated = files.read_annotations(annotations, project.acquire.categories, project.skeleton)
    budgets = {"keypoints": KEYPOINT_BUDGET, "segm": max_people}
    return [
        (match(annotated.truth, people, task, budgets[task]), people)
        for task, people in read(results, annotated).items()
    ]
