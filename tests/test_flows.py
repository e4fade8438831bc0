"""Flows of a DVC project of four small stages, on a real Prefect server."""

import base64
import io
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import Mock
from uuid import UUID

import pytest
import yaml
from dvc.repo import Repo
from PIL import Image
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext
from prefect.events.schemas.automations import AutomationCore, EventTrigger
from prefect.exceptions import FailedRun
from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.states import Crashed, Running
from prefect.utilities.callables import parameter_schema

import personlab.utils.supervisor
from flows.artifacts import PICTURE_BYTES, publish, with_pictures
from flows.deployments import deployments
from flows.progress import ProgressBar
from flows.results import summary
from flows.retrain import Retraining, retrain
from flows.stages import downloads, repro_with_retries, run_stage, stages
from flows.tools import end_sub_flows
from flows.ui import crash_orphans
from personlab.errors import UserError
from personlab.report import data_uri
from personlab.report.differences import Difference
from personlab.utils.files import write_tsv
from personlab.utils.process import CommandError, OutputLine, Progress, error_text, parse_line, supervised
from personlab.utils.supervisor import end_group
from tests.conftest import ROOT
from tests.served import artifacts_of, is_alive, log_of, run_of, table_of

STAGES = stages(ROOT)
SERVED = ["retrain", "batch-inference", "scoring", "stage"]

SMALL = ("acquire", "ingest", "targets", "evaluate")

# A stage of the small project fails if its input is "bad".
MAKE = """
import json, sys
from pathlib import Path
from PIL import Image
stage = sys.argv[1]
text = Path("input", stage + ".txt").read_text().strip()
print(f"{stage}: hello from the stage")
if text == "bad":
    sys.exit(f"personlab: input/{stage}.txt: row 3 is bad\\n  write another row")
out = Path("data", stage)
out.mkdir(parents=True)
(out / "table.txt").write_text(text)
metrics = Path("data/metrics")
metrics.mkdir(exist_ok=True)
rows = {"rows": int(text), "keypoints": {"AP": int(text) / 8}}
(metrics / f"{stage}.json").write_text(json.dumps(rows))
if stage == "ingest":
    Image.new("RGB", (40, 30), "red").save(out / "sheet.jpg")
if stage == "evaluate":
    Image.new("RGB", (40, 30), "blue").save(out / "gallery.jpg")
    (out / "report.md").write_text("# Report\\n![people](gallery.jpg)\\n")
    progress = {"label": stage, "done": 3, "total": 4}
    print(json.dumps({"level": "info", "message": "evaluate: 3/4", "progress": progress}))
"""


