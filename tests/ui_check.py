"""`make ui-check`: use the UI in headless Chromium and write pictures of it to docs/ui.

It runs the rehearsal pipeline with its own server: a retraining is started from its form with one override
and is promoted, another with a bad parameter is not. The texts of the pages are checked; the pictures are
for people to look at.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import ArtifactFilter, FlowRunFilter
from prefect.client.schemas.objects import FlowRun

from flows.ui import connected
from tests import rehearsal
from tests.chromium import Page, browser

ROOT = Path(__file__).parent.parent
PICTURES = ROOT / "docs" / "ui"
PATIENCE = 900  # seconds
GRAPH = 10  # seconds to draw the graph of a run


class Api:
    """What the server knows, to compare with what the pages show."""

    def __init__(self, client: SyncPrefectClient) -> None:
        self.client = client

    def deployment(self, name: str) -> str:
        (found,) = (each for each in self.client.read_deployments() if each.name == name)
        return str(found.id)

    def finished_run(self, name: str) -> FlowRun:
        """The run of a name, once it has ended."""
        which = FlowRunFilter.model_validate({"name": {"any_": [name]}})
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            for run in self.client.read_flow_runs(flow_run_filter=which):
                if run.state and run.state.is_final():
                    return run
            time.sleep(1)
        raise SystemExit(f"run {name} did not end")

    def artifacts(self, run: FlowRun) -> dict[str, str]:
        """Ids by key."""
        which = ArtifactFilter.model_validate({"flow_run_id": {"any_": [str(run.id)]}})
        return {str(each.key): str(each.id) for each in self.client.read_artifacts(artifact_filter=which)}


@contextmanager
def served(project: Path) -> Iterator[str]:
    """The address of `make ui` in the project."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = os.environ | {"PERSONLAB_UI_PORT": str(port), "PYTHONPATH": str(ROOT)}
    command = (sys.executable, "-m", "flows.ui")
    with (project / "ui.log").open("w") as log:
        ui = subprocess.Popen(command, cwd=project, env=env, stdout=log, stderr=subprocess.STDOUT)
    try:
        while "Your deployments are being served" not in (project / "ui.log").read_text():
            if ui.poll() is not None:
                raise SystemExit((project / "ui.log").read_text())
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        ui.send_signal(signal.SIGINT)
        ui.wait()


def start(page: Page, url: str, deployment: str, override: str, picture: Path | None = None) -> str:
    """Fill in the form and submit it; the name of the run."""
    page.open(f"{url}/deployments/deployment/{deployment}/run", "Parameters to change")
    page.click("Add item")
    page.run("[...document.querySelectorAll('textarea')].find(e => !e.value).focus()")
    page.type(override)
    name: str = page.run("document.querySelector('input[type=text], input:not([type])').value")
    if picture:
        page.picture(picture)
    page.click("Submit")
    return name


def message(run: FlowRun) -> str:
    return str(run.state.message if run.state else None)


def expect(what: str, true: bool) -> None:
    print(f"{'ok' if true else 'NOT SO'}: {what}", flush=True)
    if not true:
        raise SystemExit(1)


def check(project: Path, url: str, api: Api) -> None:
    deployment = api.deployment("retrain")
    with browser(height=1100) as page:
        first = start(page, url, deployment, f"train.learning_rate={rehearsal.BEST}", PICTURES / "form.jpg")
        run = api.finished_run(first)
        expect(f"{first}: {message(run)}", run.state_name == "Promoted")
        second = api.finished_run(start(page, url, deployment, f"train.learning_rate={rehearsal.BAD}"))
        expect(f"{second.name}: {message(second)}", second.state_name == "Not promoted")

        page.open(f"{url}/runs/flow-run/{second.id}", "Not promoted")
        time.sleep(GRAPH)
        page.picture(PICTURES / "run.jpg")
        page.click("Subflow Runs")
        page.wait_for("evaluate")
        page.picture(PICTURES / "stages.jpg")
        page.click("Artifacts")
        page.wait_for("retrain-promotion")
        page.picture(PICTURES / "artifacts.jpg")
        for key, says in (
            ("retrain-promotion", "got worse"),
            ("retrain-scores", "keypoints.AP"),
            ("retrain-curves", "Segmentation"),
        ):
            page.open(f"{url}/artifacts/artifact/{api.artifacts(second)[key]}", says)
            page.picture(PICTURES / f"{key}.jpg")
        page.open(f"{url}/runs", "Not promoted")  # the page of all runs lists them
        page.open(f"{url}/deployments/deployment/{deployment}?tab=Upcoming", "Schedules")
        page.wait_for("At 03:00")
        page.wait_for("auto-scheduled")
        page.picture(PICTURES / "schedule.jpg")
        elsewhere = {a for a in page.asked if not a.startswith((url, "data:", "blob:", "chrome:"))}
        expect(f"no other server was used ({len(elsewhere)} addresses)", not elsewhere)
    with browser(width=390, height=1600) as phone:
        report = max((project / "runs/reports").glob("*.html"))
        phone.open(report.as_uri(), "Beside the champion")
        phone.picture(PICTURES / "report-phone.jpg")
        expect("the report fits a phone", phone.run("document.documentElement.scrollWidth") <= 390)
        expect("the report uses no server", {a for a in phone.asked if a.startswith("http")} == set())


def main() -> None:
    PICTURES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        project = Path(name) / "project"
        rehearsal.project(project)
        with served(project) as url:
            print(f"the UI is at {url}", flush=True)
            with connected(f"{url}/api") as client:
                check(project, url, Api(client))
    print(f"pictures: {PICTURES.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
