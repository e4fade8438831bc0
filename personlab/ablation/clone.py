"""Where experiments run: a clone of the project. The person's files, branch and index are never touched.

It lies in runs/ablate, shares DVC's cache, and stays between runs: a training that was cut short goes on from
its last checkpoint. It is a clone and not a worktree because DVC keeps what is being run in Git's refs, which
worktrees share: it would take the person's own `dvc exp run`, at the same time, for ours. What has finished
is brought to the project, where `dvc exp show` lists it.
"""

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from personlab.registry.provenance import LOCK, State, state_of
from personlab.utils import process
from personlab.utils.checkout import file_lock, link_inputs
from personlab.utils.files import atomic_folder
from personlab.utils.git import git
from personlab.utils.process import OnLine

PLACE: Final = Path("runs/ablate")
_DVC: Final = (sys.executable, "-m", "dvc")
_NOBODY: Final = {"user.name": "personlab", "user.email": "personlab@localhost"}


@dataclass(frozen=True)
class Clone:
    """The project once more."""

    project: Path
    top: Path  # the clone
    folder: Path  # the one with dvc.yaml in it
    commit: str

    def dvc(self, *arguments: str, say: OnLine) -> None:
        """Run DVC in the clone; no process of it outlives ours.

        Raises:
            CommandError: it failed.
        """
        process.run((*_DVC, *arguments), self.folder, say)

    def clear(self) -> None:
        """Have it hold the commit and the project's dvc.lock, and beside them only what Git ignores."""
        # Nobody else works here, so locks, and notes of what is being run, were left by what was killed.
        for lock in (self.top / ".git").rglob("*.lock"):
            lock.unlink()
        shutil.rmtree(self.folder / ".dvc/tmp", ignore_errors=True)
        experiments = git(self.top, "for-each-ref", "--format=delete %(refname)", "refs/exps")
        git(self.top, "update-ref", "--no-deref", "--stdin", stdin=f"{experiments}\n" if experiments else "")
        git(self.top, "checkout", "--quiet", "--force", "--detach", self.commit)
        git(self.top, "clean", "--quiet", "--force", "-d")
        shutil.copyfile(self.project / LOCK, self.folder / LOCK)
        git(self.folder, "add", "--force", LOCK)
        link_inputs(self.project, self.folder)

    def publish(self, name: str) -> State:
        """Bring an experiment that has run here to the project; which commit holds it.

        That is the project's own where the experiment changed nothing.
        """
        refs = git(self.top, "for-each-ref", "--format=%(refname)", "refs/exps").split()
        for ref in refs:
            if ref.endswith(f"/{name}"):
                git(self.project, "fetch", "--quiet", "--no-tags", str(self.top.absolute()), f"+{ref}:{ref}")
        return state_of(self.folder)


@contextmanager
def clone(project: Path, commit: str) -> Iterator[Clone]:
    """The clone, to run experiments on a commit of the project in the block.

    Raises:
        UserError: somebody else uses it, or Git cannot make it.
        CommandError: DVC cannot.
    """
    project = project.resolve()
    source = Path(git(project, "rev-parse", "--show-toplevel")).resolve()
    place = project / PLACE
    with file_lock(place.with_name("ablate.lock"), "ablation"):
        if not place.is_dir():
            with atomic_folder(place) as partial:
                git(project, "clone", "--quiet", "--no-checkout", "--no-tags", str(source), str(partial))
        git(place, "fetch", "--quiet", "--no-tags", str(source), "HEAD")
        made = Clone(project, place, place / project.relative_to(source), commit)
        _introduce(made)
        made.clear()
        _share_cache(made)
        yield made


def _introduce(made: Clone) -> None:
    """Say whose commits these are: settings of the project's repository are not cloned."""
    for key, nobody in _NOBODY.items():
        git(made.top, "config", key, git(made.project, "config", "--default", nobody, "--get", key))


def _share_cache(made: Clone) -> None:
    """DVC's local settings as in the project (remotes and their keys, say), and its cache."""
    local = Path(".dvc/config.local")
    if (made.project / local).is_file():
        shutil.copyfile(made.project / local, made.folder / local)
    said: list[str] = []
    process.run((*_DVC, "cache", "dir"), made.project, lambda line: said.append(line.text))
    process.run((*_DVC, "cache", "dir", "--local", said[-1]), made.folder, lambda line: None)
