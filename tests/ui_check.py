"""`make ui-check`: use the pages in headless Chromium and write pictures of them to docs/ui.

Three times with a server of its own, in temporary folders:

- this pipeline with tiny parameters: all stages are started from a form and watched, then images are
  predicted, with no weights named, and some that do not exist;
- the rehearsal pipeline: a retraining is started from its form with one override and is promoted, another
  with a bad parameter is not;
- `personlab serve` with the network of the test data, or without it the default network, which is downloaded:
  a rendered image is dropped on its page.

The texts of the pages are checked; the pictures are for people to look at.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar
from uuid import UUID

import numpy as np
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import ArtifactFilter, FlowRunFilter, LogFilter
from prefect.client.schemas.objects import FlowRun

from flows.deployments import deployments
from flows.ui import connected
from personlab import viz
from personlab.skeleton import COCO_PERSON
from personlab.synthetic.scene import make_scene
from personlab.utils.process import supervised
from personlab.weights import bodypix
from tests import rehearsal, tiny
from tests.chromium import Page, browser

ROOT = Path(__file__).parent.parent
PICTURES = ROOT / "docs" / "ui"
PATIENCE = 1800  # seconds
GRAPH = 10  # seconds to draw the graph of a run
SCENE = 4  # seed of an image in which the network finds people

Found = TypeVar("Found")


class Api:
    """What the server knows, to compare with what the pages show."""

    def __init__(self, client: SyncPrefectClient) -> None:
        self.client = client

    def deployment(self, name: str) -> str:
        (found,) = (each for each in self.client.read_deployments() if each.name == name)
        return str(found.id)

    def run_named(self, name: str) -> UUID:
        """The id of the run of a name, which it may change when it starts."""
        which = FlowRunFilter.model_validate({"name": {"any_": [name]}})
        return wait(lambda: [run.id for run in self.client.read_flow_runs(flow_run_filter=which)])[0]

    def finished_run(self, run: UUID) -> FlowRun:
        """The run, once it has ended."""

        def final() -> FlowRun | None:
            found = self.client.read_flow_run(run)
            return found if found.state and found.state.is_final() else None

        return wait(final)

    def progress(self, run: UUID, label: str) -> str | None:
        """The id of the bar of an active run while it shows a loop that has begun and not ended."""
        state = self.client.read_flow_run(run).state
        if state and state.is_final():
            raise SystemExit(f"the run ended as {state.name}: {state.message}")
        which = ArtifactFilter.model_validate(
            {"flow_run_id": {"any_": [str(run)]}, "type": {"any_": ["progress"]}}
        )
        for bar in self.client.read_artifacts(artifact_filter=which):
            if str(bar.description).startswith(label) and 0 < float(str(bar.data)) < 100:
                return str(bar.id)
        return None

    def artifacts(self, run: FlowRun) -> dict[str, str]:
        """Ids by key."""
        which = ArtifactFilter.model_validate({"flow_run_id": {"any_": [str(run.id)]}})
        found = self.client.read_artifacts(artifact_filter=which)
        expect(f"every artifact of {run.name} is described", all(each.description for each in found))
        return {str(each.key): str(each.id) for each in found}

    def log(self, run: FlowRun) -> str:
        which = LogFilter.model_validate({"flow_run_id": {"any_": [str(run.id)]}})
        return "\n".join(each.message for each in self.client.read_logs(which))


def wait(ready: Callable[[], Found | None]) -> Found:
    """What `ready` returns, once it is true."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if found := ready():
            return found
        time.sleep(1)
    raise SystemExit(f"waited for {PATIENCE} s")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def served(project: Path) -> Iterator[str]:
    """The address of `make ui` in the project."""
    port = free_port()
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


def open_form(page: Page, url: str, api: Api, deployment: str, field: str) -> None:
    """Open the form of a deployment and wait for a field of its parameters."""
    page.open(f"{url}/deployments/deployment/{api.deployment(deployment)}/run", field)


