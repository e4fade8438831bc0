"""The HTTP application: a page at /, predictions at POST /predict, their schema at /openapi.json.

The body of a request is the image file itself. Nothing is read from or written to files.
"""

import base64
from pathlib import Path
from typing import Annotated, Final

from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, ConfigDict, Field

from personlab import __version__
from personlab.errors import UserError
from personlab.inference.results import named_record
from personlab.people import SHOWN
from personlab.serving.model import BusyError, Served

LARGEST_BODY: Final = 20_000_000  # bytes
_MOST_DISCARDED: Final = 250_000_000  # bytes of a larger body, before the connection is closed
_PAGE: Final = Path(__file__).with_name("templates") / "page.html"


class Answered(BaseModel):
    """A part of an answer: keys of `named_record` without a field are errors."""

    model_config = ConfigDict(extra="forbid")


class Keypoint(Answered):
    """A position in pixels of the image, and its score in [0, 1]."""

    x: float
    y: float
    score: float


class Mask(Answered):
    """COCO's compressed run lengths."""

    size: tuple[int, int] = Field(description="Height, width")
    counts: str


class Person(Answered):
    """A detected person; without `segmentation` if the network finds poses only."""

    score: float
    keypoints: dict[str, Keypoint]
    bbox: tuple[float, float, float, float] = Field(description="x, y, width, height")
    segmentation: Mask | None = None


class Prediction(Answered):
    """The people of an image, best first."""

    height: int
    width: int
    people: list[Person]
    shown: int = Field(description=f"People with a score of at least {SHOWN:g}")
    seconds: float = Field(description="Of decoding and prediction")
    picture: str | None = Field(default=None, description="JPEG in base64, if asked for")


def make_app(served: Served) -> FastAPI:
    """The application that serves a model."""
    # the usual pages of documentation load code from other servers
    app = FastAPI(title="personlab", version=__version__, docs_url=None, redoc_url=None)

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    def page() -> str:
        return _PAGE.read_text(encoding="utf-8")

    @app.post(
        "/predict",
        openapi_extra={"requestBody": {"required": True, "content": {"image/*": {}}}},
        responses={
            400: {"description": "The body is not an image that can be read, or has too many pixels"},
            413: {"description": f"The body has more than {LARGEST_BODY} bytes"},
            415: {"description": "The body is a form, not an image"},
            429: {"description": "Too many requests are waiting; try again"},
        },
        response_model_exclude_none=True,
    )
    async def predict(
        request: Request,
        picture: Annotated[
            bool, Query(description=f"Also draw the people with a score of at least {SHOWN:g}")
        ] = False,
    ) -> Prediction:
        """Find the people in an image, which is the body of the request."""
        content = await _body(request)
        if request.headers.get("content-type", "").startswith("multipart/"):
            raise HTTPException(415, "a form; send the file itself: curl --data-binary @photo.jpg")
        try:
            answer = await served.predict(content, draw=picture)
        except BusyError:
            raise HTTPException(
                429, "too many requests are waiting; try again", {"Retry-After": "1"}
            ) from None
        except UserError as error:
            raise HTTPException(400, f"the body {error}") from None
        result = answer.result
        return Prediction(
            height=result.height,
            width=result.width,
            people=named_record(result)["people"],
            shown=len(result.shown),
            seconds=round(answer.seconds, 4),
            picture=base64.b64encode(answer.picture).decode() if answer.picture else None,
        )

    return app


async def _body(request: Request) -> bytes:
    """The body of a request.

    The rest of one that is too large is discarded: a client that is still sending would see a closed
    connection instead of the answer.

    Raises:
        HTTPException: it is too large.
    """
    parts, size = list[bytes](), 0
    async for part in request.stream():
        size += len(part)
        if size > _MOST_DISCARDED:
            break
        if size > LARGEST_BODY:
            parts.clear()
        else:
            parts.append(part)
    if size > LARGEST_BODY:
        raise HTTPException(413, f"the body has more than {LARGEST_BODY} bytes", {"Connection": "close"})
    return b"".join(parts)
