"""The command `serve`."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.types import PositiveInt

from personlab import params
from personlab.errors import UserError


def serve(
    *,
    weights: Annotated[
        Path | None, Parameter(help="Checkpoint (*.safetensors). [default: models/champion]")
    ] = None,
    host: Annotated[
        str, Parameter(help="Address to listen at; others than this machine's open it.")
    ] = "127.0.0.1",
    port: Annotated[PositiveInt, Parameter(help="Port to listen at.")] = 8765,
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
    from personlab.registry.models import WEIGHTS, Registry
    from personlab.serving.app import make_app
    from personlab.serving.model import Served

    registry, infer = Registry(Path.cwd()), params.Infer(sides=(side,), stride=stride)

    def find() -> Path:
        champion = None if weights else registry.champion()
        if champion is None and weights is None:
            raise UserError("no model has been promoted here; name one with --weights")
        return champion.folder / WEIGHTS if champion else Path(str(weights))

    served = Served(find, lambda path: Predictor.from_checkpoint(path, infer), queue=queue)
    served.predictor()  # fails now rather than at the first request
    print(f"http://{host}:{port}")
    uvicorn.run(make_app(served), host=host, port=port, log_level="warning")
