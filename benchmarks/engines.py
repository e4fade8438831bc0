"""Time of a network in engines that run it on a CPU, beside PyTorch as `predict` uses it.

    pip install onnxruntime openvino
    python -m benchmarks.engines --weights FILE [--side 801] [--stride 8] [--threads 1] [--rounds 10]
                                 [--json FILE]

One image of noise, 4:3, at a time. All engines take turns in each round; the ratio is that of the medians.
The difference is the largest of any field, offsets in pixels. Engines that are not installed are left out.
`predict` runs as many images side by side as there are threads, each with one: one thread is its case.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from personlab.codec.fields import padded_side
from personlab.model.network import PersonLab
from personlab.params import Infer
from personlab.predictor import Predictor
from personlab.utils import malloc
from personlab.weights import onnx

Outputs = list[npt.NDArray[np.float32]]
Engine = Callable[[Tensor], Outputs]


@dataclass(frozen=True)
class Timing:
    engine: str
    milliseconds: float
    ratio: float  # eager's time / this one's: above 1 is faster
    difference: float


def main() -> None:
    options = _options()
    malloc.disable_trim()
    torch.set_num_threads(options.threads)
    infer = Infer(stride=options.stride, precision="float32")
    network = Predictor.from_checkpoint(options.weights, infer).network
    height, width = (padded_side(side, options.stride) for side in (options.side * 3 // 4, options.side))
    image = torch.randint(0, 256, (1, 3, height, width), generator=torch.Generator().manual_seed(0)).float()
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "network.onnx"
        onnx.export(options.weights, model, stride=options.stride)
        timings = measure(dict(engines(network, model, image, options.threads)), image, options.rounds)
    table = Table(
        "engine",
        "ms",
        "times as fast",
        "largest difference",
        title=f"{width} x {height}, stride {options.stride}",
    )
    for each in timings:
        table.add_row(each.engine, f"{each.milliseconds:.1f}", f"{each.ratio:.2f}", f"{each.difference:.1e}")
    Console().print(table)
    if options.json:
        options.json.write_text(json.dumps([asdict(each) for each in timings], indent=1) + "\n")


def measure(engines: dict[str, Engine], image: Tensor, rounds: int) -> list[Timing]:
    """The first engine is what the others are compared with."""
    outputs = {name: run(image) for name, run in engines.items()}
    times: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(rounds):
        for name, run in engines.items():
            start = time.perf_counter()
            run(image)
            times[name].append(1e3 * (time.perf_counter() - start))
    medians = {name: statistics.median(each) for name, each in times.items()}
    first = next(iter(engines))
    return [
        Timing(
            name,
            median,
            medians[first] / median,
            max(float(np.abs(a - b).max()) for a, b in zip(outputs[first], outputs[name], strict=True)),
        )
        for name, median in medians.items()
    ]


def engines(network: PersonLab, model: Path, image: Tensor, threads: int) -> Iterator[tuple[str, Engine]]:
    """The engines that are installed, PyTorch's first."""
    eager = onnx.TupleOutput(network).eval()
    yield "PyTorch", _of_torch(eager)
    yield "torch.compile", _of_torch(torch.compile(eager, dynamic=False))
    with torch.inference_mode():
        traced = torch.jit.trace(eager, image, check_trace=False)
        frozen = torch.jit.optimize_for_inference(torch.jit.freeze(traced))
    yield "TorchScript, frozen", _of_torch(frozen)
    try:
        import onnxruntime
    except ImportError:
        pass
    else:
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads, settings.inter_op_num_threads = threads, 1
        session = onnxruntime.InferenceSession(str(model), settings, providers=["CPUExecutionProvider"])
        yield "ONNX Runtime", lambda each: session.run(None, {"image": each.numpy()})
    try:
        import openvino
    except ImportError:
        return
    limits = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    compiled = openvino.Core().compile_model(str(model), "CPU", limits)
    yield "OpenVINO", lambda each: list(compiled({"image": each.numpy()}).values())


def _of_torch(module: Callable[[Tensor], tuple[Tensor, ...]]) -> Engine:
    @torch.inference_mode()
    def run(image: Tensor) -> Outputs:
        return [field.numpy() for field in module(image)]

    return run


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.engines", description="Compare engines that run a network on a CPU."
    )
    parser.add_argument("--weights", type=Path, required=True, metavar="FILE")
    parser.add_argument("--side", type=int, default=801, metavar="N")
    parser.add_argument("--stride", type=int, default=8, choices=[8, 16, 32], metavar="S")
    parser.add_argument("--threads", type=int, default=1, metavar="N")
    parser.add_argument("--rounds", type=int, default=10, metavar="N")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the table here")
    return parser.parse_args()


if __name__ == "__main__":
    main()
