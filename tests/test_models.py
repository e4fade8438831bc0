"""The registry: versions that appear whole, a champion that changes at once, a record in Git."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

import personlab
from personlab.cli import app
from personlab.errors import UserError
from personlab.params import Compute, Decode, Params, load
from personlab.registry import provenance
from personlab.registry.cli import _predict_again
from personlab.registry.models import Candidate, Lineage, Registry, Version
from personlab.synthetic.dataset import LIMBS
from tests import rehearsal
from tests.conftest import ROOT
from tests.rehearsal import BAD, BEST, USUAL, commit


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A Git repository in which a model of ordinary quality has been made and committed."""
    (tmp_path / ".gitignore").write_text("/data/\n/models/\n")
    rehearsal.run(tmp_path, "git", "init", "-q")
    made(tmp_path, USUAL)
    commit(tmp_path)
    return tmp_path


def made(
    folder: Path,
    learning_rate: float,
    val: str = "val-1",
    decode: dict[str, Any] | None = None,
    keypoints: int = 17,
) -> Candidate:
    """What `dvc repro` would have left in the folder, DVC's lock file included."""
    params = rehearsal.PARAMS | {"train": {**rehearsal.PARAMS["train"], "learning_rate": learning_rate}}
    params["decode"] = {**params["decode"], **(decode or {})}
    params["acquire"] = {"source": "sample", "sample": {"keypoints": keypoints}}
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    settings = load(folder / "params.yaml")
    skeleton = rehearsal.skeleton_of(settings)
    for split in ("train", "val"):
        rehearsal.write_shards(folder / "data/ingest" / split, "images", 1001, skeleton)
        rehearsal.write_shards(folder / "data/targets" / split, "people", 1001, skeleton)
    for stage in ("train", "infer", "evaluate"):
        (folder / "data" / stage).mkdir(parents=True, exist_ok=True)
    with chdir(folder):
        rehearsal.train(Path("data/train"), settings)
        rehearsal.infer(Path("data/infer"), settings)
    scores = {"keypoints": {"AP": learning_rate}, "segm": {"AP": None}}
    (folder / "data/metrics/evaluate.json").write_text(json.dumps(scores))
    (folder / "data/plots/evaluate").mkdir(parents=True, exist_ok=True)
    (folder / "data/plots/evaluate/precision_recall.tsv").write_text("")
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
    assert first.settings.train.learning_rate == USUAL
    assert first.lineage.commit == rehearsal.run(project, "git", "rev-parse", "HEAD")
    assert first.lineage.experiment is None
    assert first.lineage.data == provenance.Data(train="train-1 people-1", val="val-1 people-2")
    before = tree(project / "models/champion")
    assert set(before) == {
        "lineage.json", "metrics.json", "model.json", "model.safetensors", "params.yaml",
        "predictions/part-00000.parquet", "plots/precision_recall.tsv",
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
    assert second.lineage.why.startswith("weekly; keypoints")
    assert registry.champion() == second
    for name in ("model.safetensors", "model.json"):  # the card has the decoding
        served = project / "data/infer" / name
        assert (project / "models/champion" / name).read_bytes() == served.read_bytes()
    again, _ = registry.promote(Candidate(project), "always", never_again)
    assert str(again) == "unchanged: it is the champion, version 2"

    assert registry.rollback(why="it looks wrong") == first
    assert tree(project / "models/champion") == before
    verdict, version = registry.promote(Candidate(project), "better", never_again)  # the week after
    assert version is None
    assert str(verdict) == (
        "not promoted: it is version 2, which was replaced or rolled back; "
        "'personlab models rollback 2' brings it back"
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


def test_a_decoding_that_was_rolled_back_stays_out_and_the_champions_is_used(project: Path) -> None:
    """Versions with the same weights and another decoding are other models."""
    registry = Registry(project)
    registry.promote(Candidate(project), "better", never_again)
    made(project, USUAL, decode={"nms": "hard"})
    commit(project)
    _, second = registry.promote(Candidate(project), "always", never_again)
    assert second
    assert second.lineage.weights == registry.versions()[0].lineage.weights
    assert second.settings.decode.nms == "hard"
    registry.rollback()
    verdict, version = registry.promote(Candidate(project), "better", never_again)
    assert version is None
    assert "it is version 2, which was replaced or rolled back" in str(verdict)
    made(project, USUAL, decode={"nms": "hard", "nms_radius": 3})  # a third model
    commit(project)
    assert registry.judge(Candidate(project), "better", never_again).comparisons


# --- versions that other versions of personlab promoted -----------------------------------------------------

V01 = ROOT / "tests/fixtures/v0.1"


@pytest.fixture
def old(project: Path) -> Path:
    """The project with a champion that version 0.1 promoted, and keys of a later version in its lineage."""
    lineage = json.loads((V01 / "lineage.json").read_text())
    lineage["commit"] = rehearsal.run(project, "git", "rev-parse", "HEAD")
    lineage |= {"zoo": "coco-17"}
    lineage["data"] |= {"skeleton": "17"}
    lineage["params"]["decode_later"] = {"tracking": True}
    lineage["params"]["codec"]["tiles"] = 4
    folder = project / "models/versions/1-1650b12a"
    rehearsal.write_predictions(folder / "predictions", blur=1.0, first=1001)
    for name in ("model.safetensors", "model.json", "params.yaml"):
        shutil.copyfile(V01 / name, folder / name)
    (folder / "lineage.json").write_text(json.dumps(lineage))
    (project / "models/champion").symlink_to("versions/1-1650b12a")
    return project


def test_an_old_lineage_is_read_and_written_back_whole(old: Path) -> None:
    path = old / "models/champion/lineage.json"
    version = Version(path.parent)
    raw = json.loads(path.read_text())
    assert version.lineage.model_dump(mode="json") == raw
    assert Lineage.model_validate(raw) == version.lineage
    assert (version.settings.model.radius, version.settings.decode.nms_radius) == (12, 5)


def test_an_old_champion_is_listed_replaced_and_rolled_back_to(
    old: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    registry, again = Registry(old), []

    @contextmanager
    def predict_again(version: Version, val: Path) -> Iterator[Path]:
        again.append(version.settings.decode)
        yield version.predictions

    monkeypatch.chdir(old)
    app(["models", "list"], result_action="return_value")
    assert capsys.readouterr().out.startswith("-> 1-1650b12a")
    made(old, BEST)
    commit(old)
    verdict, second = registry.promote(Candidate(old), "better", predict_again)
    assert verdict.promoted
    assert second
    assert second.lineage.replaces == 1
    assert again == [Decode(nms_radius=5, bin=1, extensions=())]  # with its own parameters
    assert registry.rollback() == Version(old / "models/versions/1-1650b12a")
    served = personlab.Predictor.from_checkpoint(old / "models/champion/model.safetensors")
    assert (served.decoder.radius, served.decoder.nms_radius, served.decoder.bin) == (12, 5, 1)


def test_an_old_champion_predicts_again_where_the_workspace_computes(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = old / "models/champion"
    lineage = json.loads((folder / "lineage.json").read_text())
    lineage["params"]["train"]["gpu"] = True  # it was trained on another machine
    lineage["params"]["infer"]["sides"] = [65]
    (folder / "lineage.json").write_text(json.dumps(lineage))

    def run(settings: Params, project: Path) -> None:
        assert settings.compute == Compute(workers=2)
        assert settings.infer.sides == (65,)
        assert tree(project / "data/ingest/val") == tree(old / "data/ingest/val")
        predictor = personlab.Predictor.from_checkpoint(project / "data/train/model.safetensors")
        assert predictor.decoder.nms_radius == 5
        (project / "data/infer").mkdir()

    monkeypatch.setattr("personlab.stages.infer.run", run)
    with _predict_again(Compute(workers=2), Version(folder), old / "data/ingest/val") as predictions:
        assert predictions.is_dir()


def test_a_lineage_without_sense_names_its_file(old: Path) -> None:
    path = old / "models/champion/lineage.json"
    lineage = json.loads(path.read_text())
    lineage["params"]["codec"]["nms_radius"] = "wide"
    path.write_text(json.dumps(lineage))
    with pytest.raises(UserError, match=r"lineage\.json: params: .*nms_radius"):
        Registry(old).judge(Candidate(old), "better", never_again)
    path.write_text("{}")
    with pytest.raises(UserError, match=r"lineage\.json: not the lineage of a model"):
        Registry(old).versions()


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
            lambda folder: (folder / "data/infer/model.safetensors").unlink(),
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


def test_a_model_of_other_keypoints_is_promoted_by_the_rule_always_alone(project: Path) -> None:
    registry = Registry(project)
    registry.promote(Candidate(project), "better", never_again)
    other = made(project, BEST, keypoints=14)
    commit(project)
    message = r"\(14 of person: left_shoulder, .*\) are not the champion's \(17 of person: nose, .*'always'"
    with pytest.raises(UserError, match=message):
        registry.promote(other, "better", never_again)
    assert not registry.judge(other, "never", never_again).promoted
    _, version = registry.promote(other, "always", never_again)
    assert version
    assert version.skeleton.keypoints == LIMBS
    worse = registry.judge(made(project, BAD, keypoints=14), "better", never_again)
    assert worse.why == "keypoints and segmentation got worse"


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
    assert said.startswith("not promoted: keypoints and segmentation got worse")
    verdict = json.loads(Path("verdict.json").read_text())
    assert verdict["outcome"] == "not promoted"
    assert verdict["version"] is None
    assert [each["task"] for each in verdict["comparisons"]] == ["keypoints", "segm"]
    assert models("promote", "--rule", "always", "--why", "on purpose")[0] == 0
    assert models("rollback")[1].startswith("champion: 1-")
    listed = models("list")[1].splitlines()
    assert [line[:5] for line in listed] == ["-> 1-", "   2-"]
    assert listed[1].endswith("on purpose; the rule says always")


def test_the_registry_needs_neither_torch_nor_ray_nor_prefect() -> None:
    code = "import sys, personlab.registry.models; print(*sys.modules)"
    loaded = subprocess.run((sys.executable, "-c", code), capture_output=True, text=True, check=True).stdout
    assert not {"torch", "ray", "prefect", "dvc"} & set(loaded.split())
