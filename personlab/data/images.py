"""Read a picture that anyone may have made, in any format, as the RGB pixels that a viewer would show."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import PIL.Image
from PIL import ImageOps

from personlab.data.transform import ImageArray
from personlab.errors import UserError

# Coordinates of pixels have 16 bits in much of what handles them later, JPEG among it.
LONGEST: Final = 32_767

# Pillow reads these by starting another program (EPS), or knows them without being able to read them.
_FOREIGN: Final = {"EPS", "WMF", "MPEG", "BUFR", "GRIB", "HDF5"}


def formats() -> list[str]:
    """What can be read, by Pillow's names."""
    PIL.Image.init()
    return [name for name in PIL.Image.ID if name not in _FOREIGN]


def suffixes() -> set[str]:
    """What names of pictures end in, in lower case and with the dot."""
    readable = set(formats())
    return {suffix for suffix, name in PIL.Image.registered_extensions().items() if name in readable}


def read(path: Path) -> ImageArray:
    """Height x width x 3, RGB, uint8: turned as its EXIF says, on white where it is transparent.

    16 bits become 8; floating-point grey is stretched from its darkest to its brightest value. Of several
    frames or pages the first is read.

    Raises:
        UserError: the message is the reason alone, without the path: it is no file, no picture, incomplete,
            or larger than anyone's photos (89 million pixels, or 32767 a side).
    """
    with _explained():
        if not path.is_file():
            raise UserError(_no_file(path))
        return _read(path)


def decode(content: bytes) -> ImageArray:
    """As `read`, of what a picture file holds."""
    with _explained():
        return _read(BytesIO(content))


@contextmanager
def _explained() -> Iterator[None]:
    """Whatever goes wrong is a UserError that says why."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Pillow can put up with
            warnings.simplefilter("error", PIL.Image.DecompressionBombWarning)
            yield
    except UserError:
        raise
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning):
        raise UserError("has more than 89 million pixels, which would fill the memory; shrink it") from None
    except PIL.UnidentifiedImageError:
        raise UserError("is not a picture of any format that can be read here") from None
    except Exception as error:  # broken files make Pillow's readers stumble in any way there is
        raise UserError(f"cannot be read: {error or type(error).__name__}") from None


def _no_file(path: Path) -> str:
    if path.is_dir():
        return "is a folder without pictures"
    return "is no plain file" if path.exists() else "no such file"


def _read(source: Path | BytesIO) -> ImageArray:
    with PIL.Image.open(source, formats=formats()) as image:
        if max(image.size) > LONGEST:
            raise UserError(f"is {image.width} x {image.height} pixels; a side may have {LONGEST}, cut it up")
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
