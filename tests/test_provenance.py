"""Tags of promotions, as GTO and DVC read them."""

from itertools import count
from pathlib import Path

import pytest
import yaml
from dvc.repo import Repo
from dvc.repo.artifacts import Artifacts
from gto.api import show

from personlab.registry import provenance
from personlab.registry.provenance import ARTIFACT
from tests import rehearsal
from tests.conftest import ROOT

seconds = count(1_800_000_000)


def record(folder: Path, commit: str, version: int, message: str) -> None:
    """Each later than the one before, in the whole seconds by which GTO orders tags."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GIT_COMMITTER_DATE", f"{next(seconds)} +0000")
        provenance.record(folder, commit, version, message)


def test_gto_knows_the_versions_and_the_champion(tmp_path: Path) -> None:
    commits = repository(tmp_path)
    for number, version in enumerate((1, 2, 1)):
        record(tmp_path, commits[version - 1], version, f"promotion {number}")
    assert versions(tmp_path, ARTIFACT) == {"v1.0.0": ["champion"], "v2.0.0": []}
    assert tags(tmp_path) == {
        *("champion/1", "champion/2", "champion/3"),
        *("person-poses@v1.0.0", "person-poses@v2.0.0"),
        *("person-poses#champion#1", "person-poses#champion#2", "person-poses#champion#3"),
    }


def test_versions_have_the_registrys_numbers_unless_another_clone_took_them(tmp_path: Path) -> None:
    commits = repository(tmp_path)
    for number, commit in enumerate(commits, 1):  # by personlab 0.1
        rehearsal.run(tmp_path, "git", "tag", f"champion/{number}", commit)
    record(tmp_path, commits[1], 2, "rolled back")
    assert versions(tmp_path, ARTIFACT) == {"v2.0.0": ["champion"]}
    assert {"champion/3", "person-poses#champion#3"} < tags(tmp_path)
    record(tmp_path, commits[0], 2, "promoted in another clone, which has a version 2 of its own")
    assert versions(tmp_path, ARTIFACT) == {"v2.0.0": [], "v3.0.0": ["champion"]}


def test_a_project_in_a_folder_of_the_repository_has_an_artifact_of_its_own(tmp_path: Path) -> None:
    commits = repository(tmp_path)
    for name in ("models/poses", "with blank", ".hidden"):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        record(folder, commits[0], 1, "version 1")
    assert versions(tmp_path, f"models/poses:{ARTIFACT}") == {"v1.0.0": ["champion"]}
    assert tags(tmp_path) == {
        *("champion/1", "champion/2", "champion/3"),
        *("models/poses=person-poses@v1.0.0", "models/poses=person-poses#champion#1"),
    }


@pytest.mark.parametrize("place", ["", "models/poses"])
def test_dvc_gets_the_champion_and_every_version_with_its_card(tmp_path: Path, place: str) -> None:
    project, clone = tmp_path / "project" / place, tmp_path / "clone"
    project.mkdir(parents=True)
    rehearsal.run(tmp_path / "project", "git", "init", "-q")
    artifacts = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["artifacts"]
    (project / "dvc.yaml").write_text(yaml.safe_dump({"artifacts": artifacts}))
    (project / "data/infer").mkdir(parents=True)
    with Repo.init(str(project), subdir=bool(place)) as repo, repo.config.edit() as settings:
        settings["remote"] = {"storage": {"url": str(tmp_path / "storage")}}
        settings["core"]["remote"] = "storage"
    for version in (1, 2):
        for name in ("model.safetensors", "model.json"):
            (project / "data/infer" / name).write_text(f"{name} {version}")
        with Repo(str(project)) as repo:
            repo.add(str(project / "data/infer"))
            repo.push()
        rehearsal.commit(project)
        record(project, rehearsal.run(project, "git", "rev-parse", "HEAD"), version, "promoted")
    record(project, rehearsal.run(project, "git", "rev-parse", "HEAD~1"), 1, "rolled back")
    rehearsal.run(tmp_path, "git", "clone", "-q", str(tmp_path / "project"), str(clone))

    name = f"{place}:{ARTIFACT}" if place else ARTIFACT
    for asked, version in (({"stage": "champion"}, 1), ({"version": "v2.0.0"}, 2), ({}, 2)):
        out = tmp_path / f"pulled {asked}"
        Artifacts.get(str(clone), name, out=str(out), **asked)
        assert (out / "model.safetensors").read_text() == f"model.safetensors {version}"
        assert (out / "model.json").read_text() == f"model.json {version}"


def repository(folder: Path) -> list[str]:
    """Make a repository of two commits."""
    rehearsal.run(folder, "git", "init", "-q")
    for number in range(2):
        (folder / "file").write_text(str(number))
        rehearsal.commit(folder)
    return rehearsal.run(folder, "git", "rev-list", "--reverse", "HEAD").split()


def tags(folder: Path) -> set[str]:
    return set(rehearsal.run(folder, "git", "tag").splitlines())


def versions(folder: Path, artifact: str) -> dict[str, list[str]]:
    """The stages of each version of an artifact."""
    return {each["version"]: [stage["stage"] for stage in each["stages"]] for each in show(folder, artifact)}
