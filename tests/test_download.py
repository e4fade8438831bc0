"""Downloads survive interruptions, and nothing wrong gets a final name."""

import errno
import hashlib
import threading
import zipfile
from collections import namedtuple
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from personlab.data import download as module
from personlab.data.download import Archive, download, fetch_archives, unzip
from personlab.errors import UserError

CONTENT = np.random.default_rng(0).bytes(3_000_000)
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves `files`; `breaks` and `answers` say what fails in the next requests, one each."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {"/file.zip": CONTENT}
        self.breaks: list[int | None] = []  # after how many bytes the connection closes
        self.answers: list[int] = []  # status codes instead of content
        self.ignores_range = False
        self.says_length = True
        self.validators: dict[str, str] = {}  # headers: ETag, Last-Modified
        self.ignores_if_range = False
        self.ranges: list[str | None] = []  # of the requests so far
        self.if_ranges: list[str | None] = []

    def handle_error(self, *_: Any) -> None: ...  # clients that hang up are part of the tests

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: Any) -> None: ...

    def do_GET(self) -> None:
        server = self.server
        server.ranges.append(self.headers["Range"])
        server.if_ranges.append(self.headers["If-Range"])
        if server.answers:
            self.send_error(server.answers.pop(0))
            return
        if self.path not in server.files:
            self.send_error(404)
            return
        content = server.files[self.path]
        start = 0
        condition = self.headers["If-Range"]
        same = condition is None or condition in server.validators.values() or server.ignores_if_range
        if self.headers["Range"] and same and not server.ignores_range:
            start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        for name, value in server.validators.items():
            self.send_header(name, value)
        if server.says_length:
            self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        stop = server.breaks.pop(0) if server.breaks else None
        self.wfile.write(content[start:][:stop])


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new" / "file.zip"


def part_of(path: Path) -> Path:
    return path.with_name("file.zip.part")


def get(server: Server, path: Path, **known: Any) -> None:
    download(f"{server.url}/file.zip", path, pause=0.0, **known)


def assert_complete(path: Path) -> None:
    assert path.read_bytes() == CONTENT
    assert [p.name for p in path.parent.iterdir()] == ["file.zip"]


# --- what goes right ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("known", [{}, {"size": len(CONTENT)}, {"md5": MD5}])
@pytest.mark.parametrize("says_length", [True, False])
def test_a_file_is_downloaded_once(server: Server, path: Path, known: Any, says_length: bool) -> None:
    server.says_length = says_length
    get(server, path, **known)
    assert_complete(path)
    get(server, path, **known)
    assert server.ranges == [None]


def test_a_lost_connection_is_resumed(server: Server, path: Path) -> None:
    server.breaks = [1_500_000, 1000]
    get(server, path, size=len(CONTENT), md5=MD5)
    assert_complete(path)
    assert server.ranges == [None, "bytes=1500000-", "bytes=1501000-"]


def test_a_server_that_is_busy_is_asked_again(server: Server, path: Path) -> None:
    server.answers = [503, 429, 500]
    get(server, path, size=len(CONTENT))
    assert_complete(path)


def test_the_next_run_goes_on_where_one_gave_up(server: Server, path: Path) -> None:
    server.breaks = [2_000_000] + [0] * module.ATTEMPTS
    with pytest.raises(UserError, match=r"gave up after 6 attempts with 2000000 bytes; run again later"):
        get(server, path, size=len(CONTENT), md5=MD5)
    assert not path.exists()
    server.breaks, server.ranges = [], []
    get(server, path, size=len(CONTENT), md5=MD5)
    assert_complete(path)
    assert server.ranges == ["bytes=2000000-"]


def test_progress_renews_the_attempts(server: Server, path: Path) -> None:
    server.breaks = [100_000] * 20
    get(server, path, size=len(CONTENT), md5=MD5)
    assert_complete(path)


def test_a_server_that_ignores_ranges_sends_all_again(server: Server, path: Path) -> None:
    server.ignores_range, server.breaks = True, [1_500_000]
    get(server, path, size=len(CONTENT), md5=MD5)
    assert_complete(path)
    assert server.ranges == [None, "bytes=1500000-"]


