"""Pictures as data URIs, for pages without files of their own."""

import base64
import io
from pathlib import Path

from PIL import Image

_LARGEST, _SMALLEST = 1600, 64  # longest side, pixels


def jpeg(picture: Path, budget: int) -> str:
    """The picture as a JPEG of at most `budget` bytes, scaled down as far as that needs."""
    side = _LARGEST
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
