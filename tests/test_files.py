"""Nothing half-written is ever visible under a final name."""

import logging
from pathlib import Path

import pytest

from personlab.utils import progress as progress_module
from personlab.utils.files import atomic_file, atomic_folder, write_atomic
from personlab.utils.progress import progress


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_write_atomic_writes_text_and_bytes_and_makes_folders(tmp_path: Path) -> None:
    write_atomic(tmp_path / "new" / "a.txt", "é")
    write_atomic(tmp_path / "new" / "a.txt", "ü")
    write_atomic(tmp_path / "new" / "b.bin", b"\x00")
    assert (tmp_path / "new" / "a.txt").read_bytes() == "ü".encode()
    assert (tmp_path / "new" / "b.bin").read_bytes() == b"\x00"
    assert names(tmp_path / "new") == ["a.txt", "b.bin"]


def test_a_failed_file_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail() -> None:
        with atomic_file(path) as partial:
            partial.write_text("half")
            assert path.read_text() == "old"
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_atomic_folder_replaces_the_whole_folder(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with atomic_folder(path) as partial:
        (partial / "one").write_text("1")
        assert not path.exists()
    with atomic_folder(path) as partial:
        (partial / "two").write_text("2")
        assert names(path) == ["one"]
    assert names(path) == ["two"]
    assert names(tmp_path) == ["out"]


def test_errors_name_the_file_and_not_the_temporary_one(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="File name too long") as error:
        write_atomic(tmp_path / ("x" * 250), "")
    assert error.value.filename == str(tmp_path / ("x" * 250))


def test_a_failed_folder_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with atomic_folder(path) as partial:
        (partial / "one").write_text("1")

    def fail() -> None:
        with atomic_folder(path) as partial:
            (partial / "two").write_text("2")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert names(path) == ["one"]
    assert names(tmp_path) == ["out"]


def test_what_a_killed_run_left_is_cleared_away(tmp_path: Path) -> None:
    for leftover in (".out.partial", ".out.old"):
        (tmp_path / leftover).mkdir()
        (tmp_path / leftover / "junk").write_text("")
    (tmp_path / ".a.partial").write_text("half")
    with atomic_folder(tmp_path / "out") as partial:
        assert names(partial) == []
    write_atomic(tmp_path / "a", "whole")
    assert names(tmp_path) == ["a", "out"]


def test_a_link_to_a_folder_is_replaced_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "kept").write_text("")
    (tmp_path / "out").symlink_to(tmp_path / "elsewhere")
    with atomic_folder(tmp_path / "out") as partial:
        (partial / "new").write_text("")
    assert names(tmp_path / "out") == ["new"]
    assert names(tmp_path / "elsewhere") == ["kept"]


def test_progress_logs_lines_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = iter(range(0, 1000, 10))  # ten seconds an item
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: float(next(clock)))
    with caplog.at_level(logging.INFO, logger="personlab"):
        assert list(progress(range(8), label="work")) == list(range(8))
    assert caplog.messages == ["work: 2/8, 4.0/min, 1.5 min left", "work: 5/8, 5.0/min, 36 s left"]


def test_progress_of_work_begun_earlier_counts_on_and_knows_its_own_rate(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: float(next(clock)))
    with caplog.at_level(logging.INFO, logger="personlab"):
        assert list(progress(range(3), label="work", begun=100)) == list(range(3))
    assert caplog.messages == ["work: 102/103, 4.0/min, 15 s left"]


def test_progress_says_rate_and_time_left() -> None:
    assert progress_module._state(120, 400, 3.0) == "120/400, 3.0/s, 1.6 min left"
    assert progress_module._state(1, 3, 0.1) == "1/3, 6.0/min, 20 s left"
    assert progress_module._state(1, 7201, 1.0) == "1/7201, 1.0/s, 2.0 h left"
    assert progress_module._state(5, None, 5.0) == "5, 5.0/s"