def test_a_complete_part_only_needs_its_name(server: Server, path: Path) -> None:
    path.parent.mkdir()
    part_of(path).write_bytes(CONTENT)
    get(server, path, size=len(CONTENT), md5=MD5)
    assert_complete(path)
    assert server.ranges == []


def test_a_part_longer_than_the_file_is_started_over(server: Server, path: Path) -> None:
    path.parent.mkdir()
    part_of(path).write_bytes(CONTENT + b"more")
    get(server, path, size=len(CONTENT), md5=MD5)
    assert_complete(path)


# --- a file without checksum that may change on the server --------------------------------------------------

ETAG, DATE = {"ETag": '"1"'}, {"Last-Modified": "Sat, 31 Oct 2026 09:00:00 GMT"}


@pytest.mark.parametrize("validators", [ETAG, DATE, ETAG | DATE])
def test_a_resumed_download_asks_for_the_rest_of_the_same_file(
    server: Server, path: Path, validators: dict[str, str]
) -> None:
    server.validators, server.breaks = validators, [2_000_000]
    get(server, path)
    assert_complete(path)
    assert server.ranges == [None, "bytes=2000000-"]
    assert server.if_ranges == [None, next(iter(validators.values()))]


@pytest.mark.parametrize("ignores_if_range", [False, True])
def test_a_file_that_changed_is_not_glued_to_the_old_one(
    server: Server, path: Path, ignores_if_range: bool
) -> None:
    server.files["/file.zip"] = bytes(len(CONTENT))
    server.validators, server.breaks = {"ETag": '"old"'}, [2_000_000] + [0] * module.ATTEMPTS
    with pytest.raises(UserError, match="gave up"):
        get(server, path)
    assert part_of(path).stat().st_size == 2_000_000
    server.files["/file.zip"], server.validators = CONTENT, {"ETag": '"new"'}
    server.ignores_if_range = ignores_if_range
    server.breaks = [1_000_000] * (2 if ignores_if_range else 1)
    get(server, path)
    assert_complete(path)
    assert server.if_ranges[-1] == '"new"'


@pytest.mark.parametrize("validators", [{}, {"ETag": 'W/"weak"'} | DATE])
def test_without_a_strong_validator_the_download_starts_again(
    server: Server, path: Path, validators: dict[str, str]
) -> None:
    server.validators, server.breaks = validators, [2_000_000]
    get(server, path)
    assert_complete(path)
    assert server.ranges == [None, None]


# --- what goes wrong ----------------------------------------------------------------------------------------


def test_not_found_says_which_address(server: Server, path: Path) -> None:
    with pytest.raises(UserError, match=r"/nothing: the server answers 404 Not Found; check the address"):
        download(f"{server.url}/nothing", path, pause=0.0)
    assert len(server.ranges) == 1
    assert not path.exists()


def test_a_file_of_another_size_is_refused_before_it_is_read(server: Server, path: Path) -> None:
    with pytest.raises(UserError, match=r"offers 3000000 bytes, expected 5; check the address"):
        get(server, path, size=5)
    assert list(path.parent.iterdir()) == []


def test_a_file_of_another_size_without_announcement_is_deleted(server: Server, path: Path) -> None:
    server.says_length = False
    with pytest.raises(UserError, match=r"3000000 bytes, expected 5; deleted\. Run again"):
        get(server, path, size=5)
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("says_length", [True, False])
def test_more_than_there_may_be_is_refused(server: Server, path: Path, says_length: bool) -> None:
    server.says_length = says_length
    with pytest.raises(UserError, match=r"file\.zip: more than 1000000 bytes"):
        get(server, path, most=1_000_000)
    assert not path.exists()
    get(server, path, most=len(CONTENT))
    assert_complete(path)


def test_a_wrong_checksum_deletes_the_download(server: Server, path: Path) -> None:
    with pytest.raises(UserError, match=rf"md5 is {MD5}, expected 0f; deleted"):
        get(server, path, md5="0f")
    assert list(path.parent.iterdir()) == []


def test_a_file_somebody_put_there_is_checked_and_kept(server: Server, path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"mine")
    with pytest.raises(UserError, match=r"file\.zip: 4 bytes, expected 3000000; delete it to download"):
        get(server, path, size=len(CONTENT))
    assert path.read_bytes() == b"mine"
    assert server.ranges == []


