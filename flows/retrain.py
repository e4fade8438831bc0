"""The whole pipeline as one flow, in a checkout of its own, and at its end the promotion gate.

Every stage is a sub-flow; those that are up to date are shown as cached. The results are saved as a DVC
experiment, held against the champion's, and promoted if the rule says so. The person's working tree is left
alone; only models/, runs/ and tags of the project change.

Run it with `python -m flows.retrain`, or from the UI (`make ui`).
"""

import argparse
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from prefect import State, flow
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.states import Completed, Failed
from pydantic import BaseModel, ConfigDict, Field

from flows import results
from flows.artifacts import for_show
from flows.checkout import Checkout, checkout
from flows.results import Verdict
from flows.stages import HERE, STAGES, run_stage
from flows.tools import end_sub_flows, listener, personlab
from personlab.errors import UserError
from personlab.registry.models import Registry
from personlab.registry.promotion import RULES, Rule
from personlab.report import page
from personlab.utils.process import CommandError

Outcomes = list[tuple[str, State[Any]]]
Override = Annotated[str, Field(pattern=r"^[+~]{0,2}[\w.]+(=.*)?$")]


class Retraining(BaseModel):
    """What to train, from what, and when to promote it."""

    model_config = ConfigDict(extra="forbid")

    overrides: list[Override] = Field(
        default=[],
        title="Parameters to change",
        description="Each as dvc exp run -S takes it: train.steps=3000",
    )
    revision: str = Field(
        default="HEAD",
        title="Git revision",
        description="Commit, branch or tag to train from. What is not committed takes no part.",
    )
    refresh_data: bool = Field(
        default=False,
        title="Look at the data again",
        description="DVC does not watch a folder outside the project, nor the web.",
    )
    rule: Rule = Field(
        default="better",
        title="Promote",
        description="; ".join(f"{name}: {meaning}" for name, meaning in RULES.items()),
    )


@flow(persist_result=False, on_crashed=[end_sub_flows])
def retrain(settings: Retraining = Retraining(), project: Path = HERE) -> State[Verdict]:  # noqa: B008
    """Bring every stage up to date, in order, each as a sub-flow of its own, and promote what is better.

    Args:
        settings: what to train, from what, and when to promote it.
        project: the folder with dvc.yaml.
    """
    project = project.absolute()
    try:
        with checkout(project, settings.revision, settings.overrides) as made:
            outcomes = run_stages(made, refresh=settings.refresh_data)
            name, last = outcomes[-1]
            if not last.is_completed():
                return Failed(message=f"{name}: {last.message}")
            return conclude(made, project, settings.rule)
    except (UserError, CommandError) as error:
        return Failed(message=str(error), data=error)


def run_stages(made: Checkout, *, refresh: bool) -> Outcomes:
    """The stages up to the first that fails."""
    outcomes: Outcomes = []
    for stage in STAGES:
        state = run_stage(stage, made.folder, refresh and stage == "acquire", return_state=True)
        outcomes.append((stage, state))
        if not state.is_completed():
            break
    rows = [{"stage": name, "outcome": state.name, "reason": state.message} for name, state in outcomes]
    with for_show("what each stage did"):
        create_table_artifact(rows, key="retrain-stages", description="what each stage did")
    return outcomes


def conclude(made: Checkout, project: Path, rule: Rule) -> State[Verdict]:
    """Save, judge and perhaps promote what the stages made; show it beside the champion of before."""
    name = f"retrain-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    saved = made.save(name, listener("dvc-exp-save"))
    found = page.Results(made.folder, Registry(project).champion())
    verdict = judge(made, project, rule, why=name)
    with for_show("the report"):
        publish_report(found, project / "runs" / "reports" / f"{name}.html", saved.experiment or saved.commit)
    with for_show("scores and pictures"):
        results.publish(found)
    with for_show("the verdict"):
        results.publish_verdict(verdict, rule)
    return Completed(name=verdict["outcome"].capitalize(), message=results.headline(verdict), data=verdict)


def publish_report(found: page.Results, report: Path, saved: str) -> None:
    page.write(found, report)
    create_markdown_artifact(
        f"[{report.name}]({report.as_uri()}): everything on one page. Where the browser does not follow the "
        f"link, open `{report}`.\n\nSaved as `{saved}`.",
        key="retrain-report",
        description="everything on one page",
    )


def judge(made: Checkout, project: Path, rule: Rule, why: str) -> Verdict:
    """`personlab models promote`: in a process of its own, as it may need the network to predict again."""
    file = project / "runs" / "verdict.json"
    file.unlink(missing_ok=True)
    options = ("--from", str(made.folder), "--rule", rule, "--why", why, "--json", str(file))
    try:
        personlab("models", "promote", *options, project=project)
    except CommandError:
        if not file.exists():  # it failed, and did not merely say no
            raise
    return results.read_verdict(file)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m flows.retrain", description="retrain as a flow")
    parser.add_argument("-S", dest="overrides", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--revision", default="HEAD")
    parser.add_argument("--refresh-data", action="store_true")
    parser.add_argument("--rule", choices=RULES, default="better")
    state = retrain(Retraining(**vars(parser.parse_args())), return_state=True)
    sys.exit(not state.is_completed())


if __name__ == "__main__":
    main()
