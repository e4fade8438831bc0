"""What runs need that work beside the person's own files, in a checkout that is theirs."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from personlab import params
from personlab.errors import UserError


@contextmanager
def alone(lock: Path, what: str) -> Iterator[None]:
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


def lend(project: Path, folder: Path) -> None:
    """Let relative paths in the parameters of `folder`, another checkout, lead where the project's do."""
    settings = params.load(folder / "params.yaml")
    for name in filter(None, (settings.acquire.directory, settings.model.init)):
        ours, theirs = project / name, folder / name
        if not Path(name).expanduser().is_absolute() and ours.exists() and not theirs.exists():
            theirs.parent.mkdir(parents=True, exist_ok=True)
            theirs.symlink_to(ours.absolute())
