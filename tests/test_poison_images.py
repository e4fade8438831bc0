"""An image is given up when two careful attempts died with it, and no other image is."""

from pathlib import Path

import pytest

from personlab.inference.poison_images import attempt
from personlab.utils.storage import Folder


def die(out: Folder, *images: int) -> None:
    """An attempt that takes these images, if it takes them one by one, and dies."""
    with attempt(out, 3) as this:
        if this.careful:
            for image in images:
                this.takes(image)
        record = out.read(this.name)
    out.write(this.name, record)  # a process that dies leaves it


def test_first_attempts_are_quick_and_leave_nothing(tmp_path: Path) -> None:
    with attempt(Folder(str(tmp_path)), 3) as this:
        assert not this.careful
        assert [path.name for path in tmp_path.iterdir()] == [".attempt-00003"]
    assert not list(tmp_path.iterdir())


def test_an_image_that_killed_twice_is_given_up(tmp_path: Path) -> None:
    out = Folder(str(tmp_path))
    die(out)
    for deaths in range(3):
        with attempt(out, 3) as this:
            assert this.careful
            assert this.gives_up(7) == (deaths >= 2)
            assert not this.gives_up(6)
            record = out.read(this.name)
        out.write(this.name, record)
        die(out, 5, 6, 7)


def test_one_death_each_gives_up_nobody(tmp_path: Path) -> None:
    out = Folder(str(tmp_path))
    die(out)
    for image in range(5):
        die(out, image)
    with attempt(out, 3) as this:
        assert not any(map(this.gives_up, range(6)))
    with attempt(out, 4) as other:
        assert not other.careful


def fail(out: Folder) -> None:
    with attempt(out, 3) as this:
        this.takes(1)
        raise OSError("full")


def test_an_error_is_no_death(tmp_path: Path) -> None:
    out = Folder(str(tmp_path))
    die(out)
    with pytest.raises(OSError, match="full"):
        fail(out)
    with attempt(out, 3) as this:
        assert not this.careful
