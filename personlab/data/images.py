"""The one image reader: files of any format that Pillow reads, as RGB pixels.

EXIF orientation has one convention. Annotations mean the pixels as stored, as COCO's do, except where the
annotated size fits only the pixels as shown (`decode_annotated`). Images without annotations are read as
viewers show them (`read`, `decode`).
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, Final, NoReturn

import numpy as np
import numpy.typing as npt
import PIL.Image
from PIL import ExifTags, ImageOps

from personlab.data.transform import ImageArray
from personlab.errors import UserError

# Pixel coordinates have 16 bits in JPEG and in parts of OpenCV.
LONGEST: Final = 32_767
MOST_PIXELS: Final = 89_000_000
_TOO_LARGE: Final = "has more than {:g} million pixels, which would fill the memory; shrink it"

# Pillow starts another program to read these (EPS), or knows them without being able to read them.
_FOREIGN: Final = {"EPS", "WMF", "MPEG", "BUFR", "GRIB", "HDF5"}

# Pillow warns of files that it reads all the same, and of large ones, which are refused below.
warnings.filterwarnings("ignore", module=r"PIL\.")

_HEIF: Final = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}  # brands


def _register_heif() -> None:
    """Have Pillow read HEIF, the format of iPhones, or refuse it with the name of the missing extra."""
    PIL.Image.init()  # AVIF, which shares brands with HEIF, is tried first
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        PIL.Image.register_open("HEIF", _no_heif, lambda head: head[4:8] == b"ftyp" and head[8:12] in _HEIF)
        PIL.Image.register_extensions("HEIF", [".heic", ".heif"])
    else:
        register_heif_opener()


def _no_heif(*_: object) -> NoReturn:
    raise UserError("is a HEIF image (HEIC); to read these: pip install 'personlab[heif]'")


_register_heif()


def formats() -> list[str]:
    """Pillow's names of the formats that are read."""
    PIL.Image.init()
    return [name for name in PIL.Image.ID if name not in _FOREIGN]


def suffixes() -> set[str]:
    """Suffixes of image files, in lower case and with the dot."""
    readable = set(formats())
    return {suffix for suffix, name in PIL.Image.registered_extensions().items() if name in readable}


def read(path: Path | str, *, apply_exif: bool = True) -> ImageArray:
    """Read an image file; see `decode`.

    Raises:
        UserError: as `decode`; or there is no such file.
    """
    path = Path(path)
    with _explained():
        if not path.is_file():
            raise UserError(_no_file(path))
        return _read(path, apply_exif)


def decode(content: bytes, *, apply_exif: bool = True, most_pixels: int = MOST_PIXELS) -> ImageArray:
    """Decode an image file to height x width x 3 RGB, uint8.

    16 bits are reduced to 8, the range of floating-point grey is scaled to [0, 255], transparency becomes
    white. Of several frames or pages the first is read.

    Args:
        content: the bytes of the file.
        apply_exif: rotate and mirror as the EXIF orientation says, as viewers do.
        most_pixels: more are refused, before anything is decoded.

    Raises:
        UserError: the content is not an image, is incomplete, or is too large (89 million pixels, or 32767 a
            side). The message is the reason, without the file's name.
    """
    with _explained():
        return _read(BytesIO(content), apply_exif, most_pixels)


def decode_annotated(image: Path | bytes, height: int, width: int) -> ImageArray:
    """Decode an image file as its annotations mean it: the pixels as stored if they have the annotated size,
    else as EXIF turns them for display.

    Raises:
        UserError: as `decode`, or the image has another size than annotated.
    """
    decoded = partial(read, image) if isinstance(image, Path) else partial(decode, image)
    sizes = list[str]()
    for apply_exif in (False, True):
        found = decoded(apply_exif=apply_exif)
        if found.shape[:2] == (height, width):
            return found
        sizes.append(f"{found.shape[1]} x {found.shape[0]}")
    stored, shown = sizes
    exif = f" ({shown} as its EXIF orientation shows it)" if shown != stored else ""
    hint = "; width and height are swapped, or an EXIF orientation was removed"
    swapped = hint if stored == f"{height} x {width}" else ""
    raise UserError(f"is {stored} pixels{exif}, the annotations say {width} x {height}{swapped}")


