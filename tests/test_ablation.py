"""The ablation suite: its tables against the paper's words, its arithmetic, its page, and DVC itself."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from personlab import params
from personlab.ablation import pages, suite
from personlab.ablation.experiments import Project, Record, overridden
from personlab.ablation.tables import CHOICES, TABLES, Choice, Table, side_here
from personlab.ablation.verdict import Difference
from personlab.errors import UserError
from personlab.params import Params
from personlab.utils.process import CommandError
from tests import rehearsal
from tests.conftest import ROOT

AS_SOMEBODY = ("git", "-c", "user.name=t", "-c", "user.email=t@localhost")
BY_NAME = {table.name: table for table in TABLES}
ROWS = [row for table in TABLES for row in table.rows]


# --- the tables ---------------------------------------------------------------------------------------------


def test_the_papers_sides_are_the_papers_in_the_papers_configuration() -> None:
    (reference,) = params.load(ROOT / "configs/coco2017-resnet101.yaml").infer.sides
    for row in ROWS:
        assert row.sides_here(reference) == row.sides
        assert row.label(reference) == row.title


def test_sides_are_in_proportion_to_the_one_that_params_yaml_names() -> None:
    assert [side_here(side, 385) for side in (401, 601, 801, 1001, 1201, 1401, 1601, 1801, 2401)] == [
        113, 169, 217, 273, 329, 385, 441, 497, 657,
    ]  # fmt: skip
    assert side_here(1401, 400) == 400  # what params.yaml says is left alone
    assert side_here(401, 9) == 9  # one cell at least


@given(st.integers(9, 4000), st.integers(2, 3000))
def test_sides_lie_on_the_lattice_and_near_their_share(reference: int, paper: int) -> None:
    here = side_here(paper, reference)
    if paper != 1401:
        assert here % 8 == 1
        assert here > 1
        assert abs(here - 1 - (paper - 1) / 1400 * (reference - 1)) <= 4 or here == 9
    assert here <= side_here(paper + 8, reference) or 1401 in (paper, paper + 8)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_every_row_has_a_figure_in_every_column(table: Table) -> None:
    for row in table.rows:
        assert len(row.figures) == len(table.columns)
        assert all(0 < figure < 1 for figure in row.figures)
    assert any(row is table.baseline for row in table.rows)
    assert set(table.claims) <= set(table.columns)


def test_differences_are_those_of_the_papers_text() -> None:
    def gain(table: str, column: str) -> float:
        without, with_it = BY_NAME[table].rows
        return round(BY_NAME[table].paper(with_it, column) - BY_NAME[table].paper(without, column), 3)

    assert (gain("table6", "AP"), gain("table6", "APL")) == (0.033, 0.054)
    assert gain("table7", "APL") == 0.091
    assert gain("table8", "AP") == -0.008
    assert gain("table9", "AP") == 0.044
    without, with_it = BY_NAME["table9"].rows
    assert (BY_NAME["table9"].paper(without, "APS"), BY_NAME["table9"].paper(with_it, "APS")) == (
        0.076,
        0.164,
    )


def test_the_papers_final_model_is_one_row_wherever_it_stands() -> None:
    final = BY_NAME["table4"].baseline.figures
    assert final == BY_NAME["table5"].baseline.figures
    assert final == BY_NAME["table6"].rows[1].figures
    assert BY_NAME["table7"].rows[1].figures == BY_NAME["table9"].rows[1].figures


def test_whatever_can_be_asked_for_is_there() -> None:
    assert set(get_args(Choice)) == set(CHOICES)
    assert CHOICES["table6-7"] == CHOICES["table6"] + CHOICES["table7"]
    assert CHOICES["table8-9"] == CHOICES["table8"] + CHOICES["table9"]
    assert CHOICES["all"] == TABLES


# --- experiments --------------------------------------------------------------------------------------------


def project(folder: Path) -> Project:
    """A small network and its sample; nothing in the folder."""
    settings = Params.model_validate(
        {
            "model": {"backbone": "resnet18", "width": 32},
            "train": {"crop": 129, "steps": 4000, "batch": 16},
            "infer": {"sides": [385], "stride": 8},
        }
    )
    return Project(
        folder, settings, "c" * 40, ("decode", "infer", "model", "targets"), inputs="code and data"
    )


def test_rows_become_commands(tmp_path: Path) -> None:
    made = project(tmp_path)
    hough = made.experiment(BY_NAME["table5"].rows[0])
    assert hough.params.decode.scoring == "hough"
    assert hough.params.decode.nms == "hard"
    assert hough.params.train == made.params.train
    settings = "-S 'infer.sides=[385]' -S decode.scoring=hough -S decode.nms=hard"
    assert hough.command.startswith(f"dvc exp run {settings} --name ablate-scoring-hough-nms-hard-")
    small = made.experiment(BY_NAME["table4"].rows[0])
    assert small.command.startswith(
        "dvc exp run -S 'infer.sides=[113]' -S infer.stride=32 --name ablate-sides-113-"
    )
    without = made.experiment(BY_NAME["table8"].rows[0])
    assert "-S targets.imputed=false" in without.command


def test_rows_that_come_to_the_same_are_one_experiment(tmp_path: Path) -> None:
    made = project(tmp_path)
    same = [
        BY_NAME["table4"].baseline, BY_NAME["table5"].baseline, BY_NAME["table6"].rows[1],
        BY_NAME["table9"].rows[1], BY_NAME["multiscale-segm"].baseline,
    ]  # fmt: skip
    assert len({made.experiment(row).name for row in same}) == 1
    assert len(suite.experiments(made, TABLES)) == 24 + 3 + 1 + 1 + 1
    assert list(suite.experiments(made, CHOICES["table6"])) == list(
        suite.experiments(made, CHOICES["table7"])
    )


def test_an_experiments_name_tells_what_decides_its_result(tmp_path: Path) -> None:
    row = BY_NAME["table5"].rows[0]
    made = project(tmp_path)
    name = made.experiment(row).name
    assert replace(made, inputs="other code").experiment(row).name != name
    other = overridden(made.params, {"model.radius": 13.0})
    assert replace(made, params=other).experiment(row).name != name
    unwatched = overridden(made.params, {"evaluate.gallery": 3})
    assert replace(made, params=unwatched).experiment(row).name == name


def test_the_middle_one_of_several_sides_stands_for_the_papers(tmp_path: Path) -> None:
    made = project(tmp_path)
    pyramid = replace(made, params=overridden(made.params, {"infer.sides": (577, 193, 385)}))
    assert pyramid.side == made.side == 385
    row = BY_NAME["table5"].rows[0]
    assert pyramid.experiment(row).params == made.experiment(row).params


def test_values_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a multiple of stride"):
        overridden(project(tmp_path).params, {"train.crop": 800})


# --- verdicts -----------------------------------------------------------------------------------------------


def difference(ours: float, *, spread: float, paper: float) -> Difference:
    """Between rows whose resamplings differ by `ours`, give or take `spread`."""
    noise = np.linspace(-spread, spread, 101)
    shared = np.random.default_rng(0).uniform(0, 0.5, 101)  # hard images are hard for both
    return Difference.between((0.3 + ours, 0.3 + ours + shared + noise), (0.3, 0.3 + shared), paper)


@pytest.mark.parametrize(
    ("ours", "spread", "paper", "verdict"),
    [
        (0.05, 0.01, 0.03, "agrees"),
        (-0.05, 0.01, -0.03, "agrees"),
        (-0.05, 0.01, 0.03, "disagrees"),
        (0.05, 0.01, -0.03, "disagrees"),
        (0.05, 0.10, 0.03, "undecided"),
        (0.0, 0.0, 0.03, "undecided"),
        (0.05, 0.01, 0.0, "undecided"),
        (float("nan"), 0.01, 0.03, "undecided"),
    ],
)
def test_verdicts(ours: float, spread: float, paper: float, verdict: str) -> None:
    assert difference(ours, spread=spread, paper=paper).verdict == verdict


def test_the_interval_is_of_the_difference_alone() -> None:
    found = difference(0.05, spread=0.01, paper=0.03)
    assert (found.low, found.high) == pytest.approx((0.05 - 0.0095, 0.05 + 0.0095))


# --- the page -----------------------------------------------------------------------------------------------


def record(ap: float, aps: float | None = None, *, spread: float = 0.001) -> Record:
    """All columns are `ap`, but for APS."""
    samples = tuple(float(x) for x in np.linspace(-spread, spread, 41))
    columns = {task: BY_NAME[name].columns for task, name in (("keypoints", "table4"), ("segm", "table7"))}
    value = {"APS": aps}
    return Record(
        commit="e" * 40,
        baseline="c" * 40,
        params="p" * 64,
        images=100,
        people=250,
        posed=200,
        metrics={task: {name: value.get(name, ap) for name in names} for task, names in columns.items()},
        resampled={
            task: {
                name: tuple(None if (v := value.get(name, ap)) is None else v + s * ap for s in samples)
                for name in ("AP", "APS", "APM", "APL")
                if name in names
            }
            for task, names in columns.items()
        },
    )


def keep(made: Project, table: str, row: int, found: Record) -> None:
    path = made.folder / "runs/ablations" / f"{made.experiment(BY_NAME[table].rows[row]).name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(found.model_dump_json())


def page(made: Project) -> str:
    return pages.markdown(made, [pages.findings(made, table) for table in TABLES])


def section(text: str, title: str) -> str:
    return next(part for part in text.split("\n## ") if part.startswith(title))


def test_a_page_of_nothing_says_what_to_run(tmp_path: Path) -> None:
    text = page(project(tmp_path))
    assert text.count("Not yet run: ") == len(TABLES)
    assert "Not yet run: `personlab ablate table8`." in section(text, "Table 8")
    assert "Not yet run: `personlab ablate multiscale`." in section(text, "One scale and several, segm")
    assert "| Stride 32, input 401 (here 113) | ours | not run |  |" in text
    assert (
        "|  | paper | 0.356 | 0.553 | 0.358 | 0.157 | 0.625 | 0.384 | 0.572 | 0.389 | 0.176 | 0.670 |" in text
    )
    assert "**Data**: the rendered sample, 400 images to train on and 100" in text
    assert "Scored:" not in text


@pytest.mark.parametrize(
    ("model", "begins"),
    [
        ({}, "random weights"),
        ({"init": "a.safetensors"}, "the weights of `a.safetensors`"),
        (
            {"init": "a.safetensors", "init_heads": False},
            "the backbone alone of `a.safetensors`",
        ),
    ],
)
def test_a_page_says_what_training_began_with(tmp_path: Path, model: dict[str, Any], begins: str) -> None:
    made = project(tmp_path)
    settings = made.params.model_copy(update={"model": made.params.model.model_copy(update=model)})
    assert f"trained from {begins} for 4000 steps" in page(replace(made, params=settings))


def test_a_page_shows_figures_differences_and_verdicts(tmp_path: Path) -> None:
    made = project(tmp_path)
    keep(made, "table9", 0, record(0.20, 0.05))
    keep(made, "table9", 1, record(0.25, 0.11))
    text = page(made)
    table9 = section(text, "Table 9")
    assert "Verdicts: 2 agrees." in table9
    assert "| **Without imputation** | ours | 0.200 | 0.200 | 0.200 | 0.050 |" in table9
    assert "| With imputation | AP | agrees | +0.050 | +0.050 to +0.050 | +0.044 |" in table9
    assert "| With imputation | APS | agrees | +0.060 | +0.060 to +0.060 | +0.088 |" in table9
    assert "Differences to *Without imputation*:" in table9
    assert "With imputation, APS is 2.20 times what it is without imputation. At least 1.5" in table9
    assert "times was expected; in the paper it is 2.16 times." in table9
    assert text.count("was expected") == 1
    name = made.experiment(BY_NAME["table9"].rows[0]).name
    command = f"`dvc exp run -S 'infer.sides=[385]' -S targets.imputed=false --name {name}`"
    assert f"| Without imputation | {command} | `cccccccccc` | `eeeeeeeeee` |" in table9
    assert "Verdicts: 1 disagrees." in section(text, "Table 8")  # the paper's loses by imputation
    assert "| **Stride 8, input 1401 (here 385)** | ours | 0.250 |" in text  # the same configuration
    assert "Not run: 23 of 24 rows." in section(text, "Table 4")
    assert "Scored: 100 images, 250 people, 200 with keypoints." in text
    assert page(made) == text


def test_a_page_says_when_the_sample_was_last_changed(tmp_path: Path) -> None:
    made = project(tmp_path)
    assert "was looked at.\n" in page(made)  # no Git
    rehearsal.run(tmp_path, "git", "init", "-q")
    (tmp_path / "other.py").touch()
    rehearsal.commit(tmp_path)
    assert "was looked at.\n" in page(made)
    (tmp_path / "personlab/synthetic").mkdir(parents=True)
    (tmp_path / "personlab/synthetic/scene.py").touch()
    rehearsal.commit(tmp_path)
    changed = rehearsal.run(tmp_path, "git", "log", "-1", "--abbrev=10", "--format=`%h` of %cs")
    (tmp_path / "another.py").touch()
    rehearsal.commit(tmp_path)
    assert f"was looked at (last changed by {changed}).\n" in page(made)


def test_where_there_is_nobody_to_find_nothing_is_decided(tmp_path: Path) -> None:
    made = project(tmp_path)
    keep(made, "table9", 0, record(0.20))
    keep(made, "table9", 1, record(0.25))
    table9 = section(page(made), "Table 9")
    assert "| With imputation | APS | undecided | – | – to – | +0.088 |" in table9
    assert "With imputation, APS is – times" in table9


def test_a_broken_record_is_named(tmp_path: Path) -> None:
    made = project(tmp_path)
    keep(made, "table9", 0, record(0.2))
    (path,) = (tmp_path / "runs/ablations").iterdir()
    path.write_text("{")
    with pytest.raises(UserError, match=f"{path.name}: no record of an experiment; delete it"):
        page(made)


# --- the suite ----------------------------------------------------------------------------------------------


def test_an_experiment_that_fails_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, ran = project(tmp_path), []

    @contextmanager
    def nowhere(folder: Path, commit: str) -> Iterator[None]:
        yield

    def run(self: Project, experiment, clone, say) -> Record:
        ran.append(experiment.name)
        if "scoring" in experiment.name and "nms" not in experiment.name:
            raise CommandError("ERROR: out of luck")
        path = tmp_path / "runs/ablations" / f"{experiment.name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(record(0.3).model_dump_json())
        return record(0.3)

    monkeypatch.setattr(suite, "clone", nowhere)
    monkeypatch.setattr(Project, "run", run)
    (failure,) = suite.run(made, CHOICES["table5"], tmp_path / "docs/page.md")
    assert len(ran) == 4
    assert str(failure).startswith("ablate-scoring-hough-")
    assert str(failure).endswith(": ERROR: out of luck")
    table5 = section((tmp_path / "docs/page.md").read_text(), "Table 5")
    assert "| Hough, soft | ours | not run |" in table5
    assert "Not run: 1 of 4 rows." in table5
    ran.clear()
    suite.run(made, CHOICES["table5"], tmp_path / "docs/page.md")
    assert ran == [failure.experiment.name]


# --- what is refused ----------------------------------------------------------------------------------------


def repository(folder: Path, *, lock: bool = True) -> Path:
    """A project that looks as if its pipeline had run."""
    (folder / "code.py").write_text("print()\n")
    (folder / "params.yaml").write_text("infer: {sides: [129]}\n")
    stages = {"acquire": {"cmd": "x", "params": ["acquire"], "deps": ["code.py"], "outs": ["data/acquire"]}}
    (folder / "dvc.yaml").write_text(json.dumps({"stages": stages}))
    if lock:
        outs = {"stages": {"acquire": {"outs": [{"path": "data/acquire", "md5": "1.dir"}]}}}
        (folder / "dvc.lock").write_text(json.dumps(outs))
    rehearsal.run(folder, "git", "init", "-q")
    rehearsal.commit(folder)
    return folder


def test_without_git_there_are_no_experiments(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("{}")
    (tmp_path / "dvc.yaml").write_text("stages: {acquire: {cmd: x}}")
    with pytest.raises(UserError, match="not a git repository"):
        Project.open(tmp_path)


def test_without_a_pipeline_there_are_none_either(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("{}")
    with pytest.raises(UserError, match=r"dvc\.yaml: no such file"):
        Project.open(tmp_path)
    (tmp_path / "dvc.yaml").write_text("- nothing")
    with pytest.raises(UserError, match=r"dvc\.yaml: no pipeline"):
        Project.open(tmp_path)


def test_the_pipeline_must_have_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"dvc\.lock: no such file; run 'dvc repro' there first"):
        Project.open(repository(tmp_path, lock=False))


def test_what_decides_results_must_be_committed_and_nothing_else(tmp_path: Path) -> None:
    made = Project.open(repository(tmp_path))
    (tmp_path / "notes.txt").write_text("a thought")
    assert Project.open(tmp_path) == made
    (tmp_path / "code.py").write_text("print(1)\n")
    with pytest.raises(UserError, match=r"not committed: code\.py; experiments start from a commit"):
        Project.open(tmp_path)
    rehearsal.commit(tmp_path)
    later = Project.open(tmp_path)
    assert later.inputs != made.inputs


def test_other_commits_of_the_same_code_and_data_are_the_same_experiments(tmp_path: Path) -> None:
    made = Project.open(repository(tmp_path))
    (tmp_path / "notes.txt").write_text("a thought")
    rehearsal.commit(tmp_path)
    later = Project.open(tmp_path)
    assert later.commit != made.commit
    assert later.experiment(ROWS[0]).name == made.experiment(ROWS[0]).name
    lock = (tmp_path / "dvc.lock").read_text()
    (tmp_path / "dvc.lock").write_text(lock.replace("1.dir", "2.dir"))  # other data
    assert Project.open(tmp_path).experiment(ROWS[0]).name != made.experiment(ROWS[0]).name


# --- with DVC -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose pipeline, of real DVC and rehearsed stages, has run; a person works in it."""
    folder = tmp_path_factory.mktemp("ablation") / "project"
    rehearsal.project(folder)
    ablation_of(folder, "table5", status=1, says="run 'dvc repro' there first")
    subprocess.run((sys.executable, "-m", "dvc", "repro"), cwd=folder, env=environment(), check=True)
    (folder / "notes.txt").write_text("a thought not yet finished\n")
    return folder