@dataclass(frozen=True)
class Project:
    folder: Path

    def give(self, stage: str, text: str) -> None:
        (self.folder / "input" / f"{stage}.txt").write_text(text)

    def commit(self) -> None:
        self._run("git", "add", "-A")
        self._run("git", "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", "all")

    def start(self) -> None:
        self._run("git", "init", "-q")
        Repo.init(str(self.folder)).close()

    def _run(self, *command: str) -> None:
        subprocess.run(command, cwd=self.folder, check=True)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Four stages in a row, each of which also reads input/<stage>.txt."""
    made = Project(tmp_path)
    made.start()
    (tmp_path / "make.py").write_text(MAKE)
    (tmp_path / "input").mkdir()
    stages: dict[str, Any] = {}
    for before, name in zip((None, *SMALL), SMALL, strict=False):
        made.give(name, "3")
        deps = ["make.py", f"input/{name}.txt", *([f"data/{before}"] if before else [])]
        stages[name] = {
            "cmd": f"python make.py {name}",
            "deps": deps,
            "outs": [f"data/{name}"],
            "metrics": [{f"data/metrics/{name}.json": {"cache": False}}],
        }
    (tmp_path / "dvc.yaml").write_text(json.dumps({"stages": stages}))
    (tmp_path / "params.yaml").write_text("acquire: {source: sample}\n")
    return made


@pytest.mark.slow
def test_a_stage_shows_what_it_made(prefect_server: None, project: Project) -> None:
    first = run_stage("evaluate", project.folder, return_state=True)
    shown = artifacts_of(run_of(first))
    assert shown.keys() == {f"evaluate-{key}" for key in ("metrics", "gallery", "report", "progress")}
    assert all(artifact.description for artifact in shown.values())
    assert shown["evaluate-progress"].data == 75
    report = shown["evaluate-report"].data
    assert isinstance(report, str)
    assert report.startswith("# Report\n![people](data:image/jpeg;base64,")
    assert "evaluate: hello from the stage" in [message for _, message in log_of(run_of(first))]

    project.commit()
    again = run_stage("evaluate", project.folder, return_state=True)
    assert (again.name, again.message) == ("Cached", "Stage 'evaluate' didn't change, skipping")
    assert {row["change"] for row in table_of(run_of(again), "evaluate-metrics")} == {"="}

    project.give("evaluate", "4")
    third = run_stage("evaluate", project.folder, return_state=True)
    assert third.name == "Completed"
    assert table_of(run_of(third), "evaluate-metrics") == [
        {"metric": "rows", "now": 4, "last commit": 3, "change": "+1"},
        {"metric": "keypoints.AP", "now": 0.5, "last commit": 0.375, "change": "+0.125"},
    ]


@pytest.mark.slow
def test_a_stage_alone_makes_what_it_needs_even_if_it_cannot_be_shown(
    prefect_server: None, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError("no such picture")

    monkeypatch.setattr("flows.stages.publish", fail)
    state = run_stage("ingest", project.folder, return_state=True)
    assert (state.name, state.result()) == ("Completed", True)
    assert (project.folder / "data/acquire/table.txt").is_file()
    assert (30, "data/ingest cannot be shown: OSError: no such picture") in log_of(run_of(state))
    project.give("targets", "bad")
    with pytest.raises(CommandError, match=r"^personlab: input/targets.txt: row 3"):
        run_stage("targets", project.folder)


@pytest.mark.slow
def test_acquire_tries_again_only_where_it_downloads(
    prefect_server: None, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.stages.repro_with_retries.retry_delay_seconds", [0, 0])
    project.give("acquire", "bad")

    def tries() -> int:
        log = log_of(run_of(run_stage("acquire", project.folder, return_state=True)))
        return sum(message == "personlab: input/acquire.txt: row 3 is bad" for _, message in log)

    assert tries() == 1
    (project.folder / "params.yaml").write_text("acquire: {source: coco2017, download: coco}\n")
    assert downloads(project.folder)
    assert tries() == 3


def test_a_bad_params_file_is_left_for_the_stage_to_report(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("acquire: {sourze: sample}\n")
    assert not downloads(tmp_path)


@pytest.mark.slow
def test_an_error_of_dvc_itself_is_the_message_of_the_run(prefect_server: None, tmp_path: Path) -> None:
    state = run_stage("ingest", tmp_path, return_state=True)
    assert state.is_failed()
    assert "you are not inside of a DVC repository" in str(state.message)


# a process with a child, which print their ids and sleep
FAMILY = """
import os, subprocess, time
child = subprocess.Popen(["sleep", "600"])
print(child.pid, os.getpid(), flush=True)
time.sleep(600)
"""


def test_no_process_outlives_an_interrupted_flow(tmp_path: Path) -> None:
    with suppress(KeyboardInterrupt), supervised((sys.executable, "-c", FAMILY), tmp_path) as process:
        assert process.stdout is not None
        pids = [int(pid) for pid in process.stdout.readline().split()]
        assert len(pids) == 2
        assert all(map(is_alive, pids))
        raise KeyboardInterrupt
    assert not any(map(is_alive, pids))


def test_no_process_outlives_a_killed_flow(tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from personlab.utils.process import supervised
with supervised((sys.executable, "-c", {FAMILY!r}), Path()) as process:
    print(process.stdout.readline(), flush=True)
    process.wait()
"""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    flow = subprocess.Popen((sys.executable, "-c", code), cwd=tmp_path, env=env, stdout=subprocess.PIPE)
    assert flow.stdout is not None
    pids = [int(pid) for pid in flow.stdout.readline().split()]
    assert all(map(is_alive, pids))
    flow.kill()
    flow.communicate()
    deadline = time.monotonic() + 30
    while any(map(is_alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_alive, pids))


