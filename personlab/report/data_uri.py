"""Pictures inside a text: as URIs that hold them, for pages that may ask nobody for a file."""

import base64
import io
from pathlib import Path

from PIL import Image

_SIDE = 1600  # pixels
_SMALLEST = 64


def jpeg(picture: Path, budget: int) -> str:
    """The picture as a JPEG of at most `budget` bytes, smaller in pixels where it must be."""
    side = _SIDE
    with Image.open(picture) as opened:
        pixels = opened.convert("RGB")
    while len(content := _encode(pixels, side)) > budget and side > _SMALLEST:
        side = side * 3 // 4
    return _uri("image/jpeg", content)


def svg(drawing: str) -> str:
    return _uri("image/svg+xml", drawing.encode())


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _encode(pixels: Image.Image, side: int) -> bytes:
    small = pixels.copy()
    small.thumbnail((side, side))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=85)
    return file.getvalue()
