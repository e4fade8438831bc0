"""A checkout for runs that nobody watches: the person's working tree, branch and index are never touched.

A Git worktree in runs/retrain of the project, with DVC's cache shared: what was ever computed there or here
is not computed again, and what it computes is there for everyone. It stays between runs, so that a training
that was cut short goes on from its last checkpoint.

Its results are saved as a DVC experiment (`dvc exp show` lists it, `dvc exp apply` brings it here).
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dvc.config_schema import RelPath
from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.utils.hydra import apply_overrides

from personlab import params
from personlab.errors import UserError
from personlab.registry.provenance import State, state_of
from personlab.utils import process
from personlab.utils.checkout import file_lock, link_inputs
from personlab.utils.git import git
from personlab.utils.process import OnLine

PLACE = Path("runs/retrain")


@dataclass(frozen=True)
class Checkout:
    """The project once more, at some revision, for one run."""

    folder: Path  # the one with dvc.yaml

    def save(self, name: str, say: OnLine) -> State:
        """Have Git hold the state of a finished run: by the commit that it is, or as an experiment."""
        try:
            return state_of(self.folder)
        except UserError:
            process.run((sys.executable, "-m", "dvc", "exp", "save", "--name", name), self.folder, say)
            return state_of(self.folder)


@contextmanager
def checkout(project: Path, revision: str, overrides: Sequence[str]) -> Iterator[Checkout]:
    """A clean checkout of a revision with some parameters changed, for the time of the block.

    Args:
        project: the folder with dvc.yaml.
        revision: of the project's repository.
        overrides: as `dvc exp run -S` takes them, e.g. train.steps=3000.

    Raises:
        UserError: no such revision, a parameter that does not exist, or another run is at work here.
    """
    top = Path(git(project, "rev-parse", "--show-toplevel"))
    commit = git(project, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    place = project / PLACE
    with file_lock(place.with_name("retrain.lock"), "retraining"):
        bring_to(place, project, commit)
        folder = place / project.resolve().relative_to(top.resolve())
        share_cache(project, folder)
        override(folder / "params.yaml", overrides)
        link_inputs(project, folder)
        yield Checkout(folder)


def bring_to(place: Path, project: Path, commit: str) -> None:
    """Have the worktree hold the commit and nothing else, but what Git ignores: data and checkpoints."""
    if not (place / ".git").exists():
        git(project, "worktree", "prune")
        git(project, "worktree", "add", "--force", "--detach", str(place.absolute()), commit)
        return
    # The two know each other by absolute paths, and the project may have been moved.
    git(project, "worktree", "repair", str(place.absolute()))
    # Nobody else works here, so a lock was left by a Git that was killed.
    Path(git(place, "rev-parse", "--git-path", "index.lock")).unlink(missing_ok=True)
    git(place, "checkout", "--quiet", "--force", "--detach", commit)
    git(place, "clean", "--quiet", "--force", "-d")


def share_cache(project: Path, folder: Path) -> None:
    """DVC's local settings as in the project (remotes and their keys, say), and its cache.

    The cache is set by a relative path: DVC escapes letters outside ASCII in an absolute one.
    """
    local = Path(".dvc/config.local")
    if (project / local).is_file():
        (folder / local).write_bytes((project / local).read_bytes())
    with Repo(str(project)) as ours, Repo(str(folder)) as theirs, theirs.config.edit("local") as settings:
        settings.setdefault("cache", {})["dir"] = RelPath(ours.cache.local_cache_dir)


def override(file: Path, overrides: Sequence[str]) -> None:
    try:
        if overrides:
            apply_overrides(file, list(overrides))
    except DvcException as error:
        reason = error.__cause__ or error
        raise UserError(f"{file.name} cannot be given {', '.join(overrides)}: {reason}") from None
    params.load(file)
