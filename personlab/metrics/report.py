"""The evaluation as a person reads it: the paper's tables and plots' records, as text and plain values."""

import math
from collections.abc import Sequence
from typing import Any, Final

from personlab.metrics import bootstrap, oks
from personlab.metrics.coco import Matches
from personlab.skeleton import KEYPOINTS

TITLES: Final = {"keypoints": "Person keypoints", "segm": "Person segmentation"}
_THRESHOLDS: Final = {"0.50": 0.5, "0.75": 0.75, "mean of 0.50 to 0.95": None}

_PICTURES: Final = (
    "Left as annotated, right as found, evenly spaced from the worst image to the best. Percentages are the "
    "average precision within the image, over all thresholds; without people, what the score of the surest "
    "false alarm leaves of 100%."
)


def metrics(matches: Matches) -> dict[str, float | None]:
    """The paper's columns to 4 digits; None where there is nobody to find."""
    return {name: _rounded(value) for name, value in matches.columns().items()}


def precision_recall(matches: Matches) -> list[dict[str, Any]]:
    """Precision at 101 recalls, at thresholds .50 and .75 and averaged over all ten: one record a point."""
    return [
        {
            "task": matches.task,
            "threshold": name,
            "recall": _rounded(recall),
            "precision": _rounded(precision),
        }
        for name, threshold in _THRESHOLDS.items()
        for recall, precision in zip(*matches.curve(threshold), strict=True)
    ]


def oks_per_keypoint(keypoints: Matches) -> list[dict[str, Any]]:
    """How well each keypoint of the people found at OKS .50 is placed, and on how many people it was."""
    means, people = oks.per_keypoint(keypoints)
    return [
        {"keypoint": name, "oks": _rounded(mean), "people": int(count)}
        for name, mean, count in zip(KEYPOINTS, means, people, strict=True)
    ]


def text(matches: Matches) -> str:
    """Two lines for a log: names above values."""
    columns = metrics(matches)
    width = max(6, *(len(name) + 1 for name in columns))
    names = "".join(name.rjust(width) for name in columns)
    values = "".join(_shown(value).rjust(width) for value in columns.values())
    label = max(len(title) for title in TITLES.values())
    return f"{TITLES[matches.task]:{label}}{names}\n{'':{label}}{values}"


def markdown(evaluations: Sequence[Matches], *, facts: Sequence[str], picture: str | None) -> str:
    """The whole report: facts, one table per task in the paper's layout, OKS per keypoint, the gallery."""
    sections = ["# Evaluation", "\n".join(f"- {fact}" for fact in facts)]
    sections += [_section(matches) for matches in evaluations]
    sections += [_oks_section(matches) for matches in evaluations if matches.task == "keypoints"]
    if picture:
        sections += [f"## Pictures, worst to best\n\n{_PICTURES}\n\n![]({picture})"]
    return "\n\n".join(sections) + "\n"


def _section(matches: Matches) -> str:
    low, high = bootstrap.interval(bootstrap.resampled_ap(matches, samples=300))
    columns = metrics(matches)
    table = _table(list(columns), [[_shown(value) for value in columns.values()]])
    sure = f"95% of 300 resamplings of the images have an AP within {_shown(low)} and {_shown(high)}."
    budget = f"At most {matches.budget} detections per image."
    return f"## {TITLES[matches.task]}\n\n{table}\n\n{budget} {sure}"


def _oks_section(keypoints: Matches) -> str:
    rows = [
        [record["keypoint"].replace("_", " "), _shown(record["oks"]), str(record["people"])]
        for record in oks_per_keypoint(keypoints)
    ]
    table = _table(["keypoint", "OKS", "people"], rows)
    return f"## Where in the body\n\nOver the people found at OKS 0.50, where annotated.\n\n{table}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---:"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _rounded(value: float) -> float | None:
    return None if math.isnan(value) else round(float(value), 4)


def _shown(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.3f}"
