"""The flows around a real DVC project of eight small stages, on a real Prefect server."""

import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from prefect import State
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    FlowRunFilter,
    FlowRunFilterParentFlowRunId,
    LogFilter,
    LogFilterFlowRunId,
)
from prefect.client.schemas.objects import Artifact, FlowRun
from prefect.client.schemas.sorting import FlowRunSort
from prefect.logging.handlers import APILogHandler

import flows.leash
from flows.artifacts import PICTURE_BYTES, with_pictures
from flows.deployments import deployments
from flows.leash import end_group
from flows.repro import StageError, error_text, leashed, repro
from flows.retrain import retrain
from flows.stages import STAGES, acquire, downloads, evaluate, ingest, targets
from personlab import data_uri
from tests.conftest import ROOT

NAMES = [stage.name for stage in STAGES]

# what a stage of the small project does: fail if its input says so, else write its outputs
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
(out / "metrics.json").write_text(json.dumps({"rows": int(text), "keypoints": {"AP": int(text) / 8}}))
if stage == "acquire":
    (out / "metrics.json").unlink()
    (out / "source.json").write_text(json.dumps({"source": "sample"}))
if stage == "ingest":
    Image.new("RGB", (40, 30), "red").save(out / "sheet.jpg")
if stage == "evaluate":
    Image.new("RGB", (40, 30), "blue").save(out / "gallery.jpg")
    (out / "report.md").write_text("# Report\\n![people](gallery.jpg)\\n")
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
        self._run(sys.executable, "-m", "dvc", "init", "-q")

    def _run(self, *command: str) -> None:
        subprocess.run(command, cwd=self.folder, check=True)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Eight stages in a row, each of which also reads input/<stage>.txt."""
    made = Project(tmp_path)
    made.start()
    (tmp_path / "make.py").write_text(MAKE)
    (tmp_path / "input").mkdir()
    stages: dict[str, Any] = {}
    for before, name in zip([None, *NAMES], NAMES, strict=False):
        made.give(name, "3")
        deps = ["make.py", f"input/{name}.txt", *([f"data/{before}"] if before else [])]
        stages[name] = {"cmd": f"python make.py {name}", "deps": deps, "outs": [f"data/{name}"]}
    (tmp_path / "dvc.yaml").write_text(json.dumps({"stages": stages}))
    (tmp_path / "params.yaml").write_text("acquire: {source: sample}\n")
    return made


def run_of(state: State[Any]) -> FlowRun:
    with get_client(sync_client=True) as client:
        assert state.state_details.flow_run_id is not None
        return client.read_flow_run(state.state_details.flow_run_id)


def sub_runs(parent: State[Any]) -> list[FlowRun]:
    parents = FlowRunFilterParentFlowRunId(any_=[run_of(parent).id])
    with get_client(sync_client=True) as client:
        return client.read_flow_runs(
            flow_run_filter=FlowRunFilter(parent_flow_run_id=parents), sort=FlowRunSort.START_TIME_ASC
        )


def artifacts_of(run: FlowRun) -> dict[str, Artifact]:
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(
            artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run.id]))
        )
    return {str(artifact.key): artifact for artifact in found}


def table_of(run: FlowRun, key: str) -> list[dict[str, Any]]:
    data = artifacts_of(run)[key].data
    assert isinstance(data, str)
    rows: list[dict[str, Any]] = json.loads(data)
    return rows


def log_of(run: FlowRun) -> list[tuple[int, str]]:
    APILogHandler().flush()
    with get_client(sync_client=True) as client:
        logs = client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run.id])))
    return [(log.level, log.message) for log in logs]


def outcomes(state: State[Any]) -> dict[str, str | None]:
    return {row["stage"]: row["outcome"] for row in table_of(run_of(state), "retrain-stages")}


@pytest.mark.slow
def test_retrain_runs_each_stage_once_and_shows_it(prefect_server: None, project: Project) -> None:
    first = retrain(project.folder, return_state=True)
    assert first.is_completed()
    runs = sub_runs(first)
    assert [run.name for run in runs] == NAMES
    assert outcomes(first) == dict.fromkeys(NAMES, "Completed")
    for run in runs:
        assert f"{run.name}: hello from the stage" in [message for _, message in log_of(run)]
    by_name = {run.name: artifacts_of(run).keys() for run in runs}
    assert by_name["acquire"] == {"acquire-source"}
    assert by_name["ingest"] == {"ingest-metrics", "ingest-sheet"}
    assert by_name["evaluate"] == {"evaluate-metrics", "evaluate-gallery", "evaluate-report"}
    for name in NAMES[2:-1]:
        assert by_name[name] == {f"{name}-metrics"}
    report = artifacts_of(runs[-1])["evaluate-report"].data
    assert isinstance(report, str)
    assert report.startswith("# Report\n![people](data:image/jpeg;base64,")

    project.commit()
    second = retrain(project.folder, return_state=True)
    assert second.message == "nothing to do: every stage was up to date"
    assert outcomes(second) == dict.fromkeys(NAMES, "Cached")
    rows = table_of(run_of(second), "retrain-stages")
    assert rows[2]["reason"] == "Stage 'estimator' didn't change, skipping"
    assert {row["change"] for row in table_of(run_of(second), "retrain-metrics")} == {"="}

    project.give("evaluate", "4")
    third = evaluate(project.folder, return_state=True)
    assert third.name == "Completed"
    assert table_of(run_of(third), "evaluate-metrics") == [
        {"metric": "rows", "now": 4, "last commit": 3, "change": "+1"},
        {"metric": "keypoints.AP", "now": 0.5, "last commit": 0.375, "change": "+0.125"},
    ]


@pytest.mark.slow
def test_a_stage_that_fails_fails_its_flow_with_its_own_words_first(
    prefect_server: None, project: Project
) -> None:
    project.give("impute", "bad")
    state = retrain(project.folder, return_state=True)
    assert state.is_failed()
    assert str(state.message).startswith(
        "impute: personlab: input/impute.txt: row 3 is bad\n  write another row"
    )
    runs = sub_runs(state)
    assert [run.name for run in runs] == NAMES[: NAMES.index("impute") + 1]
    failed = runs[-1].state
    assert failed is not None
    assert failed.is_failed()
    assert str(failed.message).startswith("personlab: input/impute.txt: row 3 is bad")
    assert (40, "personlab: input/impute.txt: row 3 is bad") in log_of(runs[-1])


@pytest.mark.slow
def test_a_stage_alone_makes_what_it_needs(prefect_server: None, project: Project) -> None:
    assert ingest(project.folder) is True
    assert (project.folder / "data" / "acquire" / "source.json").is_file()
    assert ingest(project.folder) is False
    project.give("targets", "bad")
    with pytest.raises(StageError, match=r"^personlab: input/targets.txt: row 3"):
        targets(project.folder)


@pytest.mark.slow
def test_acquire_tries_again_only_where_it_downloads(
    prefect_server: None, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.stages.reproduce_patiently.retry_delay_seconds", [0, 0])
    project.give("acquire", "bad")

    def tries() -> int:
        log = log_of(run_of(acquire(project.folder, return_state=True)))
        return sum(message == "personlab: input/acquire.txt: row 3 is bad" for _, message in log)

    assert tries() == 1
    (project.folder / "params.yaml").write_text("acquire: {source: coco2017, directory: coco}\n")
    assert downloads(project.folder)
    assert tries() == 3


def test_a_bad_params_file_is_left_for_the_stage_to_report(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("acquire: {sourze: sample}\n")
    assert not downloads(tmp_path)


def test_dvc_itself_failing_is_told(tmp_path: Path) -> None:
    said: list[str] = []
    with pytest.raises(StageError, match="you are not inside of a DVC repository"):
        repro("ingest", tmp_path, said.append)
    assert said


# a process with a child, both of which say who they are and stay
FAMILY = """
import os, subprocess, time
child = subprocess.Popen(["sleep", "600"])
print(child.pid, os.getpid(), flush=True)
time.sleep(600)
"""


def test_no_process_outlives_an_interrupted_flow(tmp_path: Path) -> None:
    with suppress(KeyboardInterrupt), leashed((sys.executable, "-c", FAMILY), tmp_path) as process:
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
from flows.repro import leashed
with leashed((sys.executable, "-c", {FAMILY!r}), Path()) as process:
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


def test_a_process_that_will_not_listen_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flows.leash, "PATIENCE", 0.2)
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


def test_a_leash_passes_on_what_the_command_says_and_how_it_ends(tmp_path: Path) -> None:
    with leashed(("bash", "-c", "echo out; echo err >&2; exit 7"), tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.read().split() == ["out", "err"]
        assert process.wait() == 7


def is_alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.slow
def test_a_terminated_flow_takes_its_stage_with_it(prefect_server: None, project: Project) -> None:
    from prefect.settings import PREFECT_API_URL

    (project.folder / "make.py").write_text(
        "import os, time\nopen('pid', 'w').write(str(os.getpid()))\nprint('ready')\ntime.sleep(600)\n"
    )
    env = os.environ | {"PREFECT_API_URL": str(PREFECT_API_URL.value()), "PYTHONPATH": str(ROOT)}
    flow = subprocess.Popen((sys.executable, "-m", "flows.stages", "acquire"), cwd=project.folder, env=env)
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
    assert error_text(tail) == text
    verdict = "ERROR: failed to reproduce 'x': failed to run: python x, exited with 1"
    assert error_text([*tail, verdict]) == "\n".join(filter(None, (text, verdict)))


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


def test_every_flow_is_deployed_one_run_at_a_time() -> None:
    made = deployments()
    assert [deployment.flow_name for deployment in made] == ["retrain", *NAMES]
    assert {deployment.concurrency_limit for deployment in made} == {1}
    assert made[0].entrypoint == "flows.retrain.retrain"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def start_ui(folder: Path, port: int) -> subprocess.Popen[str]:
    env = os.environ | {"PERSONLAB_UI_PORT": str(port), "PYTHONPATH": str(ROOT)}
    command = (sys.executable, "-m", "flows.ui")
    return subprocess.Popen(
        command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.slow
def test_the_ui_starts_serves_every_flow_and_stops(tmp_path: Path) -> None:
    port = free_port()
    with start_ui(tmp_path, port) as ui:
        assert ui.stdout is not None
        said = "".join(iter(ui.stdout.readline, "Deployments\n"))
        assert f"Prefect UI: http://127.0.0.1:{port}" in said
        served = {name for _, name in zip(range(12), ui.stdout, strict=False)}
        assert all(any(f" {name}/local " in line for line in served) for name in ("retrain", *NAMES))
        ui.send_signal(signal.SIGINT)
        assert ui.stdout.read().endswith("stopped\n")
    assert ui.returncode == 0
    assert (tmp_path / ".prefect" / "prefect.db").is_file()
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_a_port_in_use_is_explained(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        ui = start_ui(tmp_path, other.getsockname()[1])
        assert "choose another: PERSONLAB_UI_PORT=" in ui.communicate(timeout=60)[0]
    assert ui.returncode == 1


def loaded_by(module: str) -> Sequence[str]:
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run((sys.executable, "-c", code), cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_flows_load_neither_torch_nor_ray() -> None:
    assert not {"torch", "ray"} & set(loaded_by("flows.deployments"))
