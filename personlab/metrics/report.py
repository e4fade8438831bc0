"""The evaluation as metrics, records of plots, text and Markdown."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

from personlab.metrics import bootstrap, oks
from personlab.metrics.coco import Matches
from personlab.metrics.errors import KINDS, Errors, Shares

Table = tuple[Sequence[str], Sequence[Sequence[str]]]  # header and rows

TITLES: Final = {"keypoints": "Keypoints", "segm": "Segmentation"}
MEASURES: Final = {"keypoints": "OKS", "segm": "IoU"}
_THRESHOLDS: Final = {"0.50": 0.5, "0.75": 0.75, "mean of 0.50 to 0.95": None}

_PICTURES: Final = (
    "Annotated people on the left, confident detections with their scores on the right; a person has one "
    "colour on both sides. Images with people are evenly spaced from the worst to the best; "
    "images without people that have false alarms follow. Percentages are the average precision within the "
    "image of all detections, drawn or not, averaged over the thresholds. The limbs of the body's left are "
    "orange, those of its right blue; joints with dark centres are hidden (annotated) or have low scores "
    "(detected); hatched regions are annotated crowds."
)


def metrics(matches: Matches) -> dict[str, float | None]:
    """The paper's columns to 4 digits; None for NaN."""
    return {name: _rounded(value) for name, value in matches.columns().items()}


def scores(errors: Errors) -> dict[str, float | None]:
    """The paper's columns and AP without each kind of error (AP_without_jitter) to 4 digits; None for NaN."""
    without = {f"AP_without_{error}": columns["AP"] for error, columns in errors.mended.items()}
    return {name: _rounded(value) for name, value in (errors.columns | without).items()}


def analysis(errors: Errors) -> dict[str, Any]:
    """`scores`, counts of detections and people, and the share of each kind by size and by keypoint."""
    return {
        "scores": scores(errors),
        "counts": asdict(errors.counts),
        "sizes": {size: _record(shares) for size, shares in errors.sizes.items()},
        "keypoints": {name: _record(shares) for name, shares in errors.keypoints.items()},
    }


def errors_per_keypoint(errors: Errors) -> list[dict[str, Any]]:
    """One record per keypoint and kind: its share of the annotated keypoints of matched people."""
    return [
        {"keypoint": name, "kind": kind, "share": _rounded(share)}
        for name, each in errors.keypoints.items()
        for kind, share in each.of.items()
    ]


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


def errors_text(errors: Errors) -> str:
    """The counts of detections, and tables as aligned text."""
    return "\n\n".join([f"{TITLES[errors.task]}: {_counts(errors)}", *map(_aligned, _error_tables(errors))])


def ap_interval(matches: Matches) -> str:
    """A sentence: the 95% confidence interval of AP."""
    low, high = bootstrap.interval(bootstrap.resampled_ap(matches, samples=300))
    return (
        f"95% confidence interval of AP: {_format(low)} to {_format(high)} (300 resamplings of the images)."
    )


def markdown(
    evaluations: Sequence[Matches],
    errors: Sequence[Errors],
    *,
    intervals: Sequence[str],
    facts: Sequence[str],
    picture: str | None,
) -> str:
    """The report: facts, a table per task in the paper's layout, OKS per keypoint, errors, the gallery."""
    sections = ["# Evaluation", "\n".join(f"- {fact}" for fact in facts)]
    sections += map(_section, evaluations, intervals)
    sections += [_oks_section(matches) for matches in evaluations if matches.task == "keypoints"]
    sections += [_errors_section(each) for each in errors]
    if picture:
        sections += [f"## Pictures, worst to best\n\n{_PICTURES}\n\n![]({picture})"]
    return "\n\n".join(sections) + "\n"


def _section(matches: Matches, interval: str) -> str:
    columns = metrics(matches)
    table = _table(list(columns), [[_format(value) for value in columns.values()]])
    budget = f"At most {matches.budget} detections per image."
    return f"## {TITLES[matches.task]}\n\n{table}\n\n{budget} {interval}"


def _oks_section(keypoints: Matches) -> str:
    rows = [
        [_label(record["keypoint"]), _format(record["oks"]), str(record["people"])]
        for record in oks_per_keypoint(keypoints)
    ]
    table = _table(["keypoint", "OKS", "people"], rows)
    return (
        f"## OKS per keypoint\n\nMean over the people matched at OKS 0.50 that have it annotated.\n\n{table}"
    )


def _errors_section(errors: Errors) -> str:
    tables = "\n\n".join(_table(*table) for table in _error_tables(errors))
    return f"## Errors: {TITLES[errors.task].lower()}\n\n{_counts(errors)}\n\n{tables}"


def _counts(errors: Errors) -> str:
    counts = errors.counts
    return (
        f"{counts.matched} people matched, {counts.missed_people} missed; {counts.duplicates} duplicates, "
        f"{counts.false_positives} false positives, {counts.ignored} detections of people that do not count."
    )


def _error_tables(errors: Errors) -> list[Table]:
    """AP without each kind of error; shares by size; for keypoints, shares by keypoint."""
    before = errors.columns
    aps = [name for name in before if name.startswith("AP") and name not in ("AP50", "AP75")]
    mended = [
        [
            _label(error),
            *(_format(columns[name]) for name in aps),
            _format(columns["AP"] - before["AP"], sign="+"),
        ]
        for error, columns in ({"nothing": before} | errors.mended).items()
    ]
    tables: list[Table] = [(["without", *aps, "gain"], mended), _shares_table("size", errors, errors.sizes)]
    return tables + ([_shares_table("keypoint", errors, errors.keypoints)] if errors.keypoints else [])


def _shares_table(group: str, errors: Errors, members: Mapping[str, Shares]) -> Table:
    number = "keypoints" if errors.task == "keypoints" else "people"
    rows = [
        [_label(name), *map(_format, each.of.values()), str(each.number)] for name, each in members.items()
    ]
    return [group, *map(_label, KINDS[errors.task]), number], rows


def _record(shares: Shares) -> dict[str, float | None]:
    return {kind: _rounded(share) for kind, share in shares.of.items()} | {"number": shares.number}


def _label(name: str) -> str:
    return name.replace("_", " ")


def _aligned(table: Table) -> str:
    """Columns of equal width: the first aligned left, the others right."""
    lines = [table[0], *table[1]]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---:"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _rounded(value: float) -> float | None:
    return None if math.isnan(value) else round(float(value), 4)


def _format(value: float | None, sign: str = "") -> str:
    return "–" if value is None or math.isnan(value) else f"{value:{sign}.3f}"