def environment() -> dict[str, str]:
    """In which `python` is the one that runs the tests."""
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    return os.environ | {"PATH": path}


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        (sys.executable, "-m", "personlab", "ablate", *arguments),
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def ablation_of(folder: Path, *arguments: str, status: int = 0, says: str = "") -> str:
    process = start(folder, *arguments)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == status, output
    assert says in output
    return output


def records(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "runs/ablations").glob("*.json")}


def ran(output: str, stage: str) -> int:
    return output.count(f"{stage}: hello from the stage")


@pytest.mark.slow
def test_a_killed_ablation_goes_on_and_nobody_is_disturbed(rehearsed: Path) -> None:
    before = {
        path: path.read_bytes()
        for path in rehearsed.rglob("*")
        if path.is_file() and ".git" not in path.parts
    }
    killed = start(rehearsed, "table5")
    end = time.monotonic() + 300
    while not records(rehearsed):
        assert killed.poll() is None, killed.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.02)
    time.sleep(1)  # in the middle of the next
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    first = records(rehearsed)
    note = rehearsed / "runs/ablate/.dvc/tmp/exps/run/workspace/workspace.run"
    note.parent.mkdir(parents=True, exist_ok=True)
    note.write_text("")  # as if DVC had just been writing it
    while "another ablation is at work" in (output := again(rehearsed)):
        pass
    assert first.items() <= records(rehearsed).items()
    assert f"4 experiments, {4 - len(first)} of them to be run" in output
    assert [ran(output, stage) for stage in ("targets", "train")] == [0, 0]
    assert ran(output, "infer") <= 4 - len(first)

    done = ablation_of(rehearsed, "table5", says="4 experiments, 0 of them to be run")
    assert "hello" not in done
    table5 = section((rehearsed / "docs/ablations.md").read_text(), "Table 5")
    assert "not run" not in table5
    assert "Verdicts: 3 undecided." in table5  # the rehearsal's network knows no scoring
    listed = rehearsal.run(rehearsed, sys.executable, "-m", "dvc", "exp", "list")
    assert listed.count("ablate-") == 4
    assert rehearsal.run(rehearsed, "git", "stash", "list") == ""
    for path, content in before.items():
        if ".dvc" not in path.parts:
            assert path.read_bytes() == content, path
    status = rehearsal.run(rehearsed, "git", "status", "--porcelain").split("\n")
    assert sorted(line.split()[1] for line in status) == ["docs/", "dvc.lock", "notes.txt"]


