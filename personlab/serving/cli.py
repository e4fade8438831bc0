"""The command `serve`."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.types import PositiveInt, UInt16

from personlab import params
from personlab.inference.weights import DEFAULT_NETWORK, find


def serve(
    *,
    weights: Annotated[
        str | None,
        Parameter(
            help="Checkpoint (*.safetensors), or a name of 'personlab weights list'. May be a URI. "
            f"[default: models/champion, else {DEFAULT_NETWORK}]"
        ),
    ] = None,
    host: Annotated[
        str, Parameter(help="Address to listen at; another than this machine's own opens the port to others.")
    ] = "127.0.0.1",
    port: Annotated[UInt16, Parameter(help="Port to listen at.")] = 8765,
    side: Annotated[PositiveInt, Parameter(help="Longest side of the network's input, in pixels.")] = 801,
    stride: Annotated[params.Stride, Parameter(help="Output stride: 8 is slower and finds more.")] = 16,
    queue: Annotated[PositiveInt, Parameter(help="Requests that may wait; more are answered 429.")] = 16,
) -> None:
    """Serve a page to try a model with, and its JSON API.

    Reads weights; writes nothing. POST an image file to /predict; /openapi.json describes the answer. A newly
    promoted champion is served without a restart. Ctrl-C ends it.
    """
    import uvicorn

    from personlab.predictor import Predictor
    from personlab.serving.app import make_app
    from personlab.serving.model import Served

    infer = params.Infer(sides=(side,), stride=stride)
    named = find(weights, Path.cwd()) if weights else None  # a download, of a URI
    served = Served(
        lambda: named or find(None, Path.cwd()), lambda path: Predictor.from_checkpoint(path, infer), queue
    )
    served.predictor()  # fails now rather than at the first request
    print(f"http://{host}:{port}")
    uvicorn.run(make_app(served), host=host, port=port, log_level="warning")
