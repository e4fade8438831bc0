"""Files on any file system that pyarrow supports: local paths and URIs (s3, gs, abfs, hdfs, file).

Files are written atomically, also when two processes write the same file at once: the last one wins. A store
that is busy or does not answer is asked again for two minutes.
"""

import glob
import logging
import os
import posixpath
import queue
import random
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import unquote, urlsplit

import pyarrow as pa
from pyarrow.fs import FileSelector, FileSystem, FileType, LocalFileSystem

from personlab.errors import UserError
from personlab.utils import azure
from personlab.utils.files import file_lock, write_atomic

log = logging.getLogger("personlab")

T = TypeVar("T")

# File systems on which a file's contents appear when it is closed, not before.
_ATOMIC: Final = {"s3", "gcs", "abfs"}
_EMPTY_FIRST: Final = {"abfs"}  # where an empty file appears before: its writer may have died
LOCK: Final = ".lock"
_ANSWER_SECONDS: Final = 20.0  # object stores' own limits add up to minutes
_RETRY_SECONDS: Final = 120.0  # once a store has answered
_LONGEST_PAUSE: Final = 10.0
_SCHEMES: Final = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs", "file")
# In messages of file systems; there are no error codes. INTERNAL_FAILURE is also what pyarrow makes of a 503
# whose text is longer than what was asked for.
_TRANSIENT: Final = re.compile(
    r"SLOW_DOWN|THROTTL|NETWORK_CONNECTION|INTERNAL_FAILURE|UNAVAILABLE|REQUEST_TIMEOUT|"
    r"HTTP status (429|5\d\d)|\b50[0234] |curl|Azure Error: \[\]"  # Azure's without a code: no connection
)
_REFUSED: Final = re.compile(r"ACCESS_DENIED|INVALID_ACCESS_KEY|SIGNATURE|HTTP status 40[013]|\b40[13] ")


class UnreachableError(UserError):
    """A store does not answer, however often it is asked; the same command may succeed later."""


def is_uri(place: str) -> bool:
    """Whether a place is a URI; otherwise it is a path.

    Raises:
        UserError: it is a URI that lacks a slash, as `pathlib.Path` writes them.
    """
    if "://" in place:
        return True
    scheme, colon, path = place.partition(":/")
    if colon and scheme in _SCHEMES:
        raise UserError(f"{place}: a URI has two slashes: {scheme}://{path}")
    return False


def join(place: str, name: str) -> str:
    """The place of a file or folder below a path or URI, whose query stays at the end."""
    path, mark, query = place.partition("?") if is_uri(place) else (place, "", "")
    return f"{path.rstrip('/')}/{name}{mark}{query}"


def retry(place: str, ask: Callable[[], T], *, seconds: float | None = None) -> T:
    """The result of `ask`, which is called again while the store of `place` is busy or does not answer.

    seconds: after which it is not called again; by default _RETRY_SECONDS.

    Raises:
        UnreachableError: it failed for as long.
        OSError, ArrowException: it failed for another reason.
    """
    end = time.monotonic() + (_RETRY_SECONDS if seconds is None else seconds)
    pause = 0.1
    while True:
        try:
            return ask()
        except (OSError, pa.ArrowException) as error:
            if not is_uri(place) or not _TRANSIENT.search(str(error)):
                raise
            if time.monotonic() + pause > end:
                raise UnreachableError(
                    f"{place}: does not answer ({error}); run the same command when it does"
                ) from None
            log.warning("%s: does not answer, trying again (%s)", place, error)
        time.sleep(pause * random.uniform(0.5, 1))  # processes that failed together ask one by one
        pause = min(2 * pause, _LONGEST_PAUSE)


def _reason(error: Exception) -> str:
    """One line for people."""
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    first = str(error).partition("\n")[0]
    return f"{first}{'; are its credentials set and right?' if _REFUSED.search(str(error)) else ''}"


def locate(place: str) -> tuple[FileSystem, str]:
    """The file system of a path or URI, and the path on it. In a URI, blanks and `#` are %20 and %23.

    Raises:
        UserError: the scheme is unknown, or the host or bucket cannot be reached.
    """
    if not is_uri(place):
        return LocalFileSystem(), str(Path(place).absolute())
    try:
        parts = urlsplit(place)
        system, root = retry(place, lambda: _system(parts.scheme, parts.netloc, parts.query))
    except (pa.ArrowException, OSError, ValueError, ImportError) as error:
        raise UserError(f"{place}: {_reason(error)}") from None
    path = posixpath.join(root, unquote(parts.path).strip("/"))
    return system, path.rstrip("/") or "/"


