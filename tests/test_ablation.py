"""The ablations: the tables against the paper's text, names and commands, the page, and runs with DVC."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import chdir, nullcontext, redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from personlab import params
from personlab.ablation import page
from personlab.ablation.cli import ablate
from personlab.ablation.experiments import Experiment, Project, Result, copy_options
from personlab.ablation.tables import TABLES, Choice, Row, Table, scaled_side
from personlab.cli import app
from personlab.distributed.checkpoints import run_of
from personlab.errors import UserError
from personlab.params import Params
from personlab.skeleton import COCO_PERSON
from personlab.tables import Dataset
from tests import rehearsal
from tests.conftest import ROOT

TABLE4, TABLE5, TABLE6, TABLE7, TABLE8, TABLE9, TABLE1, TABLE3 = TABLES
ROWS = [row for table in TABLES for row in table.rows]


# --- the tables ---------------------------------------------------------------------------------------------


def test_in_the_papers_configuration_sides_are_the_papers() -> None:
    (reference,) = params.load(ROOT / "configs/coco2017-resnet101.yaml").infer.sides
    for row in ROWS:
        assert row.overrides(reference)["infer.sides"] == list(row.sides)
        assert row.label(reference) == row.title


def test_sides_are_in_proportion_to_that_of_params_yaml() -> None:
    assert [scaled_side(side, 385) for side in (401, 601, 801, 1001, 1201, 1401, 1601, 1801, 2401)] == [
        113, 169, 217, 273, 329, 385, 441, 497, 657,
    ]  # fmt: skip
    assert scaled_side(1401, 400) == 400  # as params.yaml has it
    assert scaled_side(401, 9) == 9  # one cell at least
    assert TABLE4.rows[0].label(385) == "Stride 32, input 401 (here 113)"


@given(st.integers(9, 4000), st.integers(2, 3000))
def test_scaled_sides_are_on_the_lattice_and_near_their_share(reference: int, side: int) -> None:
    scaled = scaled_side(side, reference)
    if side != 1401:
        assert scaled % 8 == 1
        assert scaled > 1
        assert abs(scaled - 1 - (side - 1) / 1400 * (reference - 1)) <= 4 or scaled == 9
    assert scaled <= scaled_side(side + 8, reference) or 1401 in (side, side + 8)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.title)
def test_every_row_has_a_figure_in_every_column(table: Table) -> None:
    assert len(table.figures) == len(table.rows)
    for figures in table.figures:
        assert len(figures) == len(table.columns)
        assert all(0 < figure < 1 for figure in figures)
    assert set(table.claims) <= set(table.columns)


def test_differences_are_those_of_the_papers_text() -> None:
    assert (TABLE6.difference(1, "AP"), TABLE6.difference(1, "APL")) == (0.033, 0.054)
    assert TABLE7.difference(1, "APL") == 0.091
    assert TABLE8.difference(1, "AP") == -0.008
    assert TABLE9.difference(1, "AP") == 0.044
    assert [figures[TABLE9.columns.index("APS")] for figures in TABLE9.figures] == [0.076, 0.164]


def test_the_papers_final_model_has_the_same_figures_in_every_table() -> None:
    final = TABLE4.figures[TABLE4.baseline]
    assert TABLE4.rows[TABLE4.baseline].title == "Stride 8, input 1401"
    assert final == TABLE5.figures[TABLE5.baseline] == TABLE6.figures[1] == TABLE8.figures[0]
    assert TABLE7.figures[1] == TABLE9.figures[1] == TABLE3.figures[0]


def test_every_table_can_be_chosen() -> None:
    assert set(get_args(Choice)) == {table.name for table in TABLES} | {"all"}


# --- experiments --------------------------------------------------------------------------------------------


def project(folder: Path, **sections: Mapping[str, Any]) -> Project:
    """A small network on the sample; nothing in the folder."""
    settings = {
        "model": {"backbone": "resnet18", "width": 32},
        "train": {"crop": 129, "steps": 4000, "batch": 16},
        "infer": {"sides": [385], "stride": 8},
        "decode": {"extensions": []},
    }
    return Project(folder, Params.model_validate(settings | sections), inputs="code and data")


def test_rows_become_commands(tmp_path: Path) -> None:
    def command(row: Row) -> str:
        return project(tmp_path).experiment(row).command

    settings = "-S 'infer.sides=[385]' -S 'decode.extensions=[]' -S decode.scoring=hough -S decode.nms=hard"
    name = "ablate-scoring-hough-nms-hard-"
    assert command(TABLE5.rows[0]).startswith(f"dvc exp run {settings} --name {name}")
    settings = "-S 'infer.sides=[113]' -S 'decode.extensions=[]' -S infer.stride=32"
    assert command(TABLE4.rows[0]).startswith(f"dvc exp run {settings} --name ablate-sides-113-stride-32-")
    assert "-S 'infer.sides=[169,329,497,657]' -S 'decode.extensions=[]' --name" in command(TABLE1.rows[1])
    assert "-S targets.imputed=false" in command(TABLE8.rows[0])
    assert "-S model.refine=false" in command(TABLE6.rows[0])


def test_rows_of_one_configuration_are_one_experiment(tmp_path: Path) -> None:
    made = project(tmp_path)
    final = [TABLE4.rows[TABLE4.baseline], TABLE5.rows[3], TABLE6.rows[1], TABLE9.rows[1], TABLE3.rows[0]]
    assert {made.experiment(row).name for row in final} == {made.experiment().name}
    assert len({made.experiment(row).name for row in ROWS}) == 24 + 3 + 1 + 1 + 1


def test_a_name_tells_what_decides_the_result(tmp_path: Path) -> None:
    row = TABLE5.rows[0]
    name = project(tmp_path).experiment(row).name
    assert replace(project(tmp_path), inputs="other code").experiment(row).name != name
    assert project(tmp_path, evaluate={"gallery": 3}).experiment(row).name != name
    assert project(tmp_path, compute={"workers": 2}).experiment(row).name == name


def test_the_median_of_several_sides_stands_for_the_papers(tmp_path: Path) -> None:
    pyramid = project(tmp_path, infer={"sides": [577, 193, 385], "stride": 8})
    assert pyramid.side == 385
    single = project(tmp_path)
    assert all(pyramid.experiment(row) == single.experiment(row) for row in ROWS[:4])
    assert pyramid.experiment().name != single.experiment().name


def test_a_training_finds_its_checkpoints_from_every_folder(tmp_path: Path) -> None:
    storage, section = str(tmp_path / "project/runs"), params.Train()
    runs = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "shard").write_text("the same data")
        runs.append(run_of(tmp_path / name, "train", [section], [tmp_path / name / "shard"], storage))
    assert runs[0].folder.place == runs[1].folder.place == f"{storage}/{runs[0].name}"


# --- the page -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "paper", "verdict"),
    [
        (0.04, 0.06, 0.03, "agrees"),
        (-0.06, -0.04, -0.03, "agrees"),
        (-0.06, -0.04, 0.03, "disagrees"),
        (0.04, 0.06, -0.03, "disagrees"),
        (-0.05, 0.15, 0.03, "undecided"),
        (0.0, 0.0, 0.03, "undecided"),
        (0.04, 0.06, 0.0, "undecided"),
        (float("nan"), float("nan"), 0.03, "undecided"),
    ],
)
def test_verdicts(low: float, high: float, paper: float, verdict: str) -> None:
    assert page.verdict(low, high, paper) == verdict


class Found(Result):
    """All columns are `ap`, but for APS; resamplings share how hard the images are."""

    def __init__(self, ap: float, aps: float = float("nan")) -> None:
        self.__dict__.update(ap=ap, aps=aps)

    def scores(self, task: str) -> dict[str, float]:
        return {name: self.aps if name == "APS" else self.ap for name in (*TABLE4.columns, *TABLE7.columns)}

    def resampled(self, task: str, column: str) -> np.ndarray:
        hardness = np.random.default_rng(0).uniform(0, 0.5, 101)
        return self.scores(task)[column] * np.linspace(0.9, 1.1, 101) + hardness


def markdown(
    monkeypatch: pytest.MonkeyPatch, made: Project, found: Mapping[tuple[str, int], Found] | None = None
) -> str:
    """The page with results of rows (title of the table, number of the row)."""
    rehearsal.run(made.folder, "git", "init", "-q")
    (made.folder / "params.yaml").touch()
    rehearsal.commit(made.folder)
    results = {
        made.experiment(table.rows[row]).name: result
        for (title, row), result in (found or {}).items()
        for table in TABLES
        if table.title.startswith(title)
    }
    person = {"crowd": False, "imputed": False, "visibility": [2]}
    people = [person, person | {"imputed": True}, person | {"visibility": [0]}, person | {"crowd": True}]
    monkeypatch.setattr(Project, "results", lambda self: results)
    monkeypatch.setattr(Project, "images", {7: {"people": people}})
    return page.markdown(made)


def section(text: str, title: str) -> str:
    return next(part for part in text.split("\n## ") if part.startswith(title))


def test_a_page_without_results_says_what_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = markdown(monkeypatch, project(tmp_path))
    assert text.count("Verdicts: none yet. Not run: ") == len(TABLES)
    assert "Not run: 2 of 2 rows; `personlab ablate table8-9`." in section(text, "Table 9")
    assert "| Stride 32, input 401 (here 113) | not run |\n" in text
    paper = "0.356 | 0.553 | 0.358 | 0.157 | 0.625 | 0.384 | 0.572 | 0.389 | 0.176 | 0.670"
    assert f"|  | paper | {paper} |" in text
    assert "- **Data**: the rendered sample (train_images=400 val_images=100 seed=1" in text
    assert "Scored: 1 images, 3 people, 1 with keypoints." in text
    assert "Differences to" not in text


@pytest.mark.parametrize(
    ("model", "weights"),
    [
        ({}, "random weights"),
        ({"init": "a.safetensors"}, "a.safetensors"),
        ({"init": "a.safetensors", "init_heads": False}, "a.safetensors (backbone only)"),
    ],
)
def test_a_page_says_which_weights_training_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: dict[str, Any], weights: str
) -> None:
    text = markdown(monkeypatch, project(tmp_path, model=model))
    assert f"trained from {weights} for 4000 steps" in text


def test_a_page_shows_figures_differences_and_verdicts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = project(tmp_path)
    found = {("Table 9", 0): Found(0.20, 0.05), ("Table 9", 1): Found(0.25, 0.11)}
    text = markdown(monkeypatch, made, found)
    table9 = section(text, "Table 9")
    assert "Verdicts: 2 agrees.\n" in table9
    assert "| **Without imputation** | ours | 0.200 | 0.200 | 0.200 | 0.050 |" in table9
    assert "Differences to *Without imputation*:" in table9
    assert "| With imputation | AP | agrees | +0.050 | +0.045 | +0.055 | +0.044 |" in table9
    assert "| With imputation | APS | agrees | +0.060 | +0.054 | +0.066 | +0.088 |" in table9
    assert made.experiment(TABLE9.rows[0]).command in table9.splitlines()
    assert "Verdicts: 1 disagrees." in section(text, "Table 8")  # the paper's loses by imputation
    assert "| **Stride 8, input 1401 (here 385)** | ours | 0.250 |" in text  # the same configuration
    assert "Not run: 23 of 24 rows;" in section(text, "Table 4")


def test_nothing_to_find_decides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = markdown(
        monkeypatch, project(tmp_path), {("Table 9", 0): Found(0.20), ("Table 9", 1): Found(0.25)}
    )
    assert "| With imputation | APS | undecided | – | – | – | +0.088 |" in section(text, "Table 9")


# --- with DVC -----------------------------------------------------------------------------------------------

# Stages of the project below. Where checkpoints are kept, training hangs the first time, as if half done. One
# row of Table 5 fails.
STAGES = """
import sys, time
from pathlib import Path
import rehearsal
from personlab.params import load

