"""Results of a retraining as artifacts: scores and parameters beside the champion's, curves, pictures."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from prefect.artifacts import create_markdown_artifact, create_table_artifact

from flows.artifacts import PICTURE_BYTES, metrics_rows, picture
from personlab.metrics.report import TITLES
from personlab.registry.promotion import COVERAGE, RULES, Rule
from personlab.report import data_uri
from personlab.report.page import Results

Verdict = dict[str, Any]  # what `personlab models promote --json` writes


def publish(results: Results) -> None:
    """Publish everything but the verdict as artifacts of the running flow."""
    create_table_artifact(
        metrics_rows(results.scores, before="champion"),
        key="retrain-scores",
        description="COCO scores beside the champion's",
    )
    create_table_artifact(
        [{"parameter": each.name, "champion": each.before, "now": each.now} for each in results.parameters],
        key="retrain-parameters",
        description="parameters that differ from the champion's",
    )
    curves = [f"### {TITLES[task]}\n\n![]({data_uri.svg(svg)})" for task, svg in results.curves.items()]
    create_markdown_artifact("\n\n".join(curves), key="retrain-curves", description="precision over recall")
    if pictures := "\n\n".join(_pictures(results)):
        create_markdown_artifact(
            pictures, key="retrain-gallery", description="left: annotations, right: predictions"
        )


def _pictures(results: Results) -> Iterator[str]:
    for title, files in (("Worst images", results.worst), ("Best images", results.best)):
        if files:
            yield f"## {title}"
        for file in files:
            yield picture(file, PICTURE_BYTES // (len(results.worst) + len(results.best)), title=file.stem)


def publish_verdict(verdict: Verdict, rule: Rule) -> None:
    create_markdown_artifact(
        verdict_text(verdict, rule), key="retrain-promotion", description=headline(verdict)
    )


def headline(verdict: Verdict) -> str:
    """E.g. "promoted to version 2: person keypoints got better, nothing got worse"."""
    if version := verdict["version"]:
        return f"promoted to version {version['version']}: {verdict['why']}"
    return f"{verdict['outcome']}: {verdict['why']}"


def verdict_text(verdict: Verdict, rule: Rule) -> str:
    """The verdict and its reasons as markdown."""
    head = headline(verdict)
    sections = [f"# {head[0].upper()}{head[1:]}", f"Rule *{rule}*: {RULES[rule]}."]
    if verdict["comparisons"]:
        sections.append(comparison_table(verdict["comparisons"]))
    if version := verdict["version"]:
        commit = version["experiment"] or version["commit"]
        sections.append(
            f"Made by `{commit}`, which Git has tagged `champion/*` (`git tag`, `gto show`). "
            "`personlab models rollback` undoes the promotion."
        )
    return "\n\n".join(sections)


def comparison_table(comparisons: Sequence[Verdict]) -> str:
    """A markdown table with one row per task; a dash where there is nobody to find."""
    lines = [
        f"| AP | champion | new | change | {COVERAGE:.0%} of resamplings |",
        "|:---|---:|---:|---:|:---|",
    ]
    for each in comparisons:
        old, new = each["champion"], each["candidate"]
        cells = (
            ("–",) * 4
            if old is None or new is None
            else (
                *(f"{old:.3f}", f"{new:.3f}", f"{new - old:+.3f}"),
                f"{each['low']:+.3f} to {each['high']:+.3f}",
            )
        )
        lines.append(f"| {TITLES[each['task']]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def read_verdict(file: Path) -> Verdict:
    verdict: Verdict = json.loads(file.read_bytes())
    return verdict
