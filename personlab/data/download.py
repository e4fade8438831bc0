"""Download large files over HTTP with resumption, and unpack zip archives.

A download is written to `<name>.part` and renamed when its size and checksum are right. An interrupted
download is resumed, by the same run and by the next one. The ETag or Last-Modified of the file is kept beside
the part: if the file has changed on the server meanwhile, it is downloaded anew.
"""

import errno
import hashlib
import http.client
import logging
import shutil
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Mapping
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
ATTEMPTS: Final = 6  # consecutive ones without progress


@dataclass(frozen=True)
class Archive:
    """A zip archive to download, and the one folder in it."""

    path: str  # relative to the base URL
    folder: str
    size: int  # bytes
    md5: str  # hexadecimal

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
    """Download archives and unpack them into `folder`, except those whose folders exist already.

    The archives are kept beside their folders.

    Raises:
        UserError: see `download` and `unzip`.
    """
    for archive in archives:
        target = folder / archive.folder
        if target.is_dir():  # it got its name when it was complete
            log.info("%s exists already", target)
            continue
        zipped = folder / archive.name
        download(f"{url.rstrip('/')}/{archive.path}", zipped, size=archive.size, md5=archive.md5)
        unzip(zipped, target)
        log.info("%s is complete; %s is no longer needed", target, zipped)


# --- download -----------------------------------------------------------------------------------------------


def is_address(url: str) -> bool:
    """Whether it is a well-formed http(s) address."""
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a bracket that is not closed, a port that is no number
        return False


class _InterruptedError(Exception):
    """An attempt failed in a way that another may not."""


def download(
    url: str,
    path: Path,
    *,
    size: int | None = None,
    most: int | None = None,
    md5: str | None = None,
    pause: float = 1.0,
) -> None:
    """Download a file, unless `path` exists with the right size and checksum.

    `<path>.part` is resumed if the checksum or the server's ETag or Last-Modified will tell that its two
    halves are of one file. Temporary failures (connection lost, server busy) are retried until ATTEMPTS in a
    row have made no progress.

    Args:
        size: required size in bytes.
        most: largest size accepted, bytes.
        md5: required checksum, hexadecimal.
        pause: seconds before the first retry, doubled before each further one.

    Raises:
        UserError: the server refuses, sends a file of the wrong size, or cannot be reached; the disk is full;
            the size or checksum is wrong.
    """
    if not is_address(url):
        raise UserError(f"{url}: not an http(s) address")
    if path.exists():
        if wrong := _wrong(path, size, md5):
            raise UserError(f"{path}: {wrong}; delete it to download it again")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    failures = 0
    while True:
        before = _size(part)
        try:
            _attempt(url, part, size, most, resumable=md5 is not None)
            break
        except _InterruptedError as error:
            failures = failures + 1 if _size(part) <= before else 1
            if failures == ATTEMPTS:
                raise UserError(
                    f"{url}: {error}; gave up after {ATTEMPTS} attempts with {_size(part)} bytes; "
                    "run again later"
                ) from None
            log.info("%s: %s; trying again", url, error)
            time.sleep(pause * 2 ** (failures - 1))
    wrong = _wrong(part, size, md5)
    _validator_file(part).unlink(missing_ok=True)
    if wrong:
        part.unlink()
        raise UserError(f"{url}: {wrong}; deleted. Run again; if that does not help, check the address")
    part.rename(path)