@cache  # looking up the region of a bucket takes longer than reading an image from it
def _system(scheme: str, host: str, query: str) -> tuple[FileSystem, str]:
    """The file system of a host or bucket, and its root there.

    Raises:
        TimeoutError: it does not answer a first request.
    """
    answer = queue.SimpleQueue[tuple[FileSystem, str] | Exception]()

    def ask() -> None:
        try:
            known = azure.from_environment(host) if scheme in azure.SCHEMES else None
            system, root = known or FileSystem.from_uri(f"{scheme}://{host}/{'?' if query else ''}{query}")
            with suppress(Exception):  # rights to the root are not needed
                system.get_file_info(root)
            answer.put((system, root))
        except Exception as error:
            answer.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        found = answer.get(timeout=_ANSWER_SECONDS)
    except queue.Empty:
        raise TimeoutError(f"no answer within {_ANSWER_SECONDS:g} s") from None
    if isinstance(found, Exception):
        raise found
    return found


def as_text(path: str) -> str:
    """A local path as text; bytes that are not UTF-8 become \\xNN, which this module reads back."""
    return os.fsencode(path).decode(errors="backslashreplace")


def local_path(text: str) -> Path:
    """The path that `as_text` made text of, in the encoding of the file system."""
    raw = text.encode(errors="surrogateescape")
    if not os.path.lexists(raw):  # else the name holds a real backslash
        raw = re.sub(rb"\\x([89a-f][0-9a-f])", lambda match: bytes.fromhex(match[1].decode()), raw)
    return Path(os.fsdecode(raw))


def open_file(place: str) -> Any:
    """Open the file at a path or URI for reading, with random access (pyarrow.NativeFile)."""
    return retry(place, lambda: _open(*locate(place)))


def read(place: str) -> bytes:
    """Read the file at a path or URI.

    Raises:
        UserError: there is none, or it cannot be read.
    """

    def whole() -> bytes:
        with open_file(place) as file:
            content: bytes = file.read()
        return content

    try:
        return retry(place, whole)
    except FileNotFoundError:
        raise UserError(f"{place}: no such file") from None
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{place}: cannot be read ({_reason(error)})") from None


def _open(system: FileSystem, path: str) -> Any:
    if not isinstance(system, LocalFileSystem):
        return system.open_input_file(path)
    local = local_path(path)
    if local.exists() and not local.is_file():  # opening a pipe would wait for its other end
        raise OSError("is not a regular file")
    return system.open_input_file(bytes(local))


def kind(place: str) -> FileType:
    """The type of what is at a path or URI: file, directory, or not found.

    Raises:
        UserError: the file system cannot tell.
    """
    system, path = locate(place)
    try:
        if not isinstance(system, LocalFileSystem):
            return retry(place, lambda: system.get_file_info(path), seconds=_ANSWER_SECONDS).type
        local = local_path(path)
        if local.is_dir():
            return FileType.Directory
        return FileType.File if local.exists() else FileType.NotFound
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{place}: {_reason(error)}") from None