def test_a_process_that_ignores_signals_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(personlab.utils.supervisor, "GRACE_SECONDS", 0.2)
    deaf = "import signal; [signal.signal(n, signal.SIG_IGN) for n in (signal.SIGINT, signal.SIGTERM)]"
    process = subprocess.Popen(
        (sys.executable, "-c", deaf + FAMILY), stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.stdout is not None
    pids = [int(pid) for pid in process.stdout.readline().split()]
    end_group(process)
    assert process.returncode == -signal.SIGKILL
    assert not any(map(is_alive, pids))
    process.stdout.close()


def test_a_supervisor_passes_on_output_and_exit_status(tmp_path: Path) -> None:
    with supervised(("bash", "-c", "echo out; echo err >&2; exit 7"), tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.read().split() == ["out", "err"]
        assert process.wait() == 7


@pytest.mark.slow
def test_a_terminated_flow_takes_its_stage_with_it(prefect_server: None, project: Project) -> None:
    (project.folder / "make.py").write_text(
        "import os, time\nopen('pid', 'w').write(str(os.getpid()))\nprint('ready')\ntime.sleep(600)\n"
    )
    env = os.environ | {"PREFECT_API_URL": str(PREFECT_API_URL.value()), "PYTHONPATH": str(ROOT)}
    flow = subprocess.Popen(
        (sys.executable, "-m", "flows.stages", "acquire"),
        cwd=project.folder,
        env=env,
        # as in a terminal, even if these tests are a shell's background job, which starts with SIGINT ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    pid_file = project.folder / "pid"
    deadline = time.monotonic() + 60
    while not (pid_file.exists() and pid_file.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    pid = int(pid_file.read_text())
    assert is_alive(pid)
    flow.send_signal(signal.SIGINT)
    assert flow.wait(60) != 0
    assert not is_alive(pid)


@pytest.mark.parametrize(
    ("tail", "text"),
    [
        (["step 1", "error: a.json: bad", "  repair it"], "error: a.json: bad\n  repair it"),
        (["Traceback ...", '  File "x.py"', "ValueError: no", "bye"], "ValueError: no\nbye"),
        (["KeyError: 'a'", "During handling:", "lib.errors.FooError: b"], "lib.errors.FooError: b"),
        (["12:00:01 x 3 people", "personlab: a.json: no"], "personlab: a.json: no"),
        (["step 1", "Killed"], "Killed"),
        ([], ""),
    ],
)
def test_the_error_text_is_the_last_error(tail: list[str], text: str) -> None:
    assert error_text([parse_line(line) for line in tail]) == text
    verdict = "ERROR: failed to reproduce 'x': failed to run: python x, exited with 1"
    assert error_text([parse_line(line) for line in (*tail, verdict)]) == "\n".join(
        filter(None, (text, verdict))
    )


LOGGED = (
    '{"level": "warning", "message": "train: seg 0.5", "progress": {"label": "train", "done": 3, "total": 9}}'
)


def test_lines_of_personlabs_log_are_parsed_and_others_kept() -> None:
    assert parse_line(LOGGED) == OutputLine("train: seg 0.5", logging.WARNING, Progress("train", 3, 9))
    assert parse_line('{"level": "info"}') == OutputLine('{"level": "info"}')
    assert parse_line("\x1b[31mERROR\x1b[0m: no\n") == OutputLine("ERROR: no", logging.ERROR)


def test_a_progress_bar_shows_count_rate_and_news(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[float, str]] = []

    def show(*arguments: Any, description: str, **_: Any) -> UUID:
        shown.append((arguments[-1], description))
        return UUID(int=1)

    monkeypatch.setattr("flows.progress.create_progress_artifact", show)
    monkeypatch.setattr("flows.progress.update_progress_artifact", show)
    now = 0.0
    bar = ProgressBar("train-progress", clock=lambda: now)

    def report(text: str, done: int) -> None:
        bar.on_line(OutputLine(text, progress=Progress("train", done, 1000)))

    bar.on_line(OutputLine("train: hello"))
    assert shown == []
    report("train: resuming from step 500", 500)
    now = 1.0
    report("train: seg 0.4", 510)  # too early for an update
    now = 10.0
    report("train: 600/1000, 10.0/s, 40 s left", 600)
    now = 11.0
    report("train: seg 0.2", 700)  # too early, but part of the next one
    now = 20.0
    report("train: 800/1000, 10.0/s, 20 s left", 800)
    now = 25.0
    report("train: seg 0.1", 850)
    now = 26.0
    report("train: 1000/1000, 10.0/s, 0 s left", 1000)
    assert shown == [
        (50.0, "train: 500/1000; resuming from step 500"),
        (60.0, "train: 600/1000, 10.0/s, 40 s left; seg 0.4"),
        (80.0, "train: 800/1000, 10.0/s, 20 s left; seg 0.2"),
        (85.0, "train: 850/1000, 10.0/s, 20 s left; seg 0.1"),
        (100.0, "train: 1000/1000; seg 0.1"),
    ]


def test_pictures_fit_and_remain_pictures(tmp_path: Path) -> None:
    noise = Image.frombytes("RGB", (2400, 1800), os.urandom(2400 * 1800 * 3))
    noise.save(tmp_path / "noise.png")
    jpeg = base64.b64decode(data_uri.jpeg(tmp_path / "noise.png", PICTURE_BYTES).partition("base64,")[2])
    assert len(jpeg) <= PICTURE_BYTES
    with Image.open(io.BytesIO(jpeg)) as small:
        assert small.width / small.height == pytest.approx(4 / 3, abs=0.01)
    (tmp_path / "report.md").write_text("![a](noise.png) ![b](noise.png) ![c](none.png)")
    text = with_pictures(tmp_path / "report.md")
    assert text.endswith("![c](none.png)")
    assert text.count("data:image/jpeg") == 2
    assert len(text) < 1_000_000


def test_curves_are_a_row_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: dict[str, Any] = {}
    monkeypatch.setattr(
        "flows.artifacts.create_table_artifact", lambda rows, key, description: made.update({key: rows})
    )
    publish("train", tmp_path)  # there may be no files
    assert made == {}
    rows = (
        {"step": 500, "keypoints": 0.25, "segm": 0.0},
        {"step": 1000, "keypoints": 0.123456, "segm": 1e-3},
    )
    write_tsv(tmp_path / "data/plots/train/ap.tsv", rows)
    publish("train", tmp_path)
    assert made == {
        "train-ap": [
            {"step": 500, "keypoints": 0.25, "segm": 0.0},
            {"step": 1000, "keypoints": 0.1235, "segm": 0.001},
        ]
    }


def test_every_flow_is_deployed_under_its_name_one_run_at_a_time() -> None:
    made = list(deployments())
    assert [each.name for each in made] == [each.flow_name for each in made] == SERVED
    assert {each.concurrency_limit for each in made} == {1}
    assert all(each.description and each.tags for each in made)
    assert made[0].entrypoint == "flows.retrain.retrain"
    (weekly,) = made[0].schedules or []
    assert getattr(weekly.schedule, "cron", None) == "0 3 * * 1"
    assert Retraining.model_validate(weekly.parameters["settings"]).refresh_data
    assert not any(each.schedules for each in made[1:])


def test_the_form_of_a_stage_offers_those_of_dvc_yaml() -> None:
    form = parameter_schema(run_stage).properties["stage"]
    assert form["enum"] == list(STAGES)
    assert form["description"].startswith("acquire: Render the sample dataset, ")


@pytest.mark.slow
def test_prefect_deploys_the_file_to_a_work_pool(prefect_server: None) -> None:
    environment = os.environ | {"PREFECT_API_URL": str(PREFECT_API_URL.value())}
    deploy = (sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all")
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="personlab", type="process"))
        subprocess.run(deploy, cwd=ROOT, env=environment, check=True)
        deployed = {each.name: each for each in client.read_deployments()}
    assert deployed.keys() >= set(SERVED)
    assert deployed["stage"].parameters == {"stage": "evaluate"}
    assert deployed["retrain"].work_pool_name == "personlab"


def test_the_automation_for_lost_runs_knows_every_final_state_of_the_flows() -> None:
    automation = AutomationCore.model_validate(yaml.safe_load((ROOT / "flows/automations.yaml").read_text()))
    assert isinstance(automation.trigger, EventTrigger)
    outcomes = ("Cached", "Promoted", "Not promoted", "Unchanged")
    final = {"heartbeat", "Completed", "Failed", "TimedOut", "Cancelled", "Crashed", *outcomes}
    assert automation.trigger.expect == {f"prefect.flow-run.{name}" for name in final}
    # runs that users start in a terminal have Prefect's own rhythm
    assert automation.trigger.within.total_seconds() > 3 * PREFECT_FLOWS_HEARTBEAT_FREQUENCY.default()


@pytest.mark.parametrize(
    ("command", "url"),
    [
        ("flows.deployments", "http://127.0.0.1:9/api"),
        ("flows.retrain", "localhost:9"),
        ("flows.stages ingest", "http://nowhere.invalid/api"),
    ],
)
def test_a_server_that_does_not_answer_is_an_error(
    monkeypatch: pytest.MonkeyPatch, command: str, url: str
) -> None:
    module, *arguments = command.split()
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    sentence = f"^error: Failed to reach API at {url}/; 'make ui' starts"
    with temporary_settings({PREFECT_API_URL: url}), pytest.raises(SystemExit, match=sentence):
        import_module(module).main()


def test_a_malformed_address_of_a_server_is_an_error(tmp_path: Path) -> None:
    environment = os.environ | {"PREFECT_API_URL": "http://[::1", "PYTHONPATH": str(ROOT)}
    command = (sys.executable, "-m", "flows.stages", "ingest")
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    sentence = "error: Prefect's settings (PREFECT_API_URL and so on): Value error, Invalid IPv6 URL\n"
    assert (done.returncode, done.stderr) == (1, sentence)


def loaded_by(module: str) -> Sequence[str]:
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run((sys.executable, "-c", code), cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_flows_load_neither_torch_nor_ray() -> None:
    assert not {"torch", "ray"} & set(loaded_by("flows.deployments"))


def test_a_summary_says_whether_why_what_and_where() -> None:
    verdict = {"outcome": "not promoted", "why": "no AP is higher", "comparisons": [], "version": None}
    results = Mock(facts=["data set: sample"], parameters=[Difference("train.steps", 10, 20)])
    text = summary(verdict, "not-worse", results, ["all files: `git checkout 1`"])
    assert text.startswith("# Not promoted: no AP is higher\n\nRule *not-worse*")
    assert text.endswith(
        "## What was trained\n\n- data set: sample\n- unlike the champion: train.steps: 10 → 20\n\n"
        "## Where it is\n\n- all files: `git checkout 1`"
    )


@pytest.mark.parametrize("name", ["prefect.engine", "prefect.flow_runs"])
def test_the_log_has_no_traceback_of_an_error_that_is_the_message_of_its_run(name: str) -> None:
    logger = logging.getLogger(name)

    def is_logged(error: Exception) -> bool:
        record = logger.makeRecord(name, 40, "", 1, "unexpected", (), (type(error), error, None))
        return bool(logger.filter(record))

    assert not any(map(is_logged, (UserError("bad"), CommandError("bad"), FailedRun("bad"))))
    assert is_logged(ValueError("a fault"))
    assert logger.filter(logger.makeRecord(name, 40, "", 1, "no error", (), None))


@pytest.mark.slow
def test_runs_whose_runner_is_gone_end_as_crashed(prefect_server: None) -> None:
    with get_client(sync_client=True) as client:
        flow_id = client.create_flow_from_name("interrupted")
        deployment = client.create_deployment(flow_id, "local")
        run = client.create_flow_run_from_deployment(deployment)
        client.set_flow_run_state(run.id, Running(), force=True)
        call = client.create_task_run(repro_with_retries, run.id, dynamic_key="0")
        stage = client.create_flow_run(
            run_stage, parameters={"stage": "acquire"}, parent_task_run_id=call.id, state=Running()
        )
        crash_orphans(client)
        state = client.read_flow_run(run.id).state
        assert state is not None
        assert state.is_crashed()
        assert state.message == "its runner is gone"
        crash_orphans(client)
        assert client.read_flow_run(run.id).state == state  # a final state stays as it is

        client.set_flow_run_state(stage.id, Running(), force=True)  # its run alone has ended
        crash_orphans(client)
        ended = client.read_flow_run(stage.id).state
        assert ended is not None
        assert ended.is_crashed()


@pytest.mark.slow
def test_the_stages_of_a_run_whose_process_was_killed_end_with_it(prefect_server: None) -> None:
    at_work: list[FlowRun] = []

    @flow
    def stage() -> None:
        at_work.append(run_of_context())

    @flow
    def run() -> None:
        at_work.append(run_of_context())
        stage()
        stage()

    def run_of_context() -> FlowRun:
        context = FlowRunContext.get()
        assert context is not None
        assert context.flow_run is not None
        return context.flow_run

    run()
    whole, first, second = at_work
    assert end_sub_flows in retrain.on_crashed_hooks
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(second.id, Running(), force=True)  # as if it had been killed there
        end_sub_flows(retrain, whole, Crashed(message="killed"))
        ended = client.read_flow_run(second.id).state
        assert ended is not None
        assert (ended.is_crashed(), ended.message) == (True, "killed")
        before = client.read_flow_run(first.id).state
        assert before is not None
        assert before.is_completed()


def test_the_automation_in_the_documentation_is_valid() -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/operations.md").read_text(), re.DOTALL)
    documented = yaml.safe_load(text)
    documented["actions"][0]["block_document_id"] = str(UUID(int=1))
    made = AutomationCore.model_validate(documented)
    assert isinstance(made.trigger, EventTrigger)
    assert "prefect.flow-run.Not promoted" in made.trigger.expect
    assert not {"prefect.flow-run.Unchanged", "prefect.flow-run.Promoted"} & made.trigger.expect
