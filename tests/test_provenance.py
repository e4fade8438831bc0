"""Tags of promotions, as GTO reads them."""

from pathlib import Path

from gto.api import show

from personlab.registry.provenance import ARTIFACT, record
from tests import rehearsal


def test_gto_knows_versions_and_which_is_in_production(tmp_path: Path) -> None:
    commits = repository(tmp_path)
    for number, commit in enumerate((commits[0], commits[1], commits[0]), 1):
        assert record(tmp_path, commit, f"version {number}") == f"champion/{number}"
    assert versions(tmp_path, ARTIFACT) == {"v1.0.0": ["prod"], "v2.0.0": []}
    assert set(rehearsal.run(tmp_path, "git", "tag").split()) == {
        *("champion/1", "champion/2", "champion/3"),
        *("person-poses@v1.0.0", "person-poses@v2.0.0"),
        *("person-poses#prod#1", "person-poses#prod#2", "person-poses#prod#3"),
    }


def test_a_version_that_has_no_tag_of_gto_gets_one_by_a_rollback(tmp_path: Path) -> None:
    commits = repository(tmp_path)
    for number, commit in enumerate(commits, 1):  # by personlab 0.1
        rehearsal.run(tmp_path, "git", "tag", f"champion/{number}", commit)
    assert record(tmp_path, commits[0], "rolled back") == "champion/3"
    assert versions(tmp_path, ARTIFACT) == {"v1.0.0": ["prod"]}


def test_a_project_in_a_folder_of_the_repository_has_an_artifact_of_its_own(tmp_path: Path) -> None:
    commits = repository(tmp_path)
    for name in ("models/poses", "with blank"):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        record(folder, commits[0], "version 1")
    assert versions(tmp_path, f"models/poses:{ARTIFACT}") == {"v1.0.0": ["prod"]}
    assert set(rehearsal.run(tmp_path, "git", "tag").splitlines()) == {
        *("champion/1", "champion/2", "models/poses=person-poses@v1.0.0", "models/poses=person-poses#prod#1"),
    }


def repository(folder: Path) -> list[str]:
    """Make a repository of two commits."""
    rehearsal.run(folder, "git", "init", "-q")
    for number in range(2):
        (folder / "file").write_text(str(number))
        rehearsal.commit(folder)
    return rehearsal.run(folder, "git", "rev-list", "--reverse", "HEAD").split()


def versions(folder: Path, artifact: str) -> dict[str, list[str]]:
    """The stages of each version of an artifact."""
    return {each["version"]: [stage["stage"] for stage in each["stages"]] for each in show(folder, artifact)}
