"""Images to predict: listed once, sorted, under stable names; read, or the reason why not."""

import errno
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from personlab.errors import UserError
from personlab.inference.listing import Listing, list_all, list_images


def names(listing: Listing) -> list[str]:
    return [name for name, _ in listing.read()]


def read(listing: Listing) -> dict[str, bytes | str]:
    """Bytes by name, or the reason why there are none."""
    found: dict[str, bytes | str] = {}
    for name, fetch in listing.read():
        assert name not in found
        try:
            found[name] = fetch()
        except UserError as error:
            found[name] = str(error)
    return found


def put(path: Path, content: bytes = b"") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content or path.name.encode())
    return path


def parquet(path: Path, cells: list[bytes | None], row_group_size: int = 3) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"label": pa.array(range(len(cells))), "image": pa.array(cells, pa.binary())})
    pq.write_table(table, path, row_group_size=row_group_size)
    return path


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("b.jpg", "a/2.PNG", "a/10.png", "a/b/x.jpeg", "a/notes.txt", "é #1.jpg"):
        put(tmp_path / "in" / name)
    return tmp_path / "in"


@pytest.mark.parametrize("scheme", ["", "file://", "fsspec+file://"])
@pytest.mark.parametrize("end", ["", "/"])
def test_a_folder_is_its_images_at_any_depth_in_order(tree: Path, scheme: str, end: str) -> None:
    listing = list_images(f"{scheme}{tree}{end}")
    assert names(listing) == ["a/10.png", "a/2.PNG", "a/b/x.jpeg", "b.jpg", "é #1.jpg"]
    assert read(listing)["a/b/x.jpeg"] == b"x.jpeg"
    assert read(listing)["é #1.jpg"] == "é #1.jpg".encode()


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.jpg", ["b.jpg", "é #1.jpg"]),
        ("a/*", ["10.png", "2.PNG", "notes.txt"]),
        ("**/*.png", ["a/10.png"]),
        ("**/*.jp*g", ["a/b/x.jpeg", "b.jpg", "é #1.jpg"]),
        ("a/**", ["10.png", "2.PNG", "b/x.jpeg", "notes.txt"]),
        ("[ab]/[0-9].PNG", ["a/2.PNG"]),
    ],
)
@pytest.mark.parametrize("scheme", ["", "file://", "fsspec+file://"])
def test_a_pattern_is_the_files_that_match(
    tree: Path, scheme: str, pattern: str, expected: list[str]
) -> None:
    listing = list_images(f"{scheme}{tree}/{pattern}")
    assert names(listing) == expected
    assert all(name.endswith(content.decode()) for name, content in read(listing).items())


def test_a_name_with_brackets_is_a_name_if_there_is_one(tmp_path: Path) -> None:
    put(tmp_path / "a[1].jpg")
    put(tmp_path / "a1.jpg")
    assert names(list_images(str(tmp_path / "a[1].jpg"))) == ["a[1].jpg"]


def test_relative_paths(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    assert names(list_images("b.jpg")) == ["b.jpg"]
    assert names(list_images("a")) == ["10.png", "2.PNG", "b/x.jpeg"]
    assert names(list_images("*.jpg")) == ["b.jpg", "é #1.jpg"]


def test_an_image_by_uri(tree: Path) -> None:
    assert read(list_images(f"file://{tree}/%C3%A9%20%231.jpg")) == {"é #1.jpg": "é #1.jpg".encode()}


def test_a_list_names_paths_and_uris_each_once(tree: Path, tmp_path: Path) -> None:
    lines = [
        *(f"file://{tree}/b.jpg", str(tree / "a/2.PNG"), "", f"file://{tree}/b.jpg"),
        *(str(tree / "none.jpg"), "ftp://host/x.jpg"),
    ]
    listing = list_images(str(put(tmp_path / "list.txt", "\n".join(lines).encode())))
    found = read(listing)
    assert list(found) == sorted(filter(None, set(lines)))
    assert found[f"file://{tree}/b.jpg"] == b"b.jpg"
    assert found[str(tree / "none.jpg")] == "no such file"
    assert "ftp" in str(found["ftp://host/x.jpg"])


@pytest.mark.parametrize("part", [1, 2, 3, 4, 7, 10])
def test_rows_of_parquet_files_are_read_in_parts(tmp_path: Path, part: int) -> None:
    """Whatever the row groups, the rows of any slice of the listing are those of the file."""
    for name, count in (("a.parquet", 10), ("b.parquet", 4)):
        parquet(tmp_path / "in" / name, [f"{name}#{row}".encode() for row in range(count)])
    listing = list_images(str(tmp_path / "in"))
    assert listing.entries.num_rows == 14
    for start in range(0, 14, part):
        for name, content in read(Listing(listing.root, listing.entries[start : start + part])).items():
            assert content == name.encode()


def test_hugging_face_tables(tmp_path: Path) -> None:
    cells = [{"bytes": b"one", "path": "1.jpg"}, {"bytes": b"two", "path": "2.jpg"}]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"image": pa.array(cells, kind)}), tmp_path / "x.parquet")
    assert read(list_images(str(tmp_path / "x.parquet"))) == {"x.parquet#0": b"one", "x.parquet#1": b"two"}