@dataclass(frozen=True)
class Folder:
    """A folder, which may not exist yet."""

    place: str  # path or URI

    def open(self, name: str) -> Any:
        """Open a file of the folder for reading, with random access (pyarrow.NativeFile)."""
        return retry(self.place, lambda: _open(*self._at(name)))

    def read(self, name: str) -> bytes:
        """Read a file.

        Raises:
            FileNotFoundError: there is none, or its writer died before it was whole.
        """

        def read() -> bytes:
            with self.open(name) as file:
                content: bytes = file.read()
            return content

        content = retry(self.place, read)
        if not content and locate(self.place)[0].type_name in _EMPTY_FIRST:
            raise FileNotFoundError(f"{name}: empty")
        return content

    def files(self, *, recursive: bool = False) -> list[str]:
        """Names of the files, relative to the folder, in any order; none if the folder does not exist.

        Raises:
            UserError: the folder cannot be listed.
        """
        system, path = locate(self.place)
        try:
            if isinstance(system, LocalFileSystem):
                return [as_text(name) for name in _walk(local_path(path), recursive)]
            selector = FileSelector(path, allow_not_found=True, recursive=recursive)
            found = retry(self.place, lambda: system.get_file_info(selector))
            start = len(path.rstrip("/")) + 1
            return [info.path[start:] for info in found if info.type == FileType.File]
        except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
            raise UserError(f"{self.place}: cannot be listed ({_reason(error)})") from None

    def glob(self, pattern: str) -> list[str]:
        """Names of the files that match a pattern, in which `**` stands for any number of folders.

        Raises:
            UserError: as `files`.
        """
        system, path = locate(self.place)
        segments = pattern.split("/")
        if not isinstance(system, LocalFileSystem) or "**" in segments:  # glob follows circles of links
            return [name for name in self.files(recursive=True) if _matches(name.split("/"), segments)]
        root = local_path(path)
        found = glob.glob(pattern, root_dir=root, include_hidden=True)  # noqa: PTH207
        return [as_text(name) for name in found if not (root / name).is_dir()]

    def create(self) -> None:
        """Create the folder, if it does not exist, and check that files can be written to it.

        Raises:
            UserError: it cannot be created or written to.
        """
        system, path = locate(self.place)
        with writing(self.place):
            retry(self.place, lambda: system.create_dir(path, recursive=True), seconds=_ANSWER_SECONDS)
            probe = f".{uuid.uuid4().hex}"
            self.write(probe, b"")
            self.delete(probe)

    def write(self, name: str, content: bytes) -> None:
        """Write or replace a file, atomically.

        On HDFS and fsspec's file systems the file does not exist for a moment while it is replaced.
        """
        retry(self.place, lambda: self._write(name, content))

    def _write(self, name: str, content: bytes) -> None:
        system, path = self._at(name)
        temporary = f".{name}.{uuid.uuid4().hex}"  # another process may be writing the same file
        if isinstance(system, LocalFileSystem):
            unique = Path(path).with_name(temporary)
            write_atomic(unique, content)
            unique.replace(path)
        elif system.type_name in _ATOMIC:
            _put(system, path, content)
        else:
            unique_path = self._at(temporary)[1]
            system.create_dir(posixpath.dirname(path), recursive=True)
            _put(system, unique_path, content)
            self.delete(name)
            system.move(unique_path, path)

    def delete(self, name: str) -> None:
        """Delete a file, if it exists."""
        system, path = self._at(name)
        with suppress(FileNotFoundError):
            retry(self.place, lambda: system.delete_file(path))

    def clear(self, name: str = "") -> None:
        """Delete a subfolder, or by default this folder, with its contents, if it exists."""
        system, path = self._at(name) if name else locate(self.place)
        with suppress(FileNotFoundError):
            retry(self.place, lambda: system.delete_dir(path))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder for the time of the block; the lock is released if the process dies.

        Only local folders, and network folders whose server supports locks, are locked.

        Raises:
            UserError: another process has locked it.
        """
        system, path = self._at(LOCK)
        if not isinstance(system, LocalFileSystem):
            yield
            return
        with file_lock(Path(path), "run", advice="is writing here; let it end, or choose another folder"):
            yield

    def _at(self, name: str) -> tuple[FileSystem, str]:
        system, path = locate(self.place)
        return system, posixpath.join(path, name)


def _walk(folder: Path, recursive: bool) -> Iterator[str]:
    """Names of all that is not a folder, links that lead nowhere included; circles of links are left out.

    Subfolders that cannot be listed are left out with a warning.
    """
    if not folder.exists():
        return

    def failed(error: OSError) -> None:
        if Path(error.filename) == folder:
            raise error
        log.warning("%s: cannot be listed (%s); its files are left out", error.filename, error.strerror)

    for here, below, names in os.walk(folder, onerror=failed, followlinks=True):
        at = Path(here)
        yield from (str(at.relative_to(folder) / name) for name in names)
        below[:] = (name for name in below if recursive and not _is_circle(at, at / name))


def _is_circle(folder: Path, below: Path) -> bool:
    return below.is_symlink() and folder.resolve().is_relative_to(below.resolve())


def _matches(segments: Sequence[str], pattern: Sequence[str]) -> bool:
    if not pattern:
        return not segments
    if pattern[0] == "**":
        return any(_matches(segments[skip:], pattern[1:]) for skip in range(len(segments) + 1))
    return bool(segments) and fnmatchcase(segments[0], pattern[0]) and _matches(segments[1:], pattern[1:])


@contextmanager
def writing(place: str) -> Iterator[None]:
    """Turn errors of the file system into UserErrors that name `place`."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{place}: cannot be written to ({_reason(error)})") from None


def _put(system: FileSystem, path: str, content: bytes) -> None:
    with system.open_output_stream(path) as stream:
        stream.write(content)
