"""The evaluation as metrics, records of plots, text and Markdown."""

import math
from collections.abc import Sequence
from typing import Any, Final

from personlab.metrics import bootstrap, oks
from personlab.metrics.coco import Matches

TITLES: Final = {"keypoints": "Person keypoints", "segm": "Person segmentation"}
MEASURES: Final = {"keypoints": "OKS", "segm": "IoU"}
_THRESHOLDS: Final = {"0.50": 0.5, "0.75": 0.75, "mean of 0.50 to 0.95": None}

_PICTURES: Final = (
    "Annotated people on the left, confident detections with their scores on the right; a person has one "
    "colour on both sides. Images with people are evenly spaced from the worst to the best; images without "
    "people that have false alarms follow. Percentages are the average precision within the image, averaged "
    "over the thresholds."
)


def metrics(matches: Matches) -> dict[str, float | None]:
    """The paper's columns to 4 digits; None for NaN."""
    return {name: _rounded(value) for name, value in matches.columns().items()}


def precision_recall(evaluations: Sequence[Matches]) -> list[dict[str, float | None]]:
    """Precision at 101 recalls, at thresholds .50 and .75 and averaged over all ten: one row per recall."""
    recalls = [k / 100 for k in range(101)]  # pycocotools'
    curves = {
        f"{MEASURES[matches.task]} {name}": matches.curve(threshold)[1]
        for matches in evaluations
        for name, threshold in _THRESHOLDS.items()
    }
    return [
        {"recall": recall, **{name: _rounded(curve[k]) for name, curve in curves.items()}}
        for k, recall in enumerate(recalls)
    ]


def oks_per_keypoint(keypoints: Matches) -> list[dict[str, Any]]:
    """One record per keypoint: its mean OKS over the people matched at OKS .50, and their number."""
    means, people = oks.per_keypoint(keypoints)
    return [
        {"keypoint": name, "oks": _rounded(mean), "people": int(count)}
        for name, mean, count in zip(keypoints.keypoint_names, means, people, strict=True)
    ]


def text(matches: Matches) -> str:
    """Two lines for the log: names above values."""
    columns = metrics(matches)
    width = max(6, *(len(name) + 1 for name in columns))
    names = "".join(name.rjust(width) for name in columns)
    values = "".join(_format(value).rjust(width) for value in columns.values())
    label = max(len(title) for title in TITLES.values())
    return f"{TITLES[matches.task]:{label}}{names}\n{'':{label}}{values}"


def markdown(evaluations: Sequence[Matches], *, facts: Sequence[str], picture: str | None) -> str:
    """The report: facts, a table per task in the paper's layout, OKS per keypoint, the gallery."""
    sections = ["# Evaluation", "\n".join(f"- {fact}" for fact in facts)]
    sections += [_section(matches) for matches in evaluations]
    sections += [_oks_section(matches) for matches in evaluations if matches.task == "keypoints"]
    if picture:
        sections += [f"## Pictures, worst to best\n\n{_PICTURES}\n\n![]({picture})"]
    return "\n\n".join(sections) + "\n"


def _section(matches: Matches) -> str:
    low, high = bootstrap.interval(bootstrap.resampled_ap(matches, samples=300))
    columns = metrics(matches)
    table = _table(list(columns), [[_format(value) for value in columns.values()]])
    budget = f"At most {matches.budget} detections per image."
    interval = f"{_format(low)} to {_format(high)} (300 bootstrap resamplings)"
    return f"## {TITLES[matches.task]}\n\n{table}\n\n{budget} 95% confidence interval of AP: {interval}."


def _oks_section(keypoints: Matches) -> str:
    rows = [
        [record["keypoint"].replace("_", " "), _format(record["oks"]), str(record["people"])]
        for record in oks_per_keypoint(keypoints)
    ]
    table = _table(["keypoint", "OKS", "people"], rows)
    return (
        f"## OKS per keypoint\n\nMean over the people matched at OKS 0.50 that have it annotated.\n\n{table}"
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---:"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _rounded(value: float) -> float | None:
    return None if math.isnan(value) else round(float(value), 4)


def _format(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.3f}"