def again(folder: Path) -> str:
    process = start(folder, "table5")
    output, _ = process.communicate(timeout=600)
    return output


@pytest.mark.slow
def test_without_its_record_a_row_comes_from_the_cache(rehearsed: Path) -> None:
    ablation_of(rehearsed, "table5")
    name, content = min(records(rehearsed).items())
    before = Record.model_validate_json(content)
    (rehearsed / "runs/ablations" / name).unlink()
    output = ablation_of(rehearsed, "table5", says="1 of them to be run")
    assert "hello from the stage" not in output
    after = Record.model_validate_json(records(rehearsed)[name])
    assert after.model_copy(update={"commit": before.commit}) == before


@pytest.mark.slow
def test_a_row_that_retrains_runs_training_once(rehearsed: Path) -> None:
    output = ablation_of(rehearsed, "table6-7", "--out", "refinement.md")
    assert [ran(output, stage) for stage in ("targets", "train")] == [0, 1]
    assert "not run" not in section((rehearsed / "refinement.md").read_text(), "Table 7")
    listed = ablation_of(rehearsed, "table6", "table8", "--list")
    assert listed.count("done") == 3  # with refinement is with imputation
    assert "not run  Without imputation" in listed


@pytest.mark.slow
def test_a_failing_stage_fails_its_rows_with_its_own_words(rehearsed: Path) -> None:
    reason = "personlab: input/infer.txt: row 3 is bad"
    (rehearsed / "input/infer.txt").write_text(reason)
    ablation_of(rehearsed, "multiscale", status=1, says="not committed: input/infer.txt")
    rehearsal.run(rehearsed, *AS_SOMEBODY, "commit", "-qm", "bad", "input/infer.txt")
    output = ablation_of(rehearsed, "multiscale", status=1, says="2 experiments failed:")
    assert output.count(reason) >= 4  # as said by the stage, and at the end
    rehearsal.run(rehearsed, "git", "reset", "-q", "--hard", "HEAD~")
