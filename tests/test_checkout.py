"""The checkout of a retraining: its files, its cache, and a project that was moved."""

from pathlib import Path

import pytest
import yaml
from dvc.config_schema import RelPath
from dvc.repo import Repo

from personlab.utils.checkout import PLACE, link_inputs, share_cache, update_worktree
from tests import rehearsal
from tests.conftest import ROOT


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
    update_worktree(project / PLACE, project, commit)
    (project / PLACE / "tracked").write_text("changed")
    moved = project.rename(tmp_path / "there")
    update_worktree(moved / PLACE, moved, commit)
    assert (moved / PLACE / "tracked").read_text() == "text"
    top = rehearsal.run(moved / PLACE, "git", "rev-parse", "--path-format=absolute", "--git-common-dir")
    assert top == str(moved / ".git")


@pytest.mark.parametrize("runs", ["runs", "Läufe 2"])
def test_a_checkout_has_the_projects_cache_and_local_settings(tmp_path: Path, runs: str) -> None:
    project = repository(tmp_path / "Projekt ü", tracked="text")
    Repo.init(str(project)).close()
    with Repo(str(project)) as repo, repo.config.edit("local") as settings:
        settings["remote"] = {"storage": {"url": RelPath(tmp_path / "storage")}}
    rehearsal.commit(project)
    (tmp_path / runs).mkdir()
    (project / "runs").symlink_to(tmp_path / runs)  # on a larger disk
    worktree = project / PLACE
    update_worktree(worktree, project, rehearsal.run(project, "git", "rev-parse", "HEAD"))
    for _ in range(2):
        share_cache(project, worktree)
        with Repo(str(worktree)) as repo:
            cache = Path(repo.cache.local_cache_dir)
            assert cache.is_dir()
            assert cache.resolve() == project / ".dvc/cache"
            assert Path(repo.config["remote"]["storage"]["url"]).resolve() == tmp_path / "storage"


def test_dvc_can_restore_every_stage_from_its_run_cache() -> None:
    """DVC keeps no run of a stage with an uncached output, unless that is a metric or a plot."""
    for name, stage in yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"].items():
        assert all(isinstance(out, str) for out in stage["outs"]), name


def test_relative_paths_mean_the_projects_files_but_for_those_of_the_revision(tmp_path: Path) -> None:
    project = repository(tmp_path / "project", tracked="changed")
    checkout = repository(tmp_path / "checkout", tracked="as committed")

    def linked(name: str) -> Path:
        (checkout / "params.yaml").write_text(
            yaml.safe_dump({"acquire": {"source": "sample"}, "model": {"init": name}})
        )
        link_inputs(project, checkout)
        return checkout / name

    for folder, text in ((project, "of the project"), (checkout, "left by an earlier run")):
        (folder / "runs").mkdir()
        (folder / "runs/weights").write_text(text)
    (project / "runs/weights.json").write_text("card")
    assert linked("runs/weights").read_text() == "of the project"
    assert linked("runs/weights").read_text() == "of the project"
    assert linked("tracked").read_text() == "as committed"
    (checkout / "runs/weights").unlink()
    (checkout / "runs/weights").symlink_to(tmp_path / "where the project was")
    assert linked("runs/weights").read_text() == "of the project"
    assert (checkout / "runs/weights.json").read_text() == "card"
    assert (project / "runs/weights").read_text() == "of the project"
    assert not linked("none").exists()
