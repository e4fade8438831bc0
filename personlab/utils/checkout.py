"""What runs need that work beside the person's own files, in a checkout that is theirs."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from personlab import params
from personlab.errors import UserError
from personlab.utils.files import replace_link
from personlab.utils.git import git


@contextmanager
def file_lock(lock: Path, what: str) -> Iterator[None]:
    """Nobody else gets `lock` during the block; it is free again however the block, or the process, ends.

    Raises:
        UserError: somebody has it; `what` they are at, a word.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{lock}: another {what} is at work here; wait for it or cancel it") from None
        yield


def link_inputs(project: Path, folder: Path) -> None:
    """Let relative paths in the parameters of `folder`, another checkout, lead where the project's do."""
    settings = params.load(folder / "params.yaml")
    weights = [init for init in (settings.model.init, settings.estimator.init) if init]
    cards = [str(Path(init).with_suffix(".json")) for init in weights]
    for name in filter(None, (settings.acquire.directory, *weights, *cards)):
        ours, theirs = project / name, folder / name
        if Path(name).expanduser().is_absolute() or not ours.exists():
            continue
        # a file that an earlier run left under that name is not the one that is meant; one of the revision is
        left = theirs.is_file() and not theirs.samefile(ours) and not git(folder, "ls-files", "--", name)
        if left or not theirs.exists():
            theirs.parent.mkdir(parents=True, exist_ok=True)
            replace_link(theirs, ours.absolute())
