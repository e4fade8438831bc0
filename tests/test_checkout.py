"""A checkout for runs, when the project moves, and whose files it uses."""

import sys
from pathlib import Path

import pytest
import yaml

from flows.checkout import PLACE, bring_to, share_cache
from personlab.utils.checkout import link_inputs
from tests import rehearsal


def repository(folder: Path, **files: str) -> Path:
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    rehearsal.run(folder, "git", "init", "-q")
    rehearsal.commit(folder)
    return folder


def test_a_project_that_was_moved_keeps_its_checkout(tmp_path: Path) -> None:
    project = repository(tmp_path / "here", tracked="text")
    commit = rehearsal.run(project, "git", "rev-parse", "HEAD")
    bring_to(project / PLACE, project, commit)
    (project / PLACE / "tracked").write_text("changed")
    moved = project.rename(tmp_path / "there")
    bring_to(moved / PLACE, moved, commit)
    assert (moved / PLACE / "tracked").read_text() == "text"
    top = rehearsal.run(moved / PLACE, "git", "rev-parse", "--path-format=absolute", "--git-common-dir")
    assert top == str(moved / ".git")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain", "Läufe 2"])
def test_what_a_checkout_computes_is_in_the_projects_cache(tmp_path: Path, name: str) -> None:
    """DVC 3 keeps files under files/md5 of the cache's folder: not twice, and in no other cache."""
    project = repository(tmp_path / name, tracked="text")
    dvc(project, "init", "-q")
    rehearsal.commit(project)
    commit = rehearsal.run(project, "git", "rev-parse", "HEAD")
    place = project / PLACE
    bring_to(place, project, commit)
    share_cache(project, place)
    for folder, content in ((place, "from the checkout"), (project, "from the project")):
        (folder / "data.txt").write_text(content)
        dvc(folder, "add", "-q", "data.txt")
    assert len(list((project / ".dvc/cache/files/md5").rglob("??/*"))) == 2
    assert not (place / ".dvc/cache").exists()
    pointer = (place / "data.txt.dvc").read_text()
    (project / "data.txt.dvc").write_text(pointer)
    dvc(project, "checkout", "-q", "--force", "data.txt.dvc")
    assert (project / "data.txt").read_text() == "from the checkout"


def dvc(folder: Path, *arguments: str) -> None:
    rehearsal.run(folder, sys.executable, "-m", "dvc", *arguments)


def test_relative_paths_mean_the_projects_files_but_for_those_of_the_revision(tmp_path: Path) -> None:
    project = repository(tmp_path / "project", tracked="the person is at it")
    theirs = repository(tmp_path / "theirs", tracked="as committed")

    def lent(name: str) -> Path:
        (theirs / "params.yaml").write_text(
            yaml.safe_dump({"acquire": {"source": "sample"}, "model": {"init": name}})
        )
        link_inputs(project, theirs)
        return theirs / name

    for folder, text in ((project, "ours"), (theirs, "left by an earlier run")):
        (folder / "runs").mkdir()
        (folder / "runs/weights").write_text(text)
    (project / "runs/weights.json").write_text("their card")
    assert lent("runs/weights").read_text() == "ours"
    assert lent("runs/weights").read_text() == "ours"
    assert lent("tracked").read_text() == "as committed"
    (theirs / "runs/weights").unlink()
    (theirs / "runs/weights").symlink_to(tmp_path / "where the project was")
    assert lent("runs/weights").read_text() == "ours"
    assert (theirs / "runs/weights.json").read_text() == "their card"
    assert (project / "runs/weights").read_text() == "ours"
    assert not lent("none").exists()
