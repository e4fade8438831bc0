"""The command `serve`."""

import socket
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.types import PositiveInt, UInt16
from cyclopts.validators import Number

from personlab import params
from personlab.errors import UserError
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
    side: Annotated[
        int,
        Parameter(
            validator=Number(gt=0, lte=params.LARGEST_SIDE),
            help="Longest side of the network's input, in pixels.",
        ),
    ] = 801,
    stride: Annotated[params.Stride, Parameter(help="Output stride: 8 is slower and finds more.")] = 16,
    queue: Annotated[PositiveInt, Parameter(help="Requests that may wait; more are answered 429.")] = 16,
    replicas: Annotated[
        PositiveInt | None,
        Parameter(
            help="Serve with Ray Serve, so many replicas of the model on the cluster at RAY_ADDRESS, "
            "else on this machine; the queue is that of each."
        ),
    ] = None,
) -> None:
    """Serve a page to try a model with, and its JSON API.

    Reads weights; writes nothing. POST an image file to /predict; /openapi.json describes the answer. A newly
    promoted champion is served without a restart. Ctrl-C ends it.
    """
    import uvicorn
    from fastapi import FastAPI

    from personlab.distributed.replicas import serve_replicas
    from personlab.predictor import Predictor
    from personlab.serving.app import make_app
    from personlab.serving.model import Served

    infer, root = params.Infer(sides=(side,), stride=stride), Path.cwd()
    named = find(weights, root) if weights else None  # a download, of a URI

    def make() -> FastAPI:
        model = Served(
            lambda: named or find(None, root), lambda path: Predictor.from_checkpoint(path, infer), queue
        )
        model.predictor()  # fails now rather than at the first request
        return make_app(model)

    if replicas:
        serve_replicas(make, replicas=replicas, requests=2 * queue, host=host, port=port)
    else:
        check_address(host, port)
        app = make()
        print(f"http://{host}:{port}", flush=True)
        uvicorn.run(app, host=host, port=port, log_level="warning")


def check_address(host: str, port: int) -> None:
    """Check that a server can listen at an address; uvicorn logs an error of its own.

    Raises:
        UserError: it is not this machine's, or the port is taken.
    """
    try:
        family, *_ = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM)[0]
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        reason = str(error.strerror).partition(" (")[0]
        raise UserError(f"{host}:{port}: {reason}; choose another --host or --port") from None
