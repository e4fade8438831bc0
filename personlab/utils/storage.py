"""Files on any file system that pyarrow supports: local paths and URIs (s3, gs, abfs, hdfs, file).

Files are written atomically, also when two processes write the same file at once: the last one wins.
"""

import glob
import logging
import os
import posixpath
import queue
import re
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import pyarrow as pa
from pyarrow.fs import FileSelector, FileSystem, FileType, LocalFileSystem

from personlab.errors import UserError
from personlab.utils.files import file_lock, write_atomic

log = logging.getLogger("personlab")

# File systems on which a file appears when it is closed, not before.
_ATOMIC: Final = {"s3", "gcs", "abfs"}
LOCK: Final = ".lock"
_ANSWER_SECONDS: Final = 20.0  # object stores' own limits add up to minutes


def locate(place: str) -> tuple[FileSystem, str]:
    """The file system of a path or URI, and the path on it. In a URI, blanks and `#` are %20 and %23.

    Raises:
        UserError: the scheme is unknown, or the host or bucket cannot be reached.
    """
    if "://" not in place:
        return LocalFileSystem(), str(Path(place).absolute())
    try:
        parts = urlsplit(place)
        system, root = _system(parts.scheme, parts.netloc, parts.query)
    except (pa.ArrowException, OSError, ValueError, ImportError) as error:
        raise UserError(f"{place}: {error}") from None
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
            system, root = FileSystem.from_uri(f"{scheme}://{host}/{'?' if query else ''}{query}")
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
    return _open(*locate(place))


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
            return system.get_file_info(path).type
        local = local_path(path)
        if local.is_dir():
            return FileType.Directory
        return FileType.File if local.exists() else FileType.NotFound
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{place}: {error}") from None


@dataclass(frozen=True)
class Folder:
    """A folder, which may not exist yet."""

    place: str  # path or URI

    def open(self, name: str) -> Any:
        """Open a file of the folder for reading, with random access (pyarrow.NativeFile)."""
        return _open(*self._at(name))

    def read(self, name: str) -> bytes:
        with self.open(name) as file:
            content: bytes = file.read()
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
            found = system.get_file_info(FileSelector(path, allow_not_found=True, recursive=recursive))
            start = len(path.rstrip("/")) + 1
            return [info.path[start:] for info in found if info.type == FileType.File]
        except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
            raise UserError(f"{self.place}: cannot be listed ({error})") from None

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
            system.create_dir(path, recursive=True)
            probe = f".{uuid.uuid4().hex}"
            self.write(probe, b"")
            self.delete(probe)

    def write(self, name: str, content: bytes) -> None:
        """Write or replace a file, atomically.

        On HDFS and fsspec's file systems the file does not exist for a moment while it is replaced.
        """
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
            _put(system, unique_path, content)
            self.delete(name)
            system.move(unique_path, path)

    def delete(self, name: str) -> None:
        """Delete a file, if it exists."""
        system, path = self._at(name)
        with suppress(FileNotFoundError):
            system.delete_file(path)

    def clear(self, name: str = "") -> None:
        """Delete a subfolder, or by default this folder, with its contents, if it exists."""
        system, path = self._at(name) if name else locate(self.place)
        with suppress(FileNotFoundError):
            system.delete_dir(path)

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
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else error
        raise UserError(f"{place}: cannot be written to ({reason})") from None


def _put(system: FileSystem, path: str, content: bytes) -> None:
    with system.open_output_stream(path) as stream:
        stream.write(content)
