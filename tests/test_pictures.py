"""Which files a user means, and how what is written for them is called."""

from pathlib import Path

import pytest

from personlab.inference.pictures import find


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a/x.jpg", "a/X.PNG", "a/notes.txt", "a/deep/z.jpeg", "b/x.jpg", "b/é ü.webp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def shown(folder: Path, *wanted: str) -> list[str]:
    return [str(found.path.relative_to(folder)) for found in find(str(folder / name) for name in wanted)]


def test_a_folder_stands_for_the_pictures_right_in_it(folder: Path) -> None:
    assert shown(folder, "a") == ["a/X.PNG", "a/x.jpg"]


def test_a_pattern_stands_for_what_it_matches(folder: Path) -> None:
    assert shown(folder, "*/x.*") == ["a/x.jpg", "b/x.jpg"]
    assert shown(folder, "**/*.jp*g") == ["a/deep/z.jpeg", "a/x.jpg", "b/x.jpg"]


def test_a_file_is_meant_whatever_its_name(folder: Path) -> None:
    (folder / "[1].txt").touch()
    assert shown(folder, "a/notes.txt", "[1].txt") == ["a/notes.txt", "[1].txt"]


def test_what_is_named_twice_is_one(folder: Path) -> None:
    (folder / "link.jpg").symlink_to(folder / "a/x.jpg")
    assert shown(folder, "a/x.jpg", "a", "a/../a/x.jpg", "link.jpg") == ["link.jpg", "a/X.PNG"]


def test_what_stands_for_nothing_is_kept_to_be_missed(folder: Path) -> None:
    (folder / "empty").mkdir()
    assert shown(folder, "none.jpg", "none*.jpg", "empty") == ["none.jpg", "none*.jpg", "empty"]


def test_names_do_not_collide_even_where_case_does_not_count(folder: Path) -> None:
    (folder / "x-2.jpg").touch()
    found = find(str(folder / name) for name in ("a", "b", "x-2.jpg"))
    names = [picture.name for picture in found]
    assert names == ["X", "x-2", "x-3", "é ü", "x-2-2"]
    assert len({name.lower() for name in names}) == len(names)


@pytest.mark.parametrize(
    ("stem", "name"),
    [
        ("a\nb", "a_b"),
        ("a;b|c", "a_b_c"),
        ("...", "picture"),
        (".. .x", "x"),
        ("漢" * 80, "漢" * 50),
        ("con:", "con_"),
    ],
)
def test_names_are_fit_for_any_file_system(tmp_path: Path, stem: str, name: str) -> None:
    (tmp_path / f"{stem}.jpg").touch()
    assert [picture.name for picture in find([str(tmp_path / f"{stem}.jpg")])] == [name]


def test_ids_are_cocos_where_all_names_are(tmp_path: Path) -> None:
    def ids(*names: str) -> list[int]:
        return [picture.id for picture in find(str(tmp_path / name) for name in names)]

    assert ids("000000000139.jpg", "000000000042.jpg") == [139, 42]
    assert ids("COCO_val2014_000000000139.jpg", "7.png") == [139, 7]
    assert ids("000000000139.jpg", "me.jpg") == [1, 2]
    assert ids("139.jpg", "000000000139.jpg") == [1, 2]
    assert ids("٣.jpg") == [1]
