"""Pictures as people have them: every mode and format, turned, transparent, broken and hostile."""

import io
import os
import struct
import zlib
from contextlib import suppress
from itertools import starmap
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from personlab.data import images
from personlab.errors import UserError

HEIGHT, WIDTH = 20, 30


def colours() -> Image.Image:
    """Red left, green right, with a blue top left corner: no two ways to hold it look the same."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[:, :15], pixels[:, 15:] = (204, 0, 0), (0, 204, 0)
    pixels[:5, :5] = (0, 0, 204)
    return Image.fromarray(pixels)


def saved(folder: Path, image: Image.Image, name: str, **options: object) -> Path:
    path = folder / name
    image.save(path, **options)
    return path


@pytest.mark.parametrize(
    ("mode", "name", "tolerance"),
    [
        ("RGB", "a.png", 0),
        ("RGBA", "a.png", 0),
        ("P", "a.png", 0),
        ("P", "a.gif", 0),
        ("RGB", "a.bmp", 0),
        ("RGB", "a.tif", 0),
        ("RGB", "a.ppm", 0),
        ("RGB", "a.tga", 0),
        ("RGB", "a.jpg", 45),
        ("RGB", "a.webp", 45),
        ("CMYK", "a.jpg", 45),
        ("CMYK", "a.tif", 0),
        ("YCbCr", "a.jpg", 45),
    ],
)
def test_colours_survive_every_mode_and_format(tmp_path: Path, mode: str, name: str, tolerance: int) -> None:
    found = images.read(saved(tmp_path, colours().convert(mode), name))
    assert found.shape == (HEIGHT, WIDTH, 3)
    assert found.dtype == np.uint8
    # colours bleed at edges where formats are lossy: look into the middle of each
    for y, x, colour in ((2, 2, (0, 0, 204)), (12, 7, (204, 0, 0)), (12, 22, (0, 204, 0))):
        np.testing.assert_allclose(found[y, x].astype(int), colour, atol=tolerance)


@pytest.mark.parametrize("mode", ["1", "L", "LA"])
def test_grey_becomes_grey(tmp_path: Path, mode: str) -> None:
    grey = Image.fromarray(np.array([[0, 255, 0, 255]], np.uint8)).convert(mode)
    found = images.read(saved(tmp_path, grey, "a.png"))
    np.testing.assert_array_equal(found[0], np.repeat([[0], [255], [0], [255]], 3, axis=1))


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_sixteen_bits_become_eight(tmp_path: Path, name: str) -> None:
    deep = np.array([[0, 257, 128 * 257, 65535]], np.uint16)
    found = images.read(saved(tmp_path, Image.fromarray(deep), name))
    np.testing.assert_array_equal(found[0, :, 0], [0, 1, 128, 255])


def test_floating_point_grey_is_stretched(tmp_path: Path) -> None:
    values = np.array([[-1.0, 0.0, 1.0, np.nan]], np.float32)
    found = images.read(saved(tmp_path, Image.fromarray(values), "a.tif"))
    np.testing.assert_array_equal(found[0, :, 0], [0, 128, 255, 128])


def test_what_is_transparent_is_white(tmp_path: Path) -> None:
    pixels = np.full((1, 3, 4), (100, 0, 0, 255), np.uint8)
    pixels[0, 1, 3], pixels[0, 2, 3] = 0, 128
    found = images.read(saved(tmp_path, Image.fromarray(pixels), "a.png"))
    np.testing.assert_allclose(found[0].astype(int), [(100, 0, 0), (255, 255, 255), (177, 127, 127)], atol=1)


def test_a_transparent_palette_entry_is_white(tmp_path: Path) -> None:
    found = images.read(saved(tmp_path, colours().convert("P"), "a.png", transparency=colours_index()))
    np.testing.assert_array_equal(found[2, 2], (255, 255, 255))


def colours_index() -> int:
    return int(colours().convert("P").getpixel((2, 2)))  # type: ignore[arg-type]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(tmp_path: Path, orientation: int) -> None:
    stored_as = {  # how a camera held that way stores the upright picture
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a),
        7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }
    upright = np.asarray(colours())
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(stored_as[orientation](upright)))
    path = saved(tmp_path, stored, "a.png", exif=exif)
    np.testing.assert_array_equal(images.read(path), upright)
    np.testing.assert_array_equal(images.read(path, apply_exif=False), np.asarray(stored))
    content = path.read_bytes()
    np.testing.assert_array_equal(images.decode(content), upright)
    np.testing.assert_array_equal(images.decode(content, apply_exif=False), np.asarray(stored))
    assert images.orientation(path) == orientation
    np.testing.assert_array_equal(images.decode_annotated(content, *stored.size[::-1]), np.asarray(stored))
    np.testing.assert_array_equal(
        images.decode(images.stored_as_annotated(path, *stored.size[::-1]), apply_exif=False),
        np.asarray(stored),
    )


def turned(folder: Path) -> Path:
    """Stored upright, and to be turned by 90 degrees."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(folder, colours(), "a.png", exif=exif)


