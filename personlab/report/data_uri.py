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
    while True:
        small, file = pixels.copy(), io.BytesIO()
        small.thumbnail((side, side))
        small.save(file, "JPEG", quality=85)
        if file.tell() <= budget or side <= _SMALLEST:
            return _uri("image/jpeg", file.getvalue())
        side = side * 3 // 4


def svg(drawing: str) -> str:
    return _uri("image/svg+xml", drawing.encode())


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
