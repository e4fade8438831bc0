"""Results of a retraining as artifacts: scores and parameters beside the champion's, curves, pictures."""

from collections.abc import Iterator, Sequence
from typing import Any

from prefect.artifacts import create_markdown_artifact, create_table_artifact

from flows.artifacts import PICTURE_BYTES, metrics_rows, picture
from personlab.metrics.report import TITLES
from personlab.registry.promotion import COVERAGE, RULES, Rule
from personlab.report import data_uri
from personlab.report.differences import NOTHING, shown
from personlab.report.page import Results

Verdict = dict[str, Any]  # what `personlab models promote --json` writes


def publish(results: Results) -> None:
    """Publish everything but the summary as artifacts of the running flow."""
    create_table_artifact(
        metrics_rows(results.scores, before="champion"),
        key="retrain-scores",
        description="Scores: all columns of COCO, beside the champion's",
    )
    create_table_artifact(
        [{"parameter": each.name, "champion": each.before, "now": each.now} for each in results.parameters],
        key="retrain-parameters",
        description="Parameters that differ from the champion's",
    )
    curves = [f"### {TITLES[task]}\n\n![]({data_uri.svg(svg)})" for task, svg in results.curves.items()]
    create_markdown_artifact(
        "\n\n".join(curves),
        key="retrain-curves",
        description="Curves: precision over recall, the champion's dashed",
    )
    if pictures := "\n\n".join(_pictures(results)):
        create_markdown_artifact(
            pictures, key="retrain-gallery", description="Pictures: annotations left, predictions right"
        )


def _pictures(results: Results) -> Iterator[str]:
    total = sum(map(len, results.pictures.values()))
    for title, files in results.pictures.items():
        if files:
            yield f"## {title}"
        for file in files:
            yield picture(file, PICTURE_BYTES // total, title=file.stem)


def headline(verdict: Verdict) -> str:
    """E.g. "promoted to version 2: keypoints got better, nothing got worse"."""
    if version := verdict["version"]:
        return f"promoted to version {version['version']}: {verdict['why']}"
    return f"{verdict['outcome']}: {verdict['why']}"


def summary(verdict: Verdict, rule: Rule, results: Results, places: Sequence[str]) -> str:
    """What was trained, on what, whether it is better, why, and where it is, as markdown.

    places: sentences that say where the results are.
    """
    head = headline(verdict)
    sections = [f"# {head[0].upper()}{head[1:]}", f"Rule *{rule}*: {RULES[rule]}."]
    if verdict["comparisons"]:
        sections.append(comparison_table(verdict["comparisons"]))
    changes = [f"{each.name}: {shown(each.before)} → {shown(each.now)}" for each in results.parameters]
    unlike = [f"unlike the champion: {'; '.join(changes)}"] if changes else []
    sections += ["## What was trained", _listed([*results.facts, *unlike])]
    if version := verdict["version"]:
        promoted = f"`models/champion` is version {version['version']}; Git has tagged it `champion/*`"
        places = [*places, f"{promoted}; `personlab models rollback` undoes the promotion"]
    return "\n\n".join([*sections, "## Where it is", _listed(places)])


def _listed(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def comparison_table(comparisons: Sequence[Verdict]) -> str:
    """A markdown table with one row per task; dashes where no image shows a person."""
    head = f"| AP | champion | new | change | {COVERAGE:.0%} of resamplings |\n|:---|---:|---:|---:|:---|"
    return "\n".join((head, *(f"| {TITLES[each['task']]} | {_cells(each)} |" for each in comparisons)))


def _cells(comparison: Verdict) -> str:
    old, new, low, high = (comparison[name] for name in ("champion", "candidate", "low", "high"))
    if old is None or new is None:
        return " | ".join([NOTHING] * 4)
    return f"{old:.3f} | {new:.3f} | {new - old:+.3f} | {low:+.3f} to {high:+.3f}"