def test_the_annotated_size_tells_the_orientation(tmp_path: Path) -> None:
    path = turned(tmp_path)
    shown = np.rot90(np.asarray(colours()), -1)
    np.testing.assert_array_equal(images.decode_annotated(path, WIDTH, HEIGHT), shown)
    packed = images.stored_as_annotated(path, WIDTH, HEIGHT)
    np.testing.assert_array_equal(images.decode(packed, apply_exif=False), shown)
    assert images.stored_as_annotated(path, HEIGHT, WIDTH) == path.read_bytes()
    message = r"is 30 x 20 pixels \(20 x 30 as its EXIF orientation shows it\), the annotations say 9 x 5"
    with pytest.raises(UserError, match=message):
        images.decode_annotated(path, 5, 9)
    with pytest.raises(
        UserError, match=r"30 x 20 pixels, .* say 20 x 30; .* or an EXIF orientation was remo"
    ):
        images.decode_annotated(saved(tmp_path, colours(), "b.png"), WIDTH, HEIGHT)


@pytest.mark.parametrize("value", [0, 9])
def test_an_orientation_that_is_none_is_upright(tmp_path: Path, value: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = value
    assert images.orientation(saved(tmp_path, colours(), "a.png", exif=exif)) == 1


def test_the_first_frame_is_read(tmp_path: Path) -> None:
    first, second = colours(), Image.new("RGB", (WIDTH, HEIGHT), "white")
    found = images.read(saved(tmp_path, first, "a.tif", save_all=True, append_images=[second]))
    np.testing.assert_array_equal(found, np.asarray(first))


@pytest.mark.parametrize(("width", "height"), [(1, 1), (20_000, 10), (10, 20_000)])
def test_odd_shapes_are_pictures(tmp_path: Path, width: int, height: int) -> None:
    path = saved(tmp_path, Image.new("RGB", (width, height)), "a.png")
    assert images.read(path).shape == (height, width, 3)


def png_header(width: int, height: int, *extra: tuple[bytes, bytes]) -> bytes:
    """A PNG that claims a size and holds a few bytes. extra: chunks before its pixels, name and content."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(starmap(chunk, extra)) + pixels + chunk(b"IEND", b"")


def jpeg() -> bytes:
    content = io.BytesIO()
    Image.effect_noise((200, 200), 64).save(content, "JPEG")
    return content.getvalue()


# A name, and two kilobytes that unpack to two megabytes.
SWELLING = b"name\0\0" + zlib.compress(bytes(2_000_000))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (png_header(50_000, 50_000), "89 million pixels"),
        (png_header(9_500, 9_500), "89 million pixels"),
        (png_header(40_000, 10), "40000 x 10 pixels; a side may have 32767"),
        (png_header(300, 300), "cannot be read"),
        (png_header(8, 8, (b"zTXt", SWELLING)), "cannot be read: Decompressed data too large"),
        (png_header(8, 8, (b"iCCP", SWELLING)), "cannot be read: Decompressed data too large"),
        (jpeg()[:2000], "cannot be read: image file is truncated"),
        (b"\xff\xd8\xff", "not an image"),
        (b"nothing but text", "not an image"),
        (b"", "is empty"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n", "not an image"),
    ],
)
def test_what_cannot_be_read_has_a_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(UserError, match=reason):
        images.read(tmp_path / "a.jpg")


def test_what_is_no_file_has_a_reason(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "nothing.jpg")
    (tmp_path / "empty.jpg").touch()
    for path, reason in (
        (tmp_path / "a.jpg", "no such file"),
        (tmp_path / "link.jpg", "no such file"),
        (tmp_path / "pipe.jpg", "is no plain file"),
        (tmp_path, "is a folder, not an image"),
        (tmp_path / "empty.jpg", "is empty"),
    ):
        with pytest.raises(UserError, match=reason):
            images.read(str(path))
    with pytest.raises(UserError, match="is empty"):
        images.decode(b"")


def test_nothing_that_starts_a_program_is_read() -> None:
    assert "EPS" not in images.formats()
    assert ".eps" not in images.suffixes()
    assert {".jpg", ".jpeg", ".png", ".webp", ".tif", ".gif"} <= images.suffixes()


def test_bytes_at_random_never_end_in_anything_but_a_reason(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    path, good = tmp_path / "a", io.BytesIO()
    for kind in ("PNG", "GIF", "TIFF", "BMP", "WEBP", "JPEG"):
        good = io.BytesIO()
        colours().save(good, kind)
        for _ in range(40):
            content = np.frombuffer(good.getvalue(), np.uint8).copy()
            content[random.integers(0, len(content), 8)] = random.integers(0, 256, 8)
            path.write_bytes(content.tobytes()[: random.integers(20, len(content))])
            with suppress(UserError):
                assert images.read(path).shape[2] == 3
