"""A cost model of the pipeline: durations of training on COCO and of inference on very many photos, and why.

    python -m benchmarks.scaling [name=value ...]

Prints the tables of docs/notes/scaling.md. The inputs are the fields of `Measured` and `Assumed`; any of them
can be set, e.g. `gpu_tflops=120 cores_per_gpu=12`. The model is arithmetic: durations in sequence add up, of
parallel ones the longest counts, there is no random waiting, and the CPUs of a cluster are as fast as the one
measured.
"""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Final

DAY: Final = 86_400.0
GB: Final = 1e9


@dataclass(frozen=True)
class Measured:
    """Seconds of one CPU, bytes, and operations, for an image unless stated otherwise.

    Measured by `python -m benchmarks.costs --weights bodypix-mobilenet-075.safetensors`, the last four by
    `python -m benchmarks.loader`; docs/notes/scaling.md describes the machine.
    """

    ingest_s: float = 0.0055
    impute_s: float = 0.0028  # a person: decode, cut
    targets_s: float = 0.0022
    evaluate_s: float = 0.0045
    decode_s: float = 0.0025
    large_codec_s: float = 0.0132  # poses and masks at 1401 px, stride 8
    large_rle_s: float = 0.0010
    mobile_codec_s: float = 0.0024  # at 513 px, stride 16
    mobile_rle_s: float = 0.0010
    jpeg_bytes: float = 162_000
    shard_bytes: float = 163_000
    prediction_bytes: float = 2_600
    train_tflop: float = 0.790  # ResNet-101, 801 px, stride 16, forward and backward
    infer_tflop: float = 2.040  # the same network, 1401 px, stride 8, forward
    mobile_tflop: float = 0.0029  # MobileNet 0.75, 513 px, stride 16, forward
    estimator_train_tflop: float = 0.104  # a crop
    impute_tflop: float = 0.035  # a person
    parameters: float = 42_961_260
    listing_s: float = 4.8e-6
    listing_bytes: float = 393  # of memory
    inputs_bytes: float = 3.1
    footer_bytes: float = 263  # a part, read by every actor
    footer_s: float = 2.7e-6  # a part, of every actor when it starts
    manifest_bytes: float = 173  # a part
    part_s: float = 0.0083  # a part, of the driver
    part_bytes: float = 577  # a part, in the object store

    loader_s: float = 0.0083  # read, decode, draw, masks at 801 px
    rasterise_s: float = 0.0039  # of the fields, on a processor
    crop_bytes: float = 1_925_000
    fields_bytes: float = 1_693_000


@dataclass(frozen=True)
class Assumed:
    """Inputs that were not measured."""

    gpu_tflops: float = 60.0  # sustained by these networks in bfloat16
    # least time of a forward pass, from launching its layers; a training step takes three times as long
    large_launch_s: float = 0.010
    mobile_launch_s: float = 0.004
    cores_per_gpu: float = 8.0
    gpus_per_node: float = 8.0
    nvlink_bytes: float = 100 * GB  # a second, of a GPU to others of its node, as all-reduce sees it
    network_bytes: float = 3 * GB  # a second and node (25 Gbit/s)
    storage_bytes: float = 10 * GB  # a second, of the storage of the photos
    rasterise_gpu: float = 1.0  # time of rasterising on the GPU, in times of that on a CPU
    part: float = 256.0  # images in it
    # COCO 2017: images with people and all images of train, of val; people without keypoints
    train_images: float = 64_115.0
    all_images: float = 118_287.0
    val_images: float = 5_000.0
    without_keypoints: float = 112_652.0


NETWORKS: Final = ("ResNet-101", "MobileNet")  # at 1401 px, stride 8; at 513 px, stride 16
SPEEDS: Final = (20.0, 60.0, 180.0)  # TFLOP/s
ARCHIVE: Final = 100e6


@dataclass(frozen=True)
class Stage:
    """The duration of a stage and its bottleneck."""

    name: str
    seconds: float
    bound: str


def main() -> None:
    measured, assumed = _given(sys.argv[1:])
    for title, table in tables(measured, assumed).items():
        print(f"## {title}\n\n{table}\n")


def tables(m: Measured, a: Assumed) -> dict[str, str]:
    """All tables, in Markdown, by title."""
    return {
        "Bytes": hops(m, a),
        "COCO train, 8 GPUs": coco_table(m, a),
        "Training on more GPUs": training_table(m, a),
        **{f"100 million photos, {name}": archive_table(m, a, name) for name in NETWORKS},
        "100 million photos, planning": planning_table(m),
    }