stage, params = sys.argv[1], load(Path("params.yaml"))
if stage == "train":
    assert Path("models/start.json").read_text() == "the card"
    if params.compute.storage_path:
        half = Path(params.compute.storage_path, "half")
        if not half.exists():
            half.touch()
            time.sleep(600)
        print("train: resumed")
if stage == "infer" and (params.decode.scoring, params.decode.nms) == ("hough", "hard"):
    sys.exit("personlab: row 3 is bad")
rehearsal.main(stage)
"""


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in a folder whose name is not ASCII, with 14 keypoints and with weights that Git ignores; its
    pipeline has run."""
    folder = tmp_path_factory.mktemp("ablation") / "my projekt ü"
    rehearsal.project(folder)
    (folder / "stages.py").write_text(STAGES)
    (folder / "models").mkdir()
    (folder / "models/start.safetensors").write_text("the weights")
    (folder / "models/start.json").write_text("the card")
    settings = (folder / "params.yaml").read_text().replace("keypoints: 17", "keypoints: 14")
    (folder / "params.yaml").write_text(settings)
    pipeline = yaml.safe_load((folder / "dvc.yaml").read_text())
    pipeline["stages"]["train"]["deps"].append("models/start.safetensors")
    for stage in ("train", "infer"):
        pipeline["stages"][stage]["cmd"] = f"python stages.py {stage}"
    (folder / "dvc.yaml").write_text(yaml.safe_dump(pipeline, sort_keys=False))
    rehearsal.run(folder, "git", "config", "user.name", "Jörg")
    rehearsal.run(folder, "git", "config", "user.email", "t@localhost")
    rehearsal.commit(folder)
    run_ablate(folder, "table5", fails="not up to date: acquire, ingest,")
    listed = run_ablate(folder, "table5", "--list", says="not up to date: acquire, ingest,")
    assert (listed.count("not run  Table 5"), listed.count("--name")) == (4, 0)
    with rehearsal.dvc(folder) as repo:
        repo.reproduce()
    rehearsal.commit(folder)
    (folder / "params.yaml").write_text((folder / "params.yaml").read_text() + "# not committed\n")
    (folder / "notes.txt").write_text("not in Git")
    return folder