def test_rows_without_an_image_have_a_reason(tmp_path: Path) -> None:
    path = parquet(tmp_path / "x.parquet", [b"one", None])
    assert read(list_images(str(path))) == {"x.parquet#0": b"one", "x.parquet#1": "the row holds no image"}


def test_a_parquet_file_that_changed_fails_its_rows_only(tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", [b"x"] * 5)
    put(tmp_path / "b.jpg")
    listing = list_images(str(tmp_path))
    parquet(tmp_path / "a.parquet", [b"x"] * 2)
    found = read(listing)
    assert found.pop("b.jpg") == b"b.jpg"
    assert len(found) == 5
    assert all("other rows" in str(reason) for reason in found.values())
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    assert all("cannot be read" in str(read(listing)[f"a.parquet#{row}"]) for row in range(5))


@pytest.mark.parametrize("columns", [{}, {"a": [b"x"], "b": [b"y"]}, {"a": ["text"]}])
def test_the_column_of_images_must_be_clear(tmp_path: Path, columns: dict) -> None:
    pq.write_table(pa.table({"n": [1]} | columns), tmp_path / "x.parquet")
    with pytest.raises(UserError, match=r"x\.parquet.*one column of bytes is needed"):
        list_images(str(tmp_path / "x.parquet"))


def test_huge_files_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    with path.open("wb") as file:
        file.truncate(2**29 + 1)
    assert "bytes; at most" in str(read(list_images(str(path)))["x.jpg"])


@pytest.mark.parametrize("wanted", ["none", "none.parquet", "*.jpg", "empty", "list.txt", "file://{}/none"])
def test_nothing_to_read_is_an_error(tmp_path: Path, wanted: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.txt").write_text("\n\n")
    place = wanted.format(tmp_path) if "://" in wanted else str(tmp_path / wanted)
    with pytest.raises(UserError, match=r"no such file|no images"):
        list_images(place)


def test_a_binary_file_without_a_suffix_is_an_image(tmp_path: Path) -> None:
    put(tmp_path / "x", np.arange(256, dtype=np.uint8).tobytes())
    assert names(list_images(str(tmp_path / "x"))) == ["x"]


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16"], ids=["plain", "with byte order mark", "of PowerShell"]
)
@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["LF", "CRLF"])
def test_lists_as_editors_save_them(tree: Path, tmp_path: Path, encoding: str, end: str) -> None:
    lines = [str(tree / "b.jpg"), str(tree / "é #1.jpg")]
    listed = put(tmp_path / "list.txt", "".join(line + end for line in lines).encode(encoding))
    assert read(list_images(str(listed))) == dict(zip(lines, (b"b.jpg", "é #1.jpg".encode()), strict=True))


def test_names_that_are_not_utf8_are_listed_and_read(tmp_path: Path) -> None:
    """In a folder, by pattern, by name and in a list; a name may hold a real backslash too."""
    folder = tmp_path / "in"
    put(folder / "a.jpg")
    for name in (b"caf\xe9.jpg", rb"caf\xe8.jpg"):
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes(name)
    expected = {"a.jpg": b"a.jpg", r"caf\xe8.jpg": rb"caf\xe8.jpg", r"caf\xe9.jpg": b"caf\xe9.jpg"}
    assert read(list_images(str(folder))) == expected
    assert read(list_images(f"{folder}/*.jpg")) == expected
    path = os.fsencode(folder) + b"/caf\xe9.jpg"
    assert read(list_images(os.fsdecode(path))) == {r"caf\xe9.jpg": b"caf\xe9.jpg"}
    assert list(read(list_images(str(put(tmp_path / "list.txt", path)))).values()) == [b"caf\xe9.jpg"]


