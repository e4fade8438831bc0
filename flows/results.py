"""What a retraining came to, as artifacts: scores and parameters beside the champion's, curves, pictures."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect.artifacts import create_markdown_artifact, create_table_artifact

from flows.artifacts import PICTURE_BYTES, metrics_rows
from personlab.metrics.report import TITLES
from personlab.registry.promotion import COVERAGE, RULES, Rule
from personlab.report import data_uri
from personlab.report.page import Results

Verdict = dict[str, Any]  # what `personlab models promote --json` wrote


def publish(results: Results) -> None:
    """Everything but the verdict, as artifacts of the running flow, each with a history of its own."""
    create_table_artifact(
        metrics_rows(results.scores, before="champion"),
        key="retrain-scores",
        description="COCO scores beside the champion's",
    )
    rows = [{"parameter": each.name, "champion": each.before, "now": each.now} for each in results.parameters]
    create_table_artifact(
        rows, key="retrain-parameters", description="parameters that are not the champion's"
    )
    curves = [f"### {TITLES[task]}\n\n![]({data_uri.svg(svg)})" for task, svg in results.curves.items()]
    create_markdown_artifact("\n\n".join(curves), key="retrain-curves", description="precision over recall")
    pictures = (*results.worst, *results.best)
    if pictures:
        budget = PICTURE_BYTES // len(pictures)
        text = "\n\n".join(
            f"## {title}\n\n"
            + "\n\n".join(f"![{file.stem}]({data_uri.jpeg(file, budget)})" for file in files)
            for title, files in (("Worst images", results.worst), ("Best images", results.best))
            if files
        )
        create_markdown_artifact(text, key="retrain-gallery", description="left as annotated, right as found")


def publish_verdict(verdict: Verdict, rule: Rule) -> None:
    create_markdown_artifact(
        verdict_text(verdict, rule), key="retrain-promotion", description=headline(verdict)
    )


def headline(verdict: Verdict) -> str:
    if version := verdict["version"]:
        return f"promoted to version {version['version']}: {verdict['why']}"
    return f"{verdict['outcome']}: {verdict['why']}"


def verdict_text(verdict: Verdict, rule: Rule) -> str:
    """Promoted or not, and why, as markdown."""
    said = headline(verdict)
    sections = [f"# {said[0].upper()}{said[1:]}", f"Rule *{rule}*: {RULES[rule]}."]
    if verdict["comparisons"]:
        sections.append(comparison_table(verdict["comparisons"]))
    if version := verdict["version"]:
        made_by = version["experiment"] or version["commit"]
        sections.append(
            f"Made by `{made_by}`, recorded in Git as a tag, `champion/*`. To undo it: "
            "`personlab models rollback`."
        )
    return "\n\n".join(sections)


def comparison_table(comparisons: Sequence[Verdict]) -> str:
    lines = [
        f"| AP | champion | new | change | {COVERAGE:.0%} of resamplings |",
        "|:---|---:|---:|---:|:---|",
    ]
    for each in comparisons:
        known = each["champion"] is not None and each["candidate"] is not None
        cells = (
            (
                f"{each['champion']:.3f}",
                f"{each['candidate']:.3f}",
                f"{each['candidate'] - each['champion']:+.3f}",
                f"{each['low']:+.3f} to {each['high']:+.3f}",
            )
            if known
            else ("–",) * 4
        )
        lines.append(f"| {TITLES[each['task']]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def read_verdict(file: Path) -> Verdict:
    verdict: Verdict = json.loads(file.read_text())
    return verdict
