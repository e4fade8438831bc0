"""Download large files over HTTP so that an interruption costs nothing, and unpack them safely.

A download grows in `<name>.part` and gets its name when size and checksum are right. An interrupted one is
taken up where it stopped, within a run and by the next run.
"""

import errno
import hashlib
import http.client
import logging
import shutil
import stat
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Final
from urllib.parse import urlsplit

from personlab.errors import UserError
from personlab.utils.files import atomic_folder
from personlab.utils.progress import progress

log = logging.getLogger("personlab")

CHUNK: Final = 1 << 20  # bytes
TIMEOUT: Final = 60.0  # seconds without a byte
ATTEMPTS: Final = 6  # in a row that brought nothing
MAX_RATIO: Final = 20  # an archive that grows more than this is no dataset (COCO's JSON grows 3.4 times)


@dataclass(frozen=True)
class Archive:
    """A zip to download and the folder it holds. md5: hexadecimal; size in bytes; None where not known."""

    path: str  # under the base URL
    folder: str
    size: int | None
    md5: str | None

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name


COCO_2017: Final = (
    Archive(
        "annotations/annotations_trainval2017.zip",
        "annotations",
        252_907_541,
        "f4bbac642086de4f52a3fdda2de5fa2c",
    ),
    Archive("zips/val2017.zip", "val2017", 815_585_330, "442b8da7639aecaf257c1dceb8ba8c80"),
    Archive("zips/train2017.zip", "train2017", 19_336_861_798, "cced6f7f71b7629ddf16f17bbcfab6b2"),
)


def fetch_archives(url: str, folder: Path, archives: tuple[Archive, ...] = COCO_2017) -> None:
    """Bring every archive's folder into `folder`; what is already there is not fetched again.

    The zips stay beside the folders, for whoever wants to keep them.

    Raises:
        UserError: see `download` and `unzip`.
    """
    for archive in archives:
        target = folder / archive.folder
        if target.is_dir():  # it got its name when it was complete
            log.info("%s is there already", target)
            continue
        zipped = folder / archive.name
        download(f"{url.rstrip('/')}/{archive.path}", zipped, size=archive.size, md5=archive.md5)
        unzip(zipped, target)
        log.info("%s is complete; %s is no longer needed", target, zipped)


# --- download -----------------------------------------------------------------------------------------------


class _InterruptedError(Exception):
    """Why an attempt ended early; worth another."""