def submit(page: Page, api: Api, picture: Path | None = None) -> UUID:
    """Submit the form; the id of the run."""
    name: str = page.run("document.querySelector('input[type=text], input:not([type])').value")
    if picture:
        page.picture(picture)
    page.click("Submit")
    page.wait_for(f"{name} scheduled to start")
    return api.run_named(name)


def retrain(page: Page, url: str, api: Api, override: str, picture: Path | None = None) -> FlowRun:
    """Start a retraining from its form; the finished run."""
    open_form(page, url, api, "retrain", "Parameters to change")
    page.click("Add item")
    page.run("[...document.querySelectorAll('textarea')].find(e => !e.value).focus()")
    page.type(override)
    return api.finished_run(submit(page, api, picture))


def infer_batch(page: Page, url: str, api: Api, images: str, out: str) -> FlowRun:
    """Start a batch inference from its form; the finished run."""
    open_form(page, url, api, "batch-inference", "Images")
    page.fill("Images", images)
    page.fill("Out", out)
    return api.finished_run(submit(page, api))


def message(run: FlowRun) -> str:
    return str(run.state.message if run.state else None)


def expect(what: str, true: bool) -> None:
    print(f"{'ok' if true else 'NOT SO'}: {what}", flush=True)
    if not true:
        raise SystemExit(1)


def check_demo(project: Path, url: str, api: Api) -> None:
    """The pipeline from its form, with its progress; batch inference after it."""
    with browser(height=1100) as page:
        page.open(f"{url}/deployments", "batch-inference")
        names = [each.name for each in deployments()]
        listed = page.run("document.body.innerText").split()
        expect(f"all deployments are on one page: {', '.join(names)}", {*names} <= {*listed})
        page.picture(PICTURES / "deployments.jpg")

        open_form(page, url, api, "stage", "refresh")
        run = submit(page, api)
        bar = wait(lambda: api.progress(run, "train: "))
        page.open(f"{url}/artifacts/artifact/{bar}", "train: ")
        page.picture(PICTURES / "progress.jpg")
        done = api.finished_run(run)
        expect(f"all stages: {message(done)}", done.state_name == "Completed")
        api.artifacts(done)

        found = infer_batch(page, url, api, "data/acquire/val2017", "found")
        expect(f"batch inference after the demo: {message(found)}", found.state_name == "Completed")
        plan = json.loads((project / "found/plan.json").read_text())
        ours = tiny.TINY["decode"]["nms_radius"]
        expect("with the model of the pipeline", plan["decode"]["nms_radius"] == ours)
        page.open(f"{url}/artifacts/artifact/{api.artifacts(found)['batch-samples']}", "Some of the images")
        failed = infer_batch(page, url, api, "nothing", "none")
        expect(f"of no images: {message(failed)}", message(failed).startswith("nothing: no such file"))
        logs = "\n".join([api.log(failed), api.log(found), api.log(done)]).replace(str(project), "")
        noise = [word for word in ("Traceback", tempfile.gettempdir(), "core_worker") if word in logs]
        expect(f"no noise in the logs ({', '.join(noise) or 'none'})", not noise)
        expect("nor a traceback in the terminal", "Traceback" not in (project / "ui.log").read_text())
        check_v2(page, f"{url}/v2", api, found)


def check_v2(page: Page, url: str, api: Api, found: FlowRun) -> None:
    """Pages of Prefect's newer UI, without the server of Amplitude that it uses."""
    page.call("Network.setBlockedURLs", urls=["*amplitude.com*"])
    page.open(f"{url}/deployments", "batch-inference")
    page.open(f"{url}/deployments/deployment/{api.deployment('batch-inference')}/run", "Longest side")
    page.open(f"{url}/runs/flow-run/{found.id}", "predictions")
    page.open(f"{url}/artifacts/artifact/{api.artifacts(found)['batch-counts']}", "proposals")
    shown = page.run("document.body.innerText")
    expect("the newer UI shows the counts of found", "Images and people of found" in shown)