# --- COCO ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """Seconds that the parts of a training step take."""

    gpu: float
    exchange: float  # of gradients, after that
    loader: float  # beside both
    rasterise: float  # beside all

    @property
    def seconds(self) -> float:
        return max(self.gpu + self.exchange, self.loader, self.rasterise)

    @property
    def bound(self) -> str:
        """The bottleneck of a step."""
        if self.seconds == self.loader:
            return "loader"
        if self.seconds == self.rasterise:
            return "rasterising"
        return "GPU" if self.gpu >= self.exchange else "exchange"


def step(m: Measured, a: Assumed, gpus: int, batch: int) -> Step:
    """A step of training on so many GPUs, a worker on each."""
    each = batch / gpus
    return Step(
        gpu=max(each * m.train_tflop / a.gpu_tflops, 3 * a.large_launch_s),
        exchange=_exchange_s(m, a, gpus),
        loader=each * m.loader_s / max(1.0, a.cores_per_gpu - 1),
        rasterise=each * m.rasterise_s * a.rasterise_gpu,
    )


def _exchange_s(m: Measured, a: Assumed, gpus: int) -> float:
    """An all-reduce of float32 gradients in a ring, none of it hidden by the backward pass."""
    line = a.nvlink_bytes if gpus <= a.gpus_per_node else a.network_bytes
    return 2 * (gpus - 1) / gpus * 4 * m.parameters / line


def coco(m: Measured, a: Assumed, gpus: int) -> list[Stage]:
    """The stages of configs/coco2017-resnet101.yaml, except `acquire`, which depends on the connection."""
    training, inferring = step(m, a, gpus, batch=8), actor(m, a, "ResNet-101")
    person = m.impute_s + m.impute_tflop / a.gpu_tflops
    return [
        Stage("ingest", (a.all_images + a.val_images) * m.ingest_s, "one processor"),
        Stage("estimator", 100_000 * 64 * m.estimator_train_tflop / a.gpu_tflops, "one GPU"),
        Stage("impute", a.without_keypoints * person / gpus, "decoding and GPU in turn"),
        Stage("targets", (a.train_images + a.val_images) * m.targets_s, "one processor"),
        Stage("train", 1e6 * training.seconds, training.bound),
        Stage("infer", a.val_images * inferring.seconds / gpus, "GPU and processor in turn"),
        Stage("evaluate", a.val_images * m.evaluate_s, "one processor"),
    ]


# --- very many photos ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Actor:
    """Seconds an image of one actor with a GPU."""

    network: float  # on the GPU
    codec: float  # then, on the CPU
    rest: float  # then, on the CPU: run lengths
    decode: float  # in parallel, in one thread: JPEG

    @property
    def seconds(self) -> float:
        return max(self.network + self.codec + self.rest, self.decode)


def actor(m: Measured, a: Assumed, network: str) -> Actor:
    """An actor with one of NETWORKS."""
    large = network == "ResNet-101"
    tflop, launch = (m.infer_tflop, a.large_launch_s) if large else (m.mobile_tflop, a.mobile_launch_s)
    return Actor(
        network=max(tflop / a.gpu_tflops, launch),
        codec=m.large_codec_s if large else m.mobile_codec_s,
        rest=m.large_rle_s if large else m.mobile_rle_s,
        decode=m.decode_s,
    )


def images_per_s(m: Measured, a: Assumed, network: str, gpus: int) -> tuple[float, str]:
    """Images a second of all actors together, and the bottleneck."""
    one = actor(m, a, network)
    bounds = {
        "decoding" if one.seconds == one.decode else "GPU, then processor": gpus / one.seconds,
        "driver": a.part / m.part_s,
        "storage": a.storage_bytes / m.jpeg_bytes,
    }
    return min((rate, bound) for bound, rate in bounds.items())


# --- tables -------------------------------------------------------------------------------------------------


def hops(m: Measured, a: Assumed) -> str:
    """Bytes from one place to the next."""
    rows = [
        ("photo to `ingest`, and to its shard", m.jpeg_bytes, "an image, once"),
        ("shard to a training worker", m.shard_bytes, "an image and epoch"),
        ("training worker to its GPU", m.crop_bytes, "an image; people are points and masks beside it"),
        ("five fields, made on the GPU", m.fields_bytes, "an image"),
        ("gradients, sent by each of 8 workers", 2 * 7 / 8 * 4 * m.parameters, "a step"),
        ("checkpoint to storage", 20 * m.parameters, "1000 steps: weights, momentum, two averages"),
        ("Ray's object store, training", 0.0, "workers read the shards themselves"),
        ("photo to an actor of `infer-batch`", m.jpeg_bytes, "an image, once"),
        ("actor to its part", m.prediction_bytes, "an image; poses and masks"),
        ("Ray's object store, `infer-batch`", m.part_bytes / a.part, f"an image, in parts of {a.part:.0f}"),
    ]
    return _table(("from, to", "bytes", "for"), [(name, _bytes(count), what) for name, count, what in rows])