def test_a_server_that_is_not_there(path: Path) -> None:
    with Server() as closed:
        url = closed.url
    with pytest.raises(UserError, match=r"cannot be reached \(.*refused.*gave up after 6 attempts"):
        download(f"{url}/file.zip", path, pause=0.0)


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "images", "", "http://[::1/x", "http://x:y/z", "http://"]
)
def test_other_addresses_are_refused(path: Path, url: str) -> None:
    with pytest.raises(UserError, match="not an http"):
        download(url, path)


def test_a_disk_without_room_is_noticed_before(
    server: Server, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage(10))
    with pytest.raises(UserError, match=r"needs 3000000 bytes, the disk has 10 left; make room"):
        get(server, path)


def test_a_disk_that_fills_up_keeps_the_part(
    server: Server, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    path.parent.mkdir()
    part_of(path).write_bytes(CONTENT[:1000])
    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(UserError, match=r"the disk is full; make room and run again to continue"):
        get(server, path, md5=MD5)
    monkeypatch.undo()
    assert part_of(path).read_bytes() == CONTENT[:1000]


# --- unzip --------------------------------------------------------------------------------------------------


def write_zip(path: Path, entries: Mapping[Any, bytes]) -> Path:
    path.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return path


def test_a_folder_is_unpacked(tmp_path: Path) -> None:
    archive = write_zip(tmp_path / "a.zip", {"data/": b"", "data/1.jpg": b"one", "data/sub/2.jpg": b"two"})
    unzip(archive, tmp_path / "data")
    assert (tmp_path / "data/1.jpg").read_bytes() == b"one"
    assert (tmp_path / "data/sub/2.jpg").read_bytes() == b"two"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zip", "data"]


@pytest.mark.parametrize("name", ["../evil", "data/../../evil", "/evil", "data/sub/../../../evil"])
def test_entries_stay_in_the_folder(tmp_path: Path, name: str) -> None:
    link = zipfile.ZipInfo("data/link")
    link.external_attr = 0o120777 << 16
    archive = write_zip(tmp_path / "in/a.zip", {"data/good": b"", name: b"evil", link: b"/etc/passwd"})
    unzip(archive, tmp_path / "in/data")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    assert sorted(path.name for path in (tmp_path / "in").iterdir()) == ["a.zip", "data"]
    assert not (tmp_path / "in/data/link").is_symlink()


@pytest.mark.parametrize("spoil", ["truncated", "flipped", "text"])
def test_a_damaged_archive_leaves_nothing(tmp_path: Path, spoil: str) -> None:
    archive = write_zip(tmp_path / "a.zip", {"data/good": b"good", "data/file": CONTENT})
    content = bytearray(archive.read_bytes())
    if spoil == "truncated":
        content = content[:-1000]
    elif spoil == "flipped":
        content[1_000_000] ^= 1
    else:
        content = bytearray(b"<html>")
    archive.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.zip: cannot be unpacked .*; delete it to download it again"):
        unzip(archive, tmp_path / "data")
    assert [p.name for p in tmp_path.iterdir()] == ["a.zip"]


# --- archives -----------------------------------------------------------------------------------------------


def test_archives_become_folders_and_are_not_fetched_again(server: Server, tmp_path: Path) -> None:
    archives = list[Archive]()
    for folder in ("annotations", "val2017"):
        content = write_zip(tmp_path / "made.zip", {f"{folder}/a": folder.encode()}).read_bytes()
        server.files[f"/zips/{folder}.zip"] = content
        md5 = hashlib.md5(content).hexdigest()
        archives.append(Archive(f"zips/{folder}.zip", folder, len(content), md5))
    fetch_archives(f"{server.url}/", tmp_path / "coco", tuple(archives))
    assert (tmp_path / "coco/annotations/a").read_text() == "annotations"
    assert (tmp_path / "coco/val2017/a").read_text() == "val2017"
    assert len(server.ranges) == 2
    fetch_archives(server.url, tmp_path / "coco", tuple(archives))
    assert len(server.ranges) == 2


def test_coco_2017_is_what_cocodataset_org_lists() -> None:
    sizes = {archive.path: archive.size for archive in module.COCO_2017}
    assert sizes == {
        "zips/train2017.zip": 19_336_861_798,
        "zips/val2017.zip": 815_585_330,
        "annotations/annotations_trainval2017.zip": 252_907_541,
    }