def check_retraining(project: Path, url: str, api: Api) -> None:
    with browser(height=1100) as page:
        first = retrain(page, url, api, f"train.learning_rate={rehearsal.BEST}", PICTURES / "form.jpg")
        expect(f"{first.name}: {message(first)}", first.state_name == "Promoted")
        second = retrain(page, url, api, f"train.learning_rate={rehearsal.BAD}")
        expect(f"{second.name}: {message(second)}", second.state_name == "Not promoted")

        page.open(f"{url}/runs/flow-run/{second.id}", "Not promoted")
        time.sleep(GRAPH)
        page.click("Artifacts")
        page.wait_for("retrain-summary")
        page.picture(PICTURES / "run.jpg")
        for key, says in (("retrain-summary", "Where it is"), ("retrain-curves", "Segmentation")):
            page.open(f"{url}/artifacts/artifact/{api.artifacts(second)[key]}", says)
            page.picture(PICTURES / f"{key}.jpg")
        page.open(f"{url}/runs", "Not promoted")  # the page of all runs lists them
        page.open(f"{url}/deployments/deployment/{api.deployment('retrain')}?tab=Upcoming", "Schedules")
        page.wait_for("At 03:00")
        page.wait_for("auto-scheduled")
        page.picture(PICTURES / "schedule.jpg")
        elsewhere = {a for a in page.asked if not a.startswith((url, "data:", "blob:", "chrome:"))}
        expect(f"no other server was used ({', '.join(elsewhere) or 'none'})", not elsewhere)
    with browser(width=390, height=1600) as phone:
        report = max((project / "runs/reports").glob("*.html"))
        phone.open(report.as_uri(), "Beside the champion")
        phone.picture(PICTURES / "report-phone.jpg")
        expect("the report fits a phone", phone.run("document.documentElement.scrollWidth") <= 390)
        cut = phone.run(
            "[...document.querySelectorAll('.card')].filter(e => e.scrollWidth > e.clientWidth).length"
        )
        expect(f"and its tables ({cut} do not)", cut == 0)
        expect("the report uses no server", {a for a in phone.asked if a.startswith("http")} == set())


def published_weights(folder: Path) -> tuple[str, ...]:
    """The option for the published weights of the test data; none where they are absent."""
    data = Path(os.environ.get("PERSONLAB_TESTDATA", ROOT.parent / "shared" / "data"))
    published = data / "weights/bodypix-mobilenet-075/model-stride16.json"
    if not published.is_file():
        return ()
    bodypix.import_weights(str(published), folder / "model.safetensors", downloads=folder)
    return ("--weights", str(folder / "model.safetensors"))


def check_serve(folder: Path) -> None:
    """People are found in an image that is dropped on the page of `personlab serve`."""
    scene = make_scene(np.random.default_rng(SCENE), 800, 600, names=COCO_PERSON.keypoints)
    (folder / "rendered.jpg").write_bytes(viz.jpeg(scene.image))
    port = free_port()
    command = (sys.executable, "-m", "personlab", "serve", "--port", str(port), *published_weights(folder))
    with supervised(command, folder, {"PYTHONPATH": str(ROOT)}) as server, browser(900, 900) as page:
        assert server.stdout is not None
        if not any(f"http://127.0.0.1:{port}" in line for line in server.stdout):
            raise SystemExit("personlab serve ended before it served")
        page.open(f"http://127.0.0.1:{port}", "Drop pictures here")
        page.drop(folder / "rendered.jpg", "drop")
        page.wait_for("proposals")
        page.picture(PICTURES / "serve.jpg")
        expect("people were found", "(scores 0." in page.run("document.body.innerText"))


@contextmanager
def temporary(name: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        project = Path(folder) / name
        project.mkdir()
        yield project


def main() -> None:
    PICTURES.mkdir(parents=True, exist_ok=True)
    for make, check in ((tiny.project, check_demo), (rehearsal.project, check_retraining)):
        with temporary("project") as project:
            make(project)
            with served(project) as url, connected(f"{url}/api") as client:
                print(f"the UI is at {url}", flush=True)
                check(project, url, Api(client))
    with temporary("serve") as folder:
        check_serve(folder)
    print(f"pictures: {PICTURES.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