def download(
    url: str,
    path: Path,
    *,
    size: int | None = None,
    most: int | None = None,
    md5: str | None = None,
    pause: float = 1.0,
) -> None:
    """Download a file, resuming `<path>.part` if there is one; nothing is done if `path` is right already.

    Failures that may pass (connection lost, server busy) are tried again after `pause` seconds, then twice
    that, and so on, until ATTEMPTS in a row bring nothing. size: what the file must have, most: what it may
    have, in bytes.

    Raises:
        UserError: the server refuses, offers a file of another size or too large a one, or cannot be reached;
            the disk is full; the file's size or checksum is wrong. The message says what to do.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise UserError(f"{url}: not an http(s) address")
    if path.exists():
        wrong = _wrong(path, size, md5)
        if wrong:
            raise UserError(f"{path}: {wrong}; delete it to download it again")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    failures = 0
    while True:
        before = _size(part)
        try:
            _attempt(url, part, size, most)
            break
        except _InterruptedError as error:
            failures = failures + 1 if _size(part) <= before else 1
            if failures == ATTEMPTS:
                raise UserError(
                    f"{url}: {error}; gave up after {ATTEMPTS} attempts. "
                    f"Run again to go on from byte {_size(part)}"
                ) from None
            log.info("%s: %s; trying again", url, error)
            time.sleep(pause * 2 ** (failures - 1))
    wrong = _wrong(part, size, md5)
    if wrong:
        part.unlink()
        raise UserError(f"{url}: {wrong}; deleted. Run again; if it stays so, check the address")
    part.rename(path)


def _attempt(url: str, part: Path, size: int | None, most: int | None) -> None:
    """Append to `part` what it lacks."""
    start = _size(part)
    if size is not None and start == size:
        return
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    with _open(request, part) as response:
        if response.status != 206:  # the server sends all of it again
            start = 0
        total = _total(response, start)
        if size is not None and total is not None and total != size:
            raise UserError(
                f"{url}: the server offers {total} bytes, expected {size}; "
                "check the address (a mirror or proxy may answer with another file)"
            )
        _check_most(url, total or 0, most)
        _check_space(part, (total or 0) - start)
        _copy(response, part, start, total, most)
    if total is not None and _size(part) < total:
        raise _InterruptedError(f"the connection closed after {_size(part)} of {total} bytes")


def _open(request: urllib.request.Request, part: Path) -> Any:
    try:
        return urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            part.unlink()
            raise _InterruptedError("the file ends before what was downloaded earlier") from None
        if error.code == http.client.TOO_MANY_REQUESTS or error.code >= 500:
            raise _InterruptedError(f"the server answers {error.code} {error.reason}") from None
        raise UserError(
            f"{request.full_url}: the server answers {error.code} {error.reason}; check the address"
        ) from None
    except (OSError, http.client.HTTPException) as error:
        raise _InterruptedError(f"cannot be reached ({getattr(error, 'reason', error)})") from None


def _total(response: Any, start: int) -> int | None:
    """Size of the whole file, as far as the server tells."""
    if response.status == 206:
        first, _, total = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
        if first.partition("-")[0] != str(start) or not total.isdigit():
            raise UserError(f"{response.url}: the server resumes at the wrong place; delete the .part file")
        return int(total)
    length = response.headers.get("Content-Length")
    return int(length) if length is not None else None


def _check_most(url: str, size: int, most: int | None) -> None:
    if most is not None and size > most:
        raise UserError(f"{url}: more than {most} bytes, which it cannot rightly have; check the address")


def _copy(response: Any, part: Path, start: int, total: int | None, most: int | None) -> None:
    chunks = iter(partial(_read, response), b"")
    count = None if total is None else -(-(total - start) // CHUNK)
    try:
        with part.open("ab" if start else "wb") as file:
            for chunk in progress(chunks, total=count, label=f"{part.stem} (MiB)"):
                file.write(chunk)
                _check_most(response.url, file.tell(), most)
    except OSError as error:
        raise _full(part, error) from None


def _read(response: Any) -> bytes:
    try:
        return bytes(response.read(CHUNK))
    except (OSError, http.client.HTTPException) as error:
        raise _InterruptedError(f"the connection broke ({error})") from None


def _wrong(path: Path, size: int | None, md5: str | None) -> str | None:
    """What is wrong with a file, if anything."""
    if size is not None and _size(path) != size:
        return f"{_size(path)} bytes, expected {size}"
    if md5 is not None:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, partial(hashlib.md5, usedforsecurity=False)).hexdigest()
        if found != md5:
            return f"md5 is {found}, expected {md5}"
    return None


# --- unzip --------------------------------------------------------------------------------------------------


def unzip(archive: Path, folder: Path) -> None:
    """Unpack a zip that holds one folder, named as `folder` is; `folder` appears when it is complete.

    Raises:
        UserError: the archive is damaged, holds anything but that folder's files (a name that climbs out of
            it, a link), unpacks to an implausible size, or the disk is full.
    """
    try:
        with zipfile.ZipFile(archive) as zipped, atomic_folder(folder) as partial_folder:
            files = [entry for entry in zipped.infolist() if not entry.filename.endswith("/")]
            targets = [partial_folder / _inside(archive, entry, folder.name) for entry in files]
            _check_space(folder, _unpacked_size(archive, files))
            pairs = list(zip(files, targets, strict=True))
            for entry, target in progress(pairs, label=f"unpack {archive.name}"):
                target.parent.mkdir(parents=True, exist_ok=True)
                with zipped.open(entry) as source, target.open("wb") as copy:
                    shutil.copyfileobj(source, copy, CHUNK)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise UserError(f"{archive}: cannot be unpacked ({error}); delete it to download it again") from None
    except OSError as error:
        raise _full(folder, error) from None


def _inside(archive: Path, entry: zipfile.ZipInfo, folder: str) -> Path:
    """Path of an entry below the folder."""
    parts = PurePosixPath(entry.filename).parts
    top, below = parts[:1], parts[1:]
    link = stat.S_ISLNK(entry.external_attr >> 16)
    if top != (folder,) or not below or ".." in below or "\\" in entry.filename or link:
        raise UserError(f"{archive}: entry '{entry.filename}' is not a file in {folder}/; nothing unpacked")
    return Path(*below)


def _unpacked_size(archive: Path, files: list[zipfile.ZipInfo]) -> int:
    total, packed = sum(entry.file_size for entry in files), archive.stat().st_size
    if total > MAX_RATIO * packed:
        raise UserError(f"{archive}: {packed} bytes would unpack to {total}; not believed, nothing unpacked")
    return total


# --- disk ---------------------------------------------------------------------------------------------------


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _check_space(path: Path, needed: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise UserError(f"{path}: needs {needed} bytes, the disk has {free} left; make room and run again")


def _full(path: Path, error: OSError) -> Exception:
    """What to raise for a failed write."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"{path}: the disk is full; make room and run again to go on")
    return UserError(f"{path}: cannot be written ({error})")
