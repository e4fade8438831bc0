"""What there is to read: found once, sorted, by names that stay the same; and read, or said why not."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from personlab.errors import UserError
from personlab.inference import inputs
from personlab.inference.inputs import Listing


def names(listing: Listing) -> list[str]:
    return [name for name, _ in inputs.contents(listing.root, listing.entries)]


def read(listing: Listing) -> dict[str, bytes | str]:
    """Bytes by name, or the reason why there are none."""
    found: dict[str, bytes | str] = {}
    for name, fetch in inputs.contents(listing.root, listing.entries):
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
    table = pa.table({"label": pa.array(range(len(cells))), "picture": pa.array(cells, pa.binary())})
    pq.write_table(table, path, row_group_size=row_group_size)
    return path


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("b.jpg", "a/2.PNG", "a/10.png", "a/b/x.jpeg", "a/notes.txt", "é #1.jpg"):
        put(tmp_path / "in" / name)
    return tmp_path / "in"


@pytest.mark.parametrize("scheme", ["", "file://", "fsspec+file://"])
@pytest.mark.parametrize("end", ["", "/"])
def test_a_folder_is_its_pictures_at_any_depth_in_order(tree: Path, scheme: str, end: str) -> None:
    listing = inputs.find(f"{scheme}{tree}{end}")
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
@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_pattern_is_the_files_that_match(
    tree: Path, scheme: str, pattern: str, expected: list[str]
) -> None:
    listing = inputs.find(f"{scheme}{tree}/{pattern}")
    assert names(listing) == expected
    assert all(name.endswith(content.decode()) for name, content in read(listing).items())


def test_a_name_with_brackets_is_a_name_if_there_is_one(tmp_path: Path) -> None:
    put(tmp_path / "a[1].jpg")
    put(tmp_path / "a1.jpg")
    assert names(inputs.find(str(tmp_path / "a[1].jpg"))) == ["a[1].jpg"]


def test_relative_paths(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    assert names(inputs.find("b.jpg")) == ["b.jpg"]
    assert names(inputs.find("a")) == ["10.png", "2.PNG", "b/x.jpeg"]
    assert names(inputs.find("*.jpg")) == ["b.jpg", "é #1.jpg"]


def test_a_picture_by_uri(tree: Path) -> None:
    assert read(inputs.find(f"file://{tree}/%C3%A9%20%231.jpg")) == {"é #1.jpg": "é #1.jpg".encode()}


def test_a_list_names_paths_and_uris_each_once(tree: Path, tmp_path: Path) -> None:
    lines = [
        *(f"file://{tree}/b.jpg", str(tree / "a/2.PNG"), "", f"file://{tree}/b.jpg"),
        *(str(tree / "none.jpg"), "ftp://host/x.jpg"),
    ]
    listing = inputs.find(str(put(tmp_path / "list.txt", "\n".join(lines).encode())))
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
    listing = inputs.find(str(tmp_path / "in"))
    assert listing.entries.num_rows == 14
    for start in range(0, 14, part):
        for name, content in read(Listing(listing.root, listing.entries[start : start + part])).items():
            assert content == name.encode()


def test_hugging_face_tables(tmp_path: Path) -> None:
    cells = [{"bytes": b"one", "path": "1.jpg"}, {"bytes": b"two", "path": "2.jpg"}]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"image": pa.array(cells, kind)}), tmp_path / "x.parquet")
    assert read(inputs.find(str(tmp_path / "x.parquet"))) == {"x.parquet#0": b"one", "x.parquet#1": b"two"}


def test_rows_without_a_picture_say_so(tmp_path: Path) -> None:
    path = parquet(tmp_path / "x.parquet", [b"one", None])
    assert read(inputs.find(str(path))) == {"x.parquet#0": b"one", "x.parquet#1": "the row holds no picture"}


def test_a_parquet_file_that_changed_fails_its_rows_only(tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", [b"x"] * 5)
    put(tmp_path / "b.jpg")
    listing = inputs.find(str(tmp_path))
    parquet(tmp_path / "a.parquet", [b"x"] * 2)
    found = read(listing)
    assert found.pop("b.jpg") == b"b.jpg"
    assert len(found) == 5
    assert all("other rows" in str(reason) for reason in found.values())
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    assert all("cannot be read" in str(read(listing)[f"a.parquet#{row}"]) for row in range(5))


@pytest.mark.parametrize("columns", [{}, {"a": [b"x"], "b": [b"y"]}, {"a": ["text"]}])
def test_which_column_holds_the_pictures_must_be_clear(tmp_path: Path, columns: dict) -> None:
    pq.write_table(pa.table({"n": [1]} | columns), tmp_path / "x.parquet")
    with pytest.raises(UserError, match=r"x\.parquet.*one column of bytes is needed"):
        inputs.find(str(tmp_path / "x.parquet"))


def test_huge_files_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    with path.open("wb") as file:
        file.truncate(2**29 + 1)
    assert "is the most that is read" in str(read(inputs.find(str(path)))["x.jpg"])


@pytest.mark.parametrize("wanted", ["none", "none.parquet", "*.jpg", "empty", "list.txt", "file://{}/none"])
def test_nothing_to_read_is_an_error(tmp_path: Path, wanted: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.txt").write_text("\n\n")
    place = wanted.format(tmp_path) if "://" in wanted else str(tmp_path / wanted)
    with pytest.raises(UserError, match=r"no such file|no pictures"):
        inputs.find(place)


def test_a_binary_file_is_no_list(tmp_path: Path) -> None:
    put(tmp_path / "x.bin", np.arange(256, dtype=np.uint8).tobytes())
    with pytest.raises(UserError, match="list of paths or URIs"):
        inputs.find(str(tmp_path / "x.bin"))
