"""The whole pipeline as one flow, in a checkout of its own, and the promotion of its model.

Every stage is a sub-flow; stages that are up to date end as `Cached`. The results are saved as a DVC
experiment and compared with the champion's, and the model is promoted if the rule allows it. Of the project
only models/, runs/ and Git tags change; the user's working tree does not.

Run it with `python -m flows.retrain`, or from the UI (`make ui`).
"""

import argparse
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from prefect import State, flow, runtime
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.states import Completed, Failed
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flows import results
from flows.artifacts import for_show
from flows.results import Verdict
from flows.stages import HERE, run_stage, stages
from flows.tools import end_sub_flows, personlab, require_server, run_module
from personlab.errors import UserError
from personlab.registry import provenance
from personlab.registry.models import Registry
from personlab.registry.promotion import RULES, Rule
from personlab.report import page
from personlab.utils.checkout import checkout
from personlab.utils.process import CommandError

Override = Annotated[str, Field(pattern=r"^[+~]{0,2}[\w.]+(=.*)?$")]


class Retraining(BaseModel):
    """What to train, from what, and when to promote it."""

    model_config = ConfigDict(extra="forbid")

    overrides: list[Override] = Field(
        default=[],
        title="Parameters to change",
        description="Each as for dvc exp run -S: train.steps=3000",
    )
    revision: str = Field(
        default="HEAD",
        title="Git revision",
        description="Commit, branch or tag to train from. Uncommitted changes are not used.",
    )
    refresh_data: bool = Field(
        default=False,
        title="Look at the data again",
        description="Run acquire even if DVC sees no change in its folder and parameters.",
    )
    rule: Rule = Field(
        default="better",
        title="Promote",
        description="; ".join(f"{name}: {meaning}" for name, meaning in RULES.items()),
    )


def run_name() -> str:
    """Name of a run, of its DVC experiment and of its report."""
    return f"retrain-{datetime.now(UTC):%Y%m%d-%H%M%S}"


@flow(flow_run_name=run_name, persist_result=False, on_crashed=[end_sub_flows])
def retrain(settings: Retraining = Retraining(), project: Path = HERE) -> State[Verdict]:  # noqa: B008
    """Bring every stage up to date in a checkout, each as a sub-flow, and promote the model if it is better.

    Args:
        settings: what to train, from what, and when to promote it.
        project: the folder with dvc.yaml.
    """
    project = project.absolute()
    try:
        with checkout(project, settings.revision, settings.overrides) as folder:
            failure = run_stages(folder, refresh=settings.refresh_data)
            return Failed(message=failure) if failure else conclude(folder, project, settings.rule)
    except (UserError, CommandError) as error:
        return Failed(message=str(error), data=error)


def run_stages(folder: Path, *, refresh: bool) -> str | None:
    """Run the stages up to the first that fails; its error."""
    outcomes = {}
    for stage in stages(folder):
        outcomes[stage] = run_stage(stage, folder, refresh and stage == "acquire", return_state=True)
        if not outcomes[stage].is_completed():
            break
    with for_show("the outcomes of the stages"):
        create_table_artifact(
            [{"stage": name, "outcome": s.name, "reason": s.message} for name, s in outcomes.items()],
            key="retrain-stages",
            description="Stages: the outcome of each, with the reason",
        )
    last, state = outcomes.popitem()
    return None if state.is_completed() else f"{last}: {state.message}"


def conclude(folder: Path, project: Path, rule: Rule) -> State[Verdict]:
    """Save, judge and perhaps promote what the stages made, and show it beside the previous champion."""
    name = str(runtime.flow_run.name)
    saved = save(folder, name)
    shown = page.Results(folder, Registry(project).champion())
    verdict = judge(folder, project, rule, why=name)
    restore = f"dvc exp apply {saved.experiment}" if saved.experiment else f"git checkout {saved.commit}"
    places = [f"all files: `{restore}`"]
    report = Path("runs/reports", f"{name}.html")
    with for_show("the report"):
        page.write(shown, project / report)
        places.append(f"everything on one page: [{report}]({(project / report).as_uri()})")
    with for_show("scores and pictures"):
        results.publish(shown)
    with for_show("the summary"):
        create_markdown_artifact(
            results.summary(verdict, rule, shown, places),
            key="retrain-summary",
            description=results.headline(verdict),
        )
    return Completed(name=verdict["outcome"].capitalize(), message=results.headline(verdict), data=verdict)


def save(folder: Path, name: str) -> provenance.State:
    """The commit that holds the results in a checkout; if there is none, they are saved as an experiment."""
    try:
        return provenance.state_of(folder)
    except UserError:
        run_module("dvc", "exp", "save", "--name", name, name="dvc-exp-save", project=folder)
        return provenance.state_of(folder)


def judge(folder: Path, project: Path, rule: Rule, why: str) -> Verdict:
    """Run `personlab models promote`, in its own process because the champion may have to predict again."""
    file = project / "runs" / "verdict.json"
    file.unlink(missing_ok=True)
    options = ("--from", str(folder), "--rule", rule, "--why", why, "--json", str(file))
    try:
        personlab("models", "promote", *options, project=project)
    except CommandError:
        if not file.exists():  # it failed; exit status 1 alone means that it did not promote
            raise
    verdict: Verdict = json.loads(file.read_bytes())
    return verdict


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m flows.retrain", description="Retrain as a flow.")
    parser.add_argument("-S", dest="overrides", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--revision", default="HEAD")
    parser.add_argument("--refresh-data", action="store_true")
    parser.add_argument("--rule", choices=RULES, default="better")
    try:
        settings = Retraining(**vars(parser.parse_args()))
    except ValidationError as error:
        parser.error(str(error))
    require_server()
    sys.exit(not retrain(settings, return_state=True).is_completed())


if __name__ == "__main__":
    main()