def pixels(row: Mapping[str, Any]) -> ImageArray:
    """Decode the image of a row of tables.IMAGES to height x width x 3 RGB, without its EXIF orientation.

    Raises:
        UserError: the image cannot be decoded.
    """
    try:
        return decode(row["image"], apply_exif=False)
    except UserError as error:
        raise UserError(f"{row['file_name']}: {error}; run dvc repro --force ingest") from None


def orientation(file: Path | bytes) -> int:
    """The EXIF orientation of an image file, 2 to 8; 1 if it is upright or cannot be read."""
    try:
        source = BytesIO(file) if isinstance(file, bytes) else file
        with PIL.Image.open(source, formats=formats()) as image:
            found: Any = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # as in `_explained`
        return 1
    return int(found) if found in range(1, 9) else 1


def size(path: Path) -> tuple[int, int]:
    """The height and width of an image file as viewers show it; (1, 1) if it cannot be read."""
    try:
        with PIL.Image.open(path, formats=formats()) as image:
            width, height = image.size
    except Exception:  # as in `_explained`
        return 1, 1
    return (width, height) if orientation(path) >= 5 else (height, width)


def stored_as_annotated(path: Path, height: int, width: int) -> bytes:
    """The bytes of an image file or, if its annotations mean the pixels as EXIF shows them, a PNG of these.

    Raises:
        UserError: as `decode_annotated`.
    """
    if orientation(path) < 5 or read(path, apply_exif=False).shape[:2] == (height, width):
        return path.read_bytes()
    content = BytesIO()
    PIL.Image.fromarray(decode_annotated(path, height, width)).save(content, "PNG")
    return content.getvalue()


@contextmanager
def _explained() -> Iterator[None]:
    """Turn any exception into a UserError that gives the reason."""
    try:
        yield
    except UserError:
        raise
    except PIL.Image.DecompressionBombError:
        raise UserError(_TOO_LARGE.format(MOST_PIXELS / 1e6)) from None
    except PIL.UnidentifiedImageError:
        raise UserError("is not an image of any format that can be read here") from None
    except Exception as error:  # Pillow's readers raise any kind of exception on broken files
        raise UserError(f"cannot be read: {error or type(error).__name__}") from None


def _no_file(path: Path) -> str:
    if path.is_dir():
        return "is a folder, not an image"
    return "is no plain file" if path.exists() else "no such file"


def _read(source: Path | BytesIO, apply_exif: bool, most_pixels: int = MOST_PIXELS) -> ImageArray:
    if not (source.stat().st_size if isinstance(source, Path) else source.getbuffer().nbytes):
        raise UserError("is empty")
    with PIL.Image.open(source, formats=formats()) as image:
        if max(image.size) > LONGEST:
            raise UserError(f"is {image.width} x {image.height} pixels; a side may have {LONGEST}, cut it up")
        if image.width * image.height > most_pixels:
            raise UserError(_TOO_LARGE.format(most_pixels / 1e6))
        if apply_exif:
            ImageOps.exif_transpose(image, in_place=True)
        return np.array(_rgb(image))


def _rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":
        image = PIL.Image.fromarray((np.asarray(image) / 257).clip(0, 255).round().astype(np.uint8))
    elif image.mode == "F":
        image = PIL.Image.fromarray(_stretched(np.asarray(image)))
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    layer = image.convert("RGBA")
    white = PIL.Image.new("RGBA", layer.size, "white")
    return PIL.Image.alpha_composite(white, layer).convert("RGB")


def _stretched(values: npt.NDArray[np.float32]) -> ImageArray:
    known = np.nan_to_num(values.astype(np.float64), posinf=0, neginf=0)
    low, high = known.min(), known.max()
    pixels: ImageArray = ((known - low) * (255 / max(high - low, 1e-9))).round().astype(np.uint8)
    return pixels