def _attempt(url: str, part: Path, size: int | None, most: int | None, *, resumable: bool) -> None:
    """Append the rest of the file to `part`, or write all of it.

    resumable: append also if the part's validator is not known.
    """
    validator = _read_validator(part)
    start = _size(part) if validator or resumable else 0
    if size is not None and start == size:
        return
    headers = {"Range": f"bytes={start}-"} if start else {}
    if start and validator:
        headers["If-Range"] = validator  # the server sends all of it if it has changed
    with _open(urllib.request.Request(url, headers=headers), part) as response:
        if response.status != http.client.PARTIAL_CONTENT:
            start = 0
        elif validator and _validator(response) not in (None, validator):  # the server ignores If-Range
            _discard(part)
            raise _InterruptedError("the file has changed on the server")
        total = _total(response, start)
        if None not in (size, total) and total != size:
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
            _discard(part)
            raise _InterruptedError("the file ends before what was downloaded earlier") from None
        if error.code == http.client.TOO_MANY_REQUESTS or error.code >= 500:
            raise _InterruptedError(f"the server answers {error.code} {error.reason}") from None
        raise UserError(
            f"{request.full_url}: the server answers {error.code} {error.reason}; check the address"
        ) from None
    except (OSError, http.client.HTTPException) as error:
        raise _InterruptedError(f"cannot be reached ({getattr(error, 'reason', error)})") from None


def _total(response: Any, start: int) -> int | None:
    """Size of the whole file, if the server states it."""
    if response.status == http.client.PARTIAL_CONTENT:
        first, _, total = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
        if first.partition("-")[0] != str(start) or not total.isdigit():
            raise UserError(f"{response.url}: the server resumes at the wrong place; delete the .part file")
        return int(total)
    length = response.headers.get("Content-Length")
    return int(length) if length is not None else None


def _check_most(url: str, size: int, most: int | None) -> None:
    if most is not None and size > most:
        raise UserError(f"{url}: more than {most} bytes, the most it may have; check the address")


def _copy(response: Any, part: Path, start: int, total: int | None, most: int | None) -> None:
    chunks = iter(partial(_read, response), b"")
    count = None if total is None else -(-(total - start) // CHUNK)
    try:
        if not start:
            _discard(part)  # before the validator changes
            if validator := _validator(response):
                _validator_file(part).write_text(validator, encoding="latin-1")
        with part.open("ab") as file:
            shown = chunks if count == 1 else progress(chunks, total=count, label=f"{part.stem} (MiB)")
            for chunk in shown:
                file.write(chunk)
                _check_most(response.url, file.tell(), most)
    except OSError as error:
        raise _full(part, error) from None


def _read(response: Any) -> bytes:
    try:
        return bytes(response.read(CHUNK))
    except (OSError, http.client.HTTPException) as error:
        raise _InterruptedError(f"the connection broke ({error})") from None


def _validator(response: Any) -> str | None:
    """The strong validator of a file (RFC 9110, section 13.1.5): two answers with the same one are of one
    file."""
    headers: Mapping[str, str] = response.headers
    etag = headers.get("ETag", headers.get("Last-Modified"))
    return None if etag is None or etag.startswith("W/") else etag


def _validator_file(part: Path) -> Path:
    return part.with_name(part.name + ".validator")


def _read_validator(part: Path) -> str | None:
    """The validator of the file that a part is of, if the server sent one."""
    file = _validator_file(part)
    return file.read_text(encoding="latin-1") or None if file.exists() else None


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _validator_file(part).unlink(missing_ok=True)


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
    """Unpack a zip archive of one folder to `folder`, which has the same name, atomically.

    zipfile keeps every entry inside the folder and makes no links.

    Raises:
        UserError: the archive is damaged, or the disk is full.
    """
    try:
        with zipfile.ZipFile(archive) as zipped, atomic_folder(folder) as partial_folder:
            files = [entry for entry in zipped.infolist() if not entry.is_dir()]
            _check_space(folder, sum(entry.file_size for entry in files))
            for entry in progress(files, label=f"unpack {archive.name}"):
                entry.filename = entry.filename.removeprefix(f"{folder.name}/")
                zipped.extract(entry, partial_folder)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise UserError(f"{archive}: cannot be unpacked ({error}); delete it to download it again") from None
    except OSError as error:
        raise _full(folder, error) from None


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
        return UserError(f"{path}: the disk is full; make room and run again to continue")
    return UserError(f"{path}: cannot be written ({error})")