def run_ablate(folder: Path, *arguments: str, fails: str = "", says: str = "") -> str:
    """Run the command in this process; what it logged and printed."""
    output, log = StringIO(), logging.getLogger("personlab")
    handler = logging.StreamHandler(output)
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    refused = pytest.raises(UserError, match=fails) if fails else nullcontext()
    with chdir(folder), redirect_stdout(output), refused:
        app(("ablate", *arguments), result_action="return_value")
    log.removeHandler(handler)
    assert says in output.getvalue(), output.getvalue()
    return output.getvalue()


def wait_for(condition: Any, process: subprocess.Popen[str] | None = None) -> None:
    end = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < end
        assert process is None or process.poll() is None, process.communicate()[0]
        time.sleep(0.05)


def ran(output: str, stage: str) -> int:
    return output.count(f"{stage}: hello from the stage")


@pytest.mark.slow
def test_a_killed_training_is_resumed(rehearsed: Path) -> None:
    killed = subprocess.Popen(
        (sys.executable, "-m", "personlab", "ablate", "table6-7"),
        cwd=rehearsed,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    wait_for((rehearsed / "runs/half").exists, killed)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    wait_for(lambda: not list((rehearsed / ".dvc/tmp/exps/standalone").glob("tmp*")))  # DVC has cleared up
    output = run_ablate(rehearsed, "table6-7", says="2 experiments, 1 of them to be run")
    assert "train: resumed" in output
    assert [ran(output, stage) for stage in ("targets", "train", "infer")] == [0, 1, 0]
    for title in ("Table 6", "Table 7"):
        table = section((rehearsed / "docs/ablations.md").read_text(), title)
        assert "Verdicts: 2 undecided." in table  # rehearsed training does not depend on refinement
        assert "not run" not in table
    output = run_ablate(rehearsed, "table6-7", says="2 experiments, 0 of them to be run")
    assert "hello" not in output


@pytest.mark.slow
def test_a_failing_row_does_not_stop_the_others_and_no_file_changes(rehearsed: Path) -> None:
    def files() -> dict[str, bytes]:
        paths = (path for path in rehearsed.rglob("*") if path.is_file() and "docs" not in path.parts)
        return {
            str(path): path.read_bytes() for path in paths if not {".git", ".dvc", "runs"} & {*path.parts}
        }

    before, status = files(), rehearsal.run(rehearsed, "git", "status", "--porcelain", "--", ":!docs")
    output = run_ablate(rehearsed, "table5", fails="1 experiments failed:")
    assert "personlab: row 3 is bad" in output
    assert [ran(output, stage) for stage in ("targets", "train")] == [0, 0]
    table5 = section((rehearsed / "docs/ablations.md").read_text(), "Table 5")
    assert "Verdicts: 2 undecided. Not run: 1 of 4 rows;" in table5
    assert "| Hough, hard | not run |" in table5
    listed = run_ablate(rehearsed, "table5", "--list")
    assert (listed.count("done"), listed.count("not run  Table 5")) == (3, 1)
    assert files() == before
    assert rehearsal.run(rehearsed, "git", "status", "--porcelain", "--", ":!docs") == status
    assert rehearsal.run(rehearsed, "git", "stash", "list") == ""


@pytest.mark.slow
def test_rows_are_run_by_dvcs_queue(rehearsed: Path, tmp_path: Path) -> None:
    run_ablate(rehearsed, "multiscale", "--queue", fails="DVC's queue fails if the path of its cache")
    (rehearsed / ".dvc/cache").rename(tmp_path / "cache")
    with rehearsal.dvc(rehearsed) as repo, repo.config.edit("local") as settings:
        settings["cache"]["dir"] = str(tmp_path / "cache")
    rehearsal.run(rehearsed, "git", "config", "user.name", "t")
    run_ablate(rehearsed, "multiscale", "--queue", says="'dvc queue start' runs the queue")
    assert "queued   One scale and several" in run_ablate(rehearsed, "multiscale", "--list")
    run_ablate(rehearsed, "multiscale", says="2 experiments, 0 of them to be run")
    with rehearsal.dvc(rehearsed) as repo:
        queue = repo.experiments.celery_queue
        queue.start_workers(1)
        wait_for(lambda: [task["status"] for task in queue.status()] == ["Success"])
    run_ablate(rehearsed, "multiscale", "--out", "scales.md", says="0 of them to be run")
    assert "not run" not in section((rehearsed / "scales.md").read_text(), "One scale and several, segm")
    with rehearsal.dvc(rehearsed) as repo:
        wait_for(lambda: not repo.experiments.celery_queue.worker_status())


# --- what is refused ----------------------------------------------------------------------------------------


def test_a_project_that_changes_meanwhile_is_not_run_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, names = project(tmp_path), []
    projects = [made, made, replace(made, inputs="other code")]

    def run(self: Project, experiment: Experiment, how: str, label: str) -> None:
        names.append(experiment.name)

    monkeypatch.setattr(Project, "open", lambda folder: projects.pop(0))
    monkeypatch.setattr(Project, "results", lambda self: {})
    monkeypatch.setattr(Project, "run", run)
    with pytest.raises(UserError, match="changed meanwhile; run the same command again"):
        ablate(["table5"], out=tmp_path / "page.md")
    assert names == [made.experiment(TABLE5.rows[0]).name]
    assert not (tmp_path / "page.md").exists()


def test_inputs_that_git_ignores_are_copied(tmp_path: Path) -> None:
    files = ("models/random", "models/a.safetensors", "models/a.json", "other/b.safetensors", "code/c.py")
    for name in (*files, "dvc.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / ".gitignore").write_text("/models/*\n!/models/random\n/other/\n")
    rehearsal.run(tmp_path, "git", "init", "-q")
    rehearsal.commit(tmp_path)
    sources = ("models/random", "models/a.safetensors", "other/b.safetensors", "code", "/elsewhere/d")
    copied = ("models/a.safetensors", "models/a.json", "other")
    assert copy_options(tmp_path, sources) == tuple(f"--copy-paths={path}" for path in copied)
    (tmp_path / "code/new.py").touch()
    with pytest.raises(UserError, match=r"not in Git: code/new\.py; 'git add' first"):
        copy_options(tmp_path, sources)


def test_without_a_repository_there_are_no_experiments(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("{}")
    with pytest.raises(UserError, match="not inside of a DVC repository"):
        Project.open(tmp_path)


def test_predictions_that_the_cache_lacks_are_named(tmp_path: Path) -> None:
    class Files:
        def read_text(self, path: str) -> str:
            return "stages: {evaluate: {deps: []}}"

        def glob(self, path: str) -> list[str]:
            raise FileNotFoundError

    result = Result(project(tmp_path), "abc")
    result.__dict__["_files"] = Files()
    result.project.__dict__["images"] = {}
    Dataset(COCO_PERSON, masks=True).write(tmp_path / "data/ingest")
    with pytest.raises(UserError, match="experiment abc: DVC's cache lacks it; 'dvc exp remove' it"):
        result.resampled("keypoints", "AP")
