"""The registry: versions that appear whole, a champion that changes at once, a record in Git."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from personlab.cli import app
from personlab.errors import UserError
from personlab.params import load
from personlab.registry import provenance
from personlab.registry.models import Candidate, Registry, Version
from tests import rehearsal
from tests.rehearsal import BAD, BEST, USUAL, commit


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A Git repository in which a model of ordinary quality has been made and committed."""
    for split in ("train", "val"):
        rehearsal.write_shards(tmp_path / "data/ingest" / split, "images", first=1001)
        rehearsal.write_shards(tmp_path / "data/targets" / split, "people", first=1001)
    (tmp_path / ".gitignore").write_text("/data/\n/models/\n")
    rehearsal.run(tmp_path, "git", "init", "-q")
    made(tmp_path, USUAL)
    commit(tmp_path)
    return tmp_path


def made(folder: Path, learning_rate: float, val: str = "val-1") -> Candidate:
    """What `dvc repro` would have left in the folder, DVC's lock file included."""
    params = rehearsal.PARAMS | {"train": {**rehearsal.PARAMS["train"], "learning_rate": learning_rate}}
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    settings = load(folder / "params.yaml")
    for stage in ("train", "infer", "evaluate"):
        (folder / "data" / stage).mkdir(parents=True, exist_ok=True)
    here = Path.cwd()
    try:
        os.chdir(folder)
        rehearsal.train(Path("data/train"), settings)
        rehearsal.infer(Path("data/infer"), settings)
    finally:
        os.chdir(here)
    scores = {"keypoints": {"AP": learning_rate}, "segm": {"AP": None}}
    (folder / "data/metrics/evaluate.json").write_text(json.dumps(scores))
    (folder / "data/plots/evaluate").mkdir(parents=True, exist_ok=True)
    (folder / "data/plots/evaluate/precision_recall.json").write_text("[]")
    weights = hashlib.md5((folder / "data/train/model.safetensors").read_bytes()).hexdigest()
    lock(folder, weights, val)
    return Candidate(folder)


IMAGES = {"data/ingest/train": "train-1"}


def lock(folder: Path, weights: str, val: str, predictions: str = "p") -> None:
    def entries(**hashes: str) -> list[dict[str, str]]:
        return [{"path": path, "md5": md5} for path, md5 in hashes.items()]

    stages = {
        "train": {"deps": entries(**IMAGES, **{"data/ingest/val": val, "data/targets/train": "people-1"})},
        "infer": {
            "deps": entries(**{"data/ingest/val": val, "data/train/model.safetensors": weights}),
            "outs": entries(**{"data/infer": "p"}),
        },
        "evaluate": {
            "deps": entries(
                **{"data/infer": predictions, "data/ingest/val": val, "data/targets/val": "people-2"}
            )
        },
    }
    (folder / "dvc.lock").write_text(yaml.safe_dump({"stages": stages}))


@contextmanager
def never_again(version: Version, val: Path) -> Iterator[Path]:
    raise AssertionError("predictions that are kept are not made again")
    yield


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def tags(project: Path) -> list[str]:
    return rehearsal.run(
        project, "git", "tag", "-l", "champion/*", "--format=%(refname:short) %(subject)"
    ).splitlines()


def test_worse_stays_out_better_comes_in_and_rollback_restores_the_bytes(project: Path) -> None:
    registry = Registry(project)
    verdict, first = registry.promote(Candidate(project), "better", never_again)
    assert verdict.why == "there is no champion yet"
    assert first
    assert first.lineage.replaces is None
    assert first.lineage.settings.train.learning_rate == USUAL
    assert first.lineage.commit == rehearsal.run(project, "git", "rev-parse", "HEAD")
    assert first.lineage.experiment is None
    assert first.lineage.data == provenance.Data(train="train-1 people-1", val="val-1 people-2")
    before = tree(project / "models/champion")
    assert set(before) == {
        "lineage.json", "metrics.json", "model.json", "model.safetensors", "params.yaml",
        "predictions/part-00000.parquet", "plots/precision_recall.json",
    }  # fmt: skip

    made(project, BAD)
    commit(project)
    verdict, version = registry.promote(Candidate(project), "better", never_again)
    assert not verdict.promoted
    assert version is None
    assert "got worse" in verdict.why
    assert tree(project / "models/champion") == before
    assert [path.name for path in (project / "models/versions").iterdir()] == [first.folder.name]

    made(project, BEST)
    commit(project)
    verdict, second = registry.promote(Candidate(project), "better", never_again, why="weekly")
    assert verdict.promoted
    assert second
    assert second.lineage.replaces == 1
    assert second.lineage.why.startswith("weekly; person keypoints")
    assert registry.champion() == second
    assert (project / "models/champion/model.safetensors").read_bytes() == (
        project / "data/train/model.safetensors"
    ).read_bytes()
    again, _ = registry.promote(Candidate(project), "always", never_again)
    assert str(again) == "unchanged: it is the champion, version 2"

    assert registry.rollback(why="it looks wrong") == first
    assert tree(project / "models/champion") == before
    verdict, version = registry.promote(Candidate(project), "better", never_again)  # the week after
    assert version is None
    assert str(verdict) == (
        "not promoted: these are version 2's weights, replaced or rolled back already; "
        "'personlab models rollback 2' brings them back"
    )
    assert registry.judge(Candidate(project), "not-worse", never_again) == verdict
    assert registry.judge(Candidate(project), "always", never_again).promoted
    assert registry.judge(Candidate(project), "never", never_again).comparisons
    assert [v.lineage.version for v in registry.versions()] == [1, 2]
    assert tags(project) == [
        "champion/1 version 1: there is no champion yet",
        f"champion/2 version 2: {second.lineage.why}",
        "champion/3 rolled back to version 1; it looks wrong",
    ]
    assert rehearsal.run(project, "git", "rev-parse", "champion/3^{commit}") == first.lineage.commit
    assert rehearsal.run(project, "git", "status", "--porcelain") == ""

    with pytest.raises(UserError, match="no earlier champion"):
        registry.rollback()
    with pytest.raises(UserError, match="version 1 is the champion already"):
        registry.rollback(1)
    with pytest.raises(UserError, match="no version 7; there are: 1, 2"):
        registry.rollback(7)
    assert registry.rollback(2) == second


