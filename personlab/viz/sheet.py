"""Contact sheets: many images on one page with captions; and images as JPEGs."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from personlab.data.transform import ImageArray

# Lengths in pixels.
_PAPER, _MAT, _INK = (250, 250, 248), (226, 227, 228), (38, 40, 46)
_MARGIN, _TEXT, _LEADING = 12, 15, 5

_JPEG_QUALITY = 90


def contact_sheet(
    images: Sequence[ImageArray],
    columns: int,
    captions: Sequence[str] | None = None,
    *,
    cell: tuple[int, int] | None = None,
) -> ImageArray:
    """Images on one page, row by row, each with a caption below it (which may have several lines).

    Each is shrunk to fit its cell of (width, height) pixels and centred there; left out, the cell is as
    wide as the widest and as high as the highest image.
    """
    width, height = cell or (max(i.shape[1] for i in images), max(i.shape[0] for i in images))
    captions = captions or [""] * len(images)
    text = max(_text_height(caption) for caption in captions)
    step_x, step_y = width + _MARGIN, height + text + _MARGIN
    rows = -(-len(images) // columns)
    page = Image.new("RGB", (_MARGIN + min(columns, len(images)) * step_x, _MARGIN + rows * step_y), _PAPER)
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(_TEXT)
    for index, (image, caption) in enumerate(zip(images, captions, strict=True)):
        row, column = divmod(index, columns)
        left, top = _MARGIN + column * step_x, _MARGIN + row * step_y
        page.paste(_mounted(image, width, height), (left, top))
        pen.multiline_text((left + 1, top + height + 4), caption, fill=_INK, font=font, spacing=_LEADING)
    return np.asarray(page)


def jpeg(image: ImageArray) -> bytes:
    """The image as the bytes of a JPEG."""
    content = io.BytesIO()
    Image.fromarray(image).save(content, "JPEG", quality=_JPEG_QUALITY)
    return content.getvalue()


def write_jpeg(path: Path, image: ImageArray) -> None:
    path.write_bytes(jpeg(image))


def _text_height(caption: str) -> int:
    return 6 + len(caption.split("\n")) * (_TEXT + _LEADING) if caption else 0


def _mounted(image: ImageArray, width: int, height: int) -> Image.Image:
    """The image, shrunk if it must be, in the middle of a mat of width x height."""
    picture = ImageOps.contain(Image.fromarray(image), (width, height), Image.Resampling.LANCZOS)
    if image.shape[0] <= height and image.shape[1] <= width:
        picture = Image.fromarray(image)
    mat = Image.new("RGB", (width, height), _MAT)
    mat.paste(picture, ((width - picture.width) // 2, (height - picture.height) // 2))
    return mat
