"""Write files and folders atomically, and lock them.

Files and folders are written under a temporary name beside the final one and renamed when they are complete,
so that a killed process leaves nothing half-written under a final name. The temporary name is fixed: what a
killed process left is replaced by the next one.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from personlab.errors import UserError


def cache() -> Path:
    """The folder of what is downloaded; XDG_CACHE_HOME replaces ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "personlab"


@contextmanager
def atomic_file(path: Path, *, suffix: str = "") -> Iterator[Path]:
    """Yield a temporary path to write to; it is renamed to `path` on success and deleted on failure.

    suffix: of the temporary path, for writers that take the format from it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _beside(path, f"partial{suffix}")
    with _errors_name(path, partial):
        _remove(partial)
        try:
            yield partial
            _sync(partial)
            partial.replace(path)
        finally:
            _remove(partial)
    _sync(path.parent)


@contextmanager
def _errors_name(path: Path, partial: Path) -> Iterator[None]:
    """Let errors of the file system name the file that the user knows, not the temporary one."""
    try:
        yield
    except OSError as error:
        if error.filename == str(partial):
            error.filename = str(path)
        raise


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write a file atomically, text as UTF-8."""
    with atomic_file(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, value: Any, *, indent: int = 2, sort_keys: bool = False) -> None:
    """Write a value as JSON, atomically.

    Raises:
        ValueError: it holds NaN or infinity, which JSON does not have.
    """
    write_atomic(path, json.dumps(value, indent=indent, sort_keys=sort_keys, allow_nan=False) + "\n")


def write_tsv(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Write rows with the same keys as a table of tab-separated values, atomically; None is empty.

    All curves of a chart are columns of one table: DVC then names them by their columns alone.
    """
    rows = list(rows)
    lines = [
        list(rows[0]),
        *(["" if value is None else str(value) for value in row.values()] for row in rows),
    ]
    write_atomic(path, "".join("\t".join(line) + "\n" for line in lines))


def read_tsv(path: Path) -> dict[str, list[float | None]]:
    """The columns that `write_tsv` wrote.

    Raises:
        UserError: the file is missing.
    """
    try:
        names, *lines = [line.split("\t") for line in path.read_text().splitlines()]
    except FileNotFoundError:
        raise UserError(f"{path}: missing; run 'dvc repro'") from None
    columns = zip(*lines, strict=True)
    return {
        name: [float(value) if value else None for value in column]
        for name, column in zip(names, columns, strict=True)
    }


def digest(path: Path, algorithm: str = "sha256") -> str:
    """The hash of a file's content, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def read_json(path: Path) -> Any:
    """The JSON value that a stage wrote to a file.

    Raises:
        UserError: the file is missing or not JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        raise UserError(f"{path}: missing or not JSON; run 'dvc repro'") from None


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder; it replaces `path` on success and is deleted on failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial, old = _beside(path, "partial"), _beside(path, "old")
    _remove(partial)
    _remove(old)
    partial.mkdir()
    try:
        yield partial
        if os.path.lexists(path):  # a folder cannot be renamed over one that is not empty
            path.rename(old)
        partial.rename(path)
    finally:
        _remove(partial)
    _sync(path.parent)
    _remove(old)


def replace_link(path: Path, target: Path) -> None:
    """Make `path` a symbolic link to `target` (relative to its folder), replacing another link atomically."""
    partial = _beside(path, "partial")
    _remove(partial)
    partial.symlink_to(target)
    partial.replace(path)
    _sync(path.parent)


@contextmanager
def file_lock(
    path: Path, what: str | None = None, *, advice: str = "is running here; wait for it or cancel it"
) -> Iterator[None]:
    """Hold an exclusive lock for the time of the block. The system releases it if the process dies.

    Args:
        path: the lock file; it is created and never deleted.
        what: what holds the lock, for the error: "another <what> <advice>". None waits for the lock instead.

    Raises:
        UserError: another process, or this one, holds the lock.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # A soft lock, the default where the file system has no locks, would outlive a killed process.
    lock = FileLock(path, blocking=what is None, fallback_to_soft=False)
    try:
        held = lock.acquire()
    except Timeout:
        raise UserError(f"{path}: another {what} {advice}") from None
    with held:
        yield


def _beside(path: Path, what: str) -> Path:
    return path.with_name(f".{path.name}.{what}")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Flush to disk, so that a power cut cannot leave an empty file under the final name."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