def test_other_validation_images_are_predicted_anew(
    project: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    registry = Registry(project)
    registry.promote(Candidate(project), "better", never_again)
    made(project, BEST, val="val-2")
    commit(project)
    asked = []

    @contextmanager
    def again(version: Version, val: Path) -> Iterator[Path]:
        asked.append((version.lineage.version, val))
        yield version.predictions

    verdict, _ = registry.promote(Candidate(project), "better", again)
    assert verdict.promoted
    assert asked == [(1, project / "data/ingest/val")]


def test_a_model_that_nothing_could_bring_back_is_not_promoted(project: Path) -> None:
    made(project, BEST)
    with pytest.raises(UserError, match=r"dvc.lock: in no commit and no DVC experiment.*'dvc exp save'"):
        Registry(project).promote(Candidate(project), "better", never_again)
    assert Registry(project).versions() == []
    assert tags(project) == []


def test_a_model_saved_as_an_experiment_is_known_by_its_name(project: Path) -> None:
    rehearsal.run(project, "git", "checkout", "-qb", "aside")
    made(project, BEST)
    commit(project)
    saved = rehearsal.run(project, "git", "rev-parse", "HEAD")
    rehearsal.run(project, "git", "update-ref", f"refs/exps/ab/{saved[2:]}/brisk-bat", saved)
    rehearsal.run(project, "git", "checkout", "-q", "--detach", "HEAD~1")
    made(project, BEST)
    _, version = Registry(project).promote(Candidate(project), "better", never_again)
    assert version
    assert version.lineage.experiment == "brisk-bat"
    assert version.lineage.commit == saved


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "dvc.lock").unlink(), "dvc.lock: no such file; run 'dvc repro'"),
        (lambda folder: (folder / "dvc.lock").write_text("stages: {}"), "not this pipeline's"),
        (lambda folder: lock(folder, "other weights", "val-1"), "not of one run; run 'dvc repro'"),
        (lambda folder: lock(folder, md5_of(folder), "val-1", "q"), "not of one run; run 'dvc repro'"),
        (
            lambda folder: (folder / "data/train/model.safetensors").unlink(),
            "model.safetensors: no such file",
        ),
    ],
)
def test_a_mixture_of_runs_is_refused(project: Path, spoil, message: str) -> None:
    spoil(project)
    with pytest.raises(UserError, match=message):
        Registry(project).promote(Candidate(project), "always", never_again)


def md5_of(folder: Path) -> str:
    return hashlib.md5((folder / "data/train/model.safetensors").read_bytes()).hexdigest()


def test_promotions_at_once_get_a_version_each(project: Path) -> None:
    """Each is judged against what the one before it left."""
    made(project, BEST)
    commit(project)
    verdicts = []

    def promote() -> None:
        verdicts.append(Registry(project).promote(Candidate(project), "better", never_again)[0])

    threads = [threading.Thread(target=promote) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(verdict.why for verdict in verdicts) == [
        "it is the champion, version 1",
        "it is the champion, version 1",
        "there is no champion yet",
    ]


def test_git_need_not_know_who_we_are(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"):
        monkeypatch.setenv(name, os.devnull)
    rehearsal.run(project, "git", "config", "user.useConfigOnly", "true")
    monkeypatch.setenv("EMAIL", "")
    Registry(project).promote(Candidate(project), "better", never_again)
    assert len(tags(project)) == 1


def test_the_command_line(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project)

    def models(*arguments: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            app(("models", *arguments))
        return int(str(ended.value.code or 0)), capsys.readouterr().out

    assert "no champion yet" in models("list")[1]
    status, said = models("promote")
    assert status == 0
    assert "promoted: there is no champion yet\nchampion: 1-" in said
    made(project, BAD)
    commit(project)
    status, said = models("promote", "--json", "verdict.json")
    assert status == 1
    assert said.startswith("not promoted: person keypoints and person segmentation got worse")
    verdict = json.loads(Path("verdict.json").read_text())
    assert verdict["outcome"] == "not promoted"
    assert verdict["version"] is None
    assert [each["task"] for each in verdict["comparisons"]] == ["keypoints", "segm"]
    assert models("promote", "--rule", "always", "--why", "on purpose")[0] == 0
    assert models("rollback")[1].startswith("champion: 1-")
    listed = models("list")[1].splitlines()
    assert [line[:5] for line in listed] == ["-> 1-", "   2-"]
    assert listed[1].endswith("on purpose; the rule says always")


def test_the_gate_needs_neither_torch_nor_ray_nor_prefect() -> None:
    code = "import sys, personlab.registry.models; print(*sys.modules)"
    loaded = subprocess.run((sys.executable, "-c", code), capture_output=True, text=True, check=True).stdout
    assert not {"torch", "ray", "prefect", "dvc"} & set(loaded.split())