def test_files_of_other_types_are_counted(tree: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("1.mov", "2.mov", "a/README"):
        put(tree / name)
    with caplog.at_level(logging.INFO):
        assert len(list_images(str(tree)).entries) == 5
    assert f"{tree}: 4 files of other types: .mov 2, " in caplog.text
    assert "none 1" in caplog.text
    assert ".txt 1" in caplog.text


def test_one_bad_file_stops_nothing(tmp_path: Path) -> None:
    """A link that leads nowhere, a circle of links, a pipe, Parquet files without images."""
    put(tmp_path / "good.jpg")
    (tmp_path / "lost.jpg").symlink_to(tmp_path / "nothing.jpg")
    (tmp_path / "circle").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe.jpg")
    put(tmp_path / "torn.parquet", b"PAR1")
    pq.write_table(pa.table({"n": [1, 2, 3]}), tmp_path / "numbers.parquet")
    found = read(list_images(str(tmp_path)))
    assert found.pop("good.jpg") == b"good.jpg"
    assert found.pop("lost.jpg") == "no such file"
    assert "is not a regular file" in str(found.pop("pipe.jpg"))
    assert "one column of bytes is needed" in str(found.pop("numbers.parquet#0"))
    assert "torn.parquet cannot be read" in str(found.pop("torn.parquet#0"))
    assert not found
    assert names(list_images(f"{tmp_path}/**/good.jpg")) == ["good.jpg"]
    with pytest.raises(UserError, match="cannot be read as a Parquet file of images"):
        list_images(str(tmp_path / "torn.parquet"))


def test_a_folder_that_cannot_be_listed_is_named_and_the_others_are_read(
    tree: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    scandir = os.scandir

    def closed(path: Path | str) -> Any:  # tests may run as root, who is refused nothing
        if Path(path).name == "a":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    assert names(list_images(str(tree))) == ["b.jpg", "é #1.jpg"]
    assert f"{tree}/a: cannot be listed (Permission denied); its files are left out" in caplog.text
    with pytest.raises(UserError, match=r"/a: cannot be listed .*Permission denied"):
        list_images(str(tree / "a"))


def test_files_in_linked_folders_are_listed(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "links").mkdir()
    (tmp_path / "links/in").symlink_to(tree)
    assert "in/a/b/x.jpeg" in names(list_images(str(tmp_path / "links")))


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_what_was_written_is_left_out(tree: Path, scheme: str) -> None:
    left_out = [f"{scheme}{tree}/a", f"{scheme}{tree}/b.jpg", f"{scheme}{tree}/c"]
    assert names(list_images(f"{scheme}{tree}", leave_out=left_out)) == ["é #1.jpg"]
    assert names(list_images(f"{scheme}{tree}/**/*.jpg", leave_out=left_out)) == ["é #1.jpg"]
    assert len(names(list_images(f"{scheme}{tree}", leave_out=[f"{scheme}{tree}"]))) == 5


def test_a_text_that_is_no_list_is_refused(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").write_text("Notes\n\nThe photos are of May.\n")
    with pytest.raises(UserError, match=r"readme\.txt: is neither an image nor .*: there is no file 'Notes'"):
        list_images(str(tmp_path / "readme.txt"))
    (tmp_path / "urls.txt").write_text("https://example.com/" + 100 * "x")
    with pytest.raises(
        UserError, match=r"urls\.txt: is neither .* there is no file 'https://example\.com/x{40}'"
    ):
        list_images(str(tmp_path / "urls.txt"))
    (tmp_path / "photo").write_bytes(b"\xff\xd8")
    (tmp_path / "list.txt").write_text(f"{tmp_path}/gone\n{tmp_path}/photo\n")
    assert len(list_images(str(tmp_path / "list.txt")).paths()) == 2


def test_several_places_are_listed_each_file_once(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link.jpg").symlink_to(tree / "b.jpg")
    monkeypatch.chdir(tmp_path)
    listings, failures = list_all(["link.jpg", "in/a/2.PNG", "none.jpg", "in/a/../a", "in", "none*.jpg"])
    paths = [path for listing in listings for path in listing.paths()]
    assert paths == ["link.jpg", "in/a/2.PNG", "in/a/../a/10.png", "in/a/../a/b/x.jpeg", "in/é #1.jpg"]
    assert list(read(listings[0]).values()) == [b"b.jpg"]
    assert [failure.partition(":")[0] for failure in failures] == ["none.jpg", "none*.jpg"]
