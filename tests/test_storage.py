"""Folders here and elsewhere: whole files or none, and one run at a time."""

import re
import socket
import threading
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow.fs import FileType

from personlab.errors import UserError
from personlab.utils import storage
from personlab.utils.storage import Folder

# Pyarrow treats what fsspec brings as it treats any file system that is not local.
SCHEMES = ["", "file://", "fsspec+file://"]


@pytest.fixture(params=SCHEMES)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    made = Folder(f"{request.param}{tmp_path}/a/run")
    made.create()
    return made


def test_files_are_written_read_listed_replaced_and_deleted(folder: Folder) -> None:
    assert folder.files() == []
    folder.write("a.txt", b"one")
    folder.write("a.txt", b"another")
    assert folder.read("a.txt") == b"another"
    assert folder.files() == ["a.txt"]
    folder.delete("a.txt")
    folder.delete("a.txt")
    assert folder.files() == []
    with pytest.raises(FileNotFoundError):
        folder.read("a.txt")


def test_folders_are_cleared(folder: Folder) -> None:
    below = Folder(f"{folder.place}/below")
    below.create()
    below.write("a.txt", b"one")
    folder.write("b.txt", b"two")
    folder.clear("nowhere")
    folder.clear("below")
    assert folder.files(recursive=True) == ["b.txt"]
    folder.clear()
    folder.clear()
    assert storage.kind(folder.place) == FileType.NotFound


def test_a_folder_lists_what_is_below_it_by_relative_names(tmp_path: Path) -> None:
    for name in ("a b.txt", "c/d#e.txt", "c/f/g.txt"):
        (tmp_path / "x" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "x" / name).write_text(name)
    for scheme in SCHEMES:
        for end in ("", "/"):
            found = Folder(f"{scheme}{tmp_path}/x{end}")
            assert sorted(found.files(recursive=True)) == ["a b.txt", "c/d#e.txt", "c/f/g.txt"]
            assert found.files() == ["a b.txt"]
            assert found.read("c/d#e.txt") == b"c/d#e.txt"


def test_a_folder_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    assert Folder(str(tmp_path / "none")).files(recursive=True) == []


def test_uris_are_decoded(tmp_path: Path) -> None:
    (tmp_path / "a b#c.txt").write_text("x")
    assert storage.kind(f"file://{tmp_path}/a%20b%23c.txt") == FileType.File
    assert storage.kind(str(tmp_path / "a b#c.txt")) == FileType.File
    assert storage.kind(f"file://{tmp_path}/none") == FileType.NotFound


@pytest.mark.parametrize("place", ["ftp://host/x", "nothing://", "http://host/a.jpg", "s3://[::1/x"])
def test_unknown_file_systems_are_named(place: str) -> None:
    with pytest.raises(UserError, match=re.escape(place)):
        storage.locate(place)


def test_a_uri_with_one_slash_is_explained() -> None:
    with pytest.raises(UserError, match="s3:/bucket/x: a URI has two slashes: s3://bucket/x"):
        storage.kind("s3:/bucket/x")


def test_places_below_others() -> None:
    assert storage.join("s3://bucket/a/?region=x", "b") == "s3://bucket/a/b?region=x"
    assert storage.join("a?/", "b") == "a?/b"


def test_writers_of_one_file_do_not_mix(tmp_path: Path) -> None:
    """Many threads write the same name; a reader sees one of the contents at any moment, whole."""
    folder = Folder(str(tmp_path))
    contents = [bytes([number]) * 200_000 for number in range(6)]
    folder.write("x", contents[0])
    writers = [
        threading.Thread(target=lambda c=content: [folder.write("x", c) for _ in range(5)])
        for content in contents
    ]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert folder.read("x") in contents
    for writer in writers:
        writer.join()
    assert folder.read("x") in contents
    assert folder.files() == ["x"]


def test_a_folder_below_a_file_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot be written to"):
        Folder(str(tmp_path / "file/run")).create()


def test_only_one_run_at_a_time(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    with folder.locked(), pytest.raises(UserError, match="another run is writing here"), folder.locked():
        pytest.fail("two at once")
    with folder.locked():
        pass


def test_errors_of_an_object_store_name_the_place(monkeypatch: pytest.MonkeyPatch) -> None:
    class Store:
        def get_file_info(self, _: object) -> None:
            raise pa.ArrowException("failed to get a token")

    monkeypatch.setattr(storage, "locate", lambda _: (Store(), "photos"))
    for ask in (storage.kind, lambda place: Folder(place).files()):
        with pytest.raises(UserError, match=r"^abfs://photos: .*failed to get a token"):
            ask("abfs://photos")


@pytest.mark.parametrize(
    "place", ["s3://user:key@bucket/x?region=eu-west-1&", "gs://anonymous@bucket/x?retry_limit_seconds=1&"]
)
def test_a_store_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.setattr(storage, "_ANSWER_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        place += f"scheme=http&endpoint_override=127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(UserError, match=r"^(s3|gs)://.*: no answer within 0.3 s"):
            storage.kind(place)
