"""Contact sheets, images with captions on one page, and JPEG files."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from personlab.data.transform import ImageArray

_PAPER: Final = (250, 250, 248)
_MAT: Final = (226, 227, 228)
_INK: Final = (38, 40, 46)
_MARGIN: Final = 12  # pixels
_JPEG_QUALITY: Final = 90


def contact_sheet(
    images: Sequence[ImageArray],
    columns: int,
    captions: Sequence[str] | None = None,
    *,
    cell: tuple[int, int] | None = None,
) -> ImageArray:
    """Arrange images row by row on one page, each centred in its cell, with its caption below.

    Args:
        images: H x W x 3 each, RGB, of any sizes; those larger than a cell are shrunk.
        columns: images per row.
        captions: one per image, of one or more lines.
        cell: width and height in pixels; by default those of the widest and the highest image.
    """
    width, height = cell or (max(i.shape[1] for i in images), max(i.shape[0] for i in images))
    captions = captions or [""] * len(images)
    text = max(15, width // 26)
    leading = text // 3
    lines = max(len(caption.split("\n")) if caption else 0 for caption in captions)
    step_x, step_y = width + _MARGIN, height + _MARGIN + (lines * (text + leading) + 6 if lines else 0)
    rows = -(-len(images) // columns)
    page = Image.new("RGB", (_MARGIN + min(columns, len(images)) * step_x, _MARGIN + rows * step_y), _PAPER)
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(text)
    for index, (image, caption) in enumerate(zip(images, captions, strict=True)):
        row, column = divmod(index, columns)
        left, top = _MARGIN + column * step_x, _MARGIN + row * step_y
        page.paste(_mounted(image, width, height), (left, top))
        pen.multiline_text((left + 1, top + height + 4), caption, fill=_INK, font=font, spacing=leading)
    return np.asarray(page)


def jpeg(image: ImageArray) -> bytes:
    """Encode an image (H x W x 3, RGB) as JPEG."""
    content = io.BytesIO()
    Image.fromarray(image).save(content, "JPEG", quality=_JPEG_QUALITY)
    return content.getvalue()


def write_jpeg(path: Path, image: ImageArray) -> None:
    """Write an image (H x W x 3, RGB) as a JPEG file."""
    path.write_bytes(jpeg(image))


def _mounted(image: ImageArray, width: int, height: int) -> Image.Image:
    """The image in the middle of a mat of width x height pixels, shrunk if it is larger."""
    picture = Image.fromarray(image)
    if picture.width > width or picture.height > height:
        picture = ImageOps.contain(picture, (width, height), Image.Resampling.LANCZOS)
    mat = Image.new("RGB", (width, height), _MAT)
    mat.paste(picture, ((width - picture.width) // 2, (height - picture.height) // 2))
    return mat
