"""A second checkout of a project, in which a run computes without touching the user's files.

It is a Git worktree, so the user's working tree, branch and index stay as they are. It uses the project's DVC
cache: what was computed in the project is not computed again, and `dvc exp apply`, `dvc push` and `dvc pull`
find what was computed in the checkout. It is kept between runs, so that an interrupted training resumes from
its last checkpoint.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from dvc.config_schema import RelPath
from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.utils.hydra import apply_overrides

from personlab import params
from personlab.errors import UserError
from personlab.utils.files import file_lock, replace_link
from personlab.utils.git import git

PLACE: Final = Path("runs/retrain")


@contextmanager
def checkout(project: Path, revision: str, overrides: Sequence[str]) -> Iterator[Path]:
    """Check out a revision with some parameters changed, for the time of the block.

    Args:
        project: the folder with dvc.yaml.
        revision: a commit, branch or tag.
        overrides: as for `dvc exp run -S`, e.g. train.steps=3000.

    Yields:
        The folder with dvc.yaml in the checkout.

    Raises:
        UserError: there is no such revision or parameter, or another run uses the checkout.
    """
    top = Path(git(project, "rev-parse", "--show-toplevel"))
    commit = git(project, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    worktree = project / PLACE
    with file_lock(worktree.with_suffix(".lock"), "retraining"):
        update_worktree(worktree, project, commit)
        folder = worktree / project.resolve().relative_to(top.resolve())
        share_cache(project, folder)
        restore_outputs(folder)
        override(folder / "params.yaml", overrides)
        link_inputs(project, folder)
        yield folder


def update_worktree(worktree: Path, project: Path, commit: str) -> None:
    """Make a worktree hold a commit, and besides only what Git ignores, such as data and checkpoints."""
    if not (worktree / ".git").exists():
        git(project, "worktree", "prune")
        git(project, "worktree", "add", "--force", "--detach", str(worktree.absolute()), commit)
        return
    # The project and the worktree refer to each other by absolute paths; the project may have been moved.
    git(project, "worktree", "repair", str(worktree.absolute()))
    # The checkout is locked, so this file is left by a Git that was killed.
    index_lock = git(worktree, "rev-parse", "--path-format=absolute", "--git-path", "index.lock")
    Path(index_lock).unlink(missing_ok=True)
    git(worktree, "checkout", "--quiet", "--force", "--detach", commit)
    git(worktree, "clean", "--quiet", "--force", "-d")


def share_cache(project: Path, folder: Path) -> None:
    """Give a checkout the project's DVC cache and local settings, such as remotes and their keys.

    The cache is a symbolic link, because DVC cannot write paths outside ASCII to its settings.
    """
    link = folder.absolute() / ".dvc/cache"
    with (
        Repo(str(project)) as source,
        Repo(str(folder)) as target,
        target.config.edit("local") as settings,
    ):
        cache = Path(source.cache.local_cache_dir).resolve()
        cache.mkdir(parents=True, exist_ok=True)
        replace_link(link, cache)
        settings.clear()
        settings.update(source.config.load_one("local"))
        settings["cache"]["dir"] = RelPath(link)


def restore_outputs(folder: Path) -> None:
    """Check out the outputs of dvc.lock that are in the cache, so that `dvc repro` finds them unchanged.

    `dvc repro` alone restores a stage only if its metrics and plots, which are in Git, are in the cache too.
    Errors are left to `dvc repro`. Without dvc.lock, outputs of earlier runs stay for it to compare.
    """
    if not (folder / "dvc.lock").is_file():
        return
    with Repo(str(folder)) as repo, suppress(DvcException):
        repo.checkout(force=True, allow_missing=True)


def override(file: Path, overrides: Sequence[str]) -> None:
    """Change parameters in a file as `dvc exp run -S` does, and validate the file."""
    try:
        if overrides:
            apply_overrides(file, list(overrides))
    except DvcException as error:
        reason = error.__cause__ or error
        raise UserError(f"{file.name} cannot be given {', '.join(overrides)}: {reason}") from None
    params.load(file)


def link_inputs(project: Path, folder: Path) -> None:
    """Link the files that the parameters of a checkout name by relative paths to those of the project."""
    settings = params.load(folder / "params.yaml")
    weights = [init for init in (settings.model.init, settings.estimator.init) if init]
    cards = [str(Path(init).with_suffix(".json")) for init in weights]
    folders = (settings.acquire.directory, settings.acquire.download)
    for name in filter(None, (*folders, *weights, *cards)):
        source, link = project / name, folder / name
        if Path(name).expanduser().is_absolute() or not source.exists():
            continue
        # a file of the revision stays; one that an earlier run left is replaced
        left = link.is_file() and not link.samefile(source) and not git(folder, "ls-files", "--", name)
        if left or not link.exists():
            link.parent.mkdir(parents=True, exist_ok=True)
            replace_link(link, source.absolute())