def coco_table(m: Measured, a: Assumed) -> str:
    """Durations on the 8 GPUs of one machine, at several speeds of a GPU."""
    columns = [coco(m, replace(a, gpu_tflops=speed), 8) for speed in SPEEDS]
    rows = [
        (each[0].name, *(_duration(stage.seconds) for stage in each), each[1].bound)
        for each in zip(*columns, strict=True)
    ]
    rows.append(("all", *(_duration(sum(stage.seconds for stage in column)) for column in columns), ""))
    return _table(("stage", *(f"{speed:.0f} TFLOP/s" for speed in SPEEDS), "takes as long as"), rows)


def training_table(m: Measured, a: Assumed) -> str:
    """A step on more and more GPUs."""
    rows = []
    for gpus, batch in ((1, 8), (8, 8), (8, 64), (16, 16), (256, 256), (256, 2048)):
        one = step(m, a, gpus, batch)
        rate = batch / one.seconds
        times = (f"{1e3 * seconds:.0f}" for seconds in (one.gpu, one.exchange, one.loader, one.rasterise))
        reading = f"{rate * m.shard_bytes / GB:.2f} GB/s"
        rows.append((str(gpus), str(batch), *times, one.bound, f"{rate:,.0f}", reading))
    headings = ("GPUs", "batch", "GPU ms", "exchange ms", "loader ms", "rasterising ms", "takes as long as")
    return _table((*headings, "images/s", "shards read"), rows)


def archive_table(m: Measured, a: Assumed, network: str) -> str:
    """100 million photos: the time of an actor, and the load of storage and driver."""
    rows = []
    # a small network takes as long on any GPU: the launches of its layers
    speeds = SPEEDS if network == "ResNet-101" else (a.gpu_tflops,)
    for gpus in (8, 256):
        for speed in speeds:
            assumed = replace(a, gpu_tflops=speed)
            one = actor(m, assumed, network)
            rate, bound = images_per_s(m, assumed, network, gpus)
            turns = f"{1e3 * one.network:.0f} + {1e3 * one.codec:.0f} + {1e3 * one.rest:.0f}"
            asked = (f"{rate * m.jpeg_bytes / GB:.2f} GB/s", f"{rate / a.part * m.part_s:.1%}")
            pace = (bound, f"{rate:,.0f}", _duration(ARCHIVE / rate))
            rows.append((str(gpus), f"{speed:.0f}", turns, *pace, *asked))
    headings = ("GPUs", "TFLOP/s", "network + codec + run lengths, ms", "takes as long as", "images/s")
    return _table((*headings, "duration", "photos read", "driver's processor"), rows)


def planning_table(m: Measured) -> str:
    """Planning and bookkeeping of 100 million photos, with any number of actors."""
    rows = []
    for size in (64, 256, 1024):
        parts = ARCHIVE / size
        listing = f"{_duration(ARCHIVE * m.listing_s)}, {_bytes(ARCHIVE * m.listing_bytes)}"
        index = f"{_duration(parts * m.footer_s)}, {_bytes(parts * m.footer_bytes)}"
        kept = (_bytes(parts * m.part_bytes), _bytes(parts * m.manifest_bytes))
        rows.append((str(size), f"{parts:,.0f}", listing, index, _duration(parts * m.part_s), *kept))
    headings = ("images a part", "parts", "listing", "index of the list, each actor", "driver's work")
    return _table((*headings, "object store", "manifest"), rows)


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _duration(seconds: float) -> str:
    for size, unit in ((DAY, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}" if seconds >= 10 * size else f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def _bytes(count: float) -> str:
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= size:
            return f"{count / size:.0f} {unit}" if count >= 10 * size else f"{count / size:.1f} {unit}"
    return f"{count:.0f} B"


def _given(words: Sequence[str]) -> tuple[Measured, Assumed]:
    """The inputs, with those of the command line replaced."""
    given = {name: float(value) for name, _, value in (word.partition("=") for word in words)}
    of = {each: {field.name for field in fields(each)} & given.keys() for each in (Measured, Assumed)}
    if unknown := given.keys() - of[Measured] - of[Assumed]:
        sys.exit(f"benchmarks.scaling: no inputs: {', '.join(sorted(unknown))}")
    measured = Measured(**{name: given[name] for name in of[Measured]})
    return measured, Assumed(**{name: given[name] for name in of[Assumed]})


if __name__ == "__main__":
    main()
