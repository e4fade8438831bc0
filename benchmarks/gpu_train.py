"""Training on a GPU: parity with the CPU, images/s, share of the card's peak, and the AP reached.

    python -m benchmarks.gpu_train [--backbone resnet50] [--crop 385] [--batch 16] [--steps 2000]
                                   [--json FILE]

Needs a CUDA device and the shards of the project (`dvc repro targets`). In order:

- parity: one network on the CPU and on the GPU, both in float32 (TF32 off): fields, losses, poses;
- rate: the measured rate of bfloat16 matrix products of the card, and that of training steps (operations
counted by
  PyTorch's FlopCounterMode) in TF32, in bfloat16, and in bfloat16 compiled;
- training: `--steps` steps in bfloat16 as in the stage `train`, without Ray, and the AP of the averaged
weights on the
  validation images.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from torch.utils.flop_counter import FlopCounterMode

from personlab import params
from personlab.codec.decode import Level
from personlab.codec.encode import encode
from personlab.codec.fields import FIELDS, stack
from personlab.data.example import Example
from personlab.data.images import pixels
from personlab.data.loader import load_batches
from personlab.metrics.coco import ground_truth, match
from personlab.model.losses import Objective
from personlab.model.network import PersonLab, build
from personlab.predictor import Predictor, decoder
from personlab.skeleton import COCO_PERSON
from personlab.tables import shards
from personlab.training import engine
from personlab.training.engine import Average, Batch, Supervised
from personlab.utils.prefetch import prefetch

IMAGES, TARGETS = Path("data/ingest"), Path("data/targets")
GPU, CPU = torch.device("cuda"), torch.device("cpu")


@dataclass(frozen=True)
class Parity:
    """Largest absolute differences between CPU and GPU."""

    probabilities: float
    offsets_px: float
    loss: float  # relative, of the total
    people: tuple[int, int]  # poses found on the CPU, on the GPU
    keypoints_px: float  # of the poses' keypoints; NaN if the counts differ


@dataclass(frozen=True)
class Rate:
    """How fast training steps are on batches that already lie on the GPU."""

    variant: str
    images_per_s: float
    tflops: float
    share_of_card: float  # of the measured rate of bfloat16 matrix products


def main() -> None:
    options = _options()
    if not torch.cuda.is_available():
        sys.exit("benchmarks.gpu_train: no CUDA device here; nothing was run")
    console = Console()
    settings = _settings(options)
    console.print(f"{torch.cuda.get_device_name()}, {options.backbone}, crop {options.crop}")
    agreement = parity(settings)
    console.print(agreement)
    card = matrix_rate()
    console.print(f"bfloat16 matrix products: {card / 1e12:.0f} TFLOP/s")
    rates = [
        rate("TF32", settings, card, precision="float32", compiled=False),
        rate("bfloat16", settings, card, precision="bfloat16", compiled=False),
        rate("bfloat16, compiled", settings, card, precision="bfloat16", compiled=True),
    ]
    for each in rates:
        console.print(each)
    network, images_per_s = train(settings)
    scores = evaluate(network, settings)
    console.print(f"training, data included: {images_per_s:.1f} images/s; AP {scores}")
    if options.json:
        found = {
            "device": torch.cuda.get_device_name(),
            "parity": asdict(agreement),
            "matrix_tflops": card / 1e12,
            "rates": [asdict(each) for each in rates],
            "images_per_s": images_per_s,
            "ap": scores,
        }
        options.json.write_text(json.dumps(found, indent=1) + "\n")


def _settings(options: argparse.Namespace) -> params.Params:
    """The project's parameters, with the paper's network and a larger input."""
    project = params.load(Path("params.yaml"))
    return project.model_copy(
        update={
            "model": params.Model(backbone=options.backbone, width=64, radius=project.model.radius),
            "train": project.train.model_copy(
                update={
                    "crop": options.crop,
                    "batch": options.batch,
                    "steps": options.steps,
                    "person_sizes": (60.0, 0.9 * options.crop),
                    "precision": "bfloat16",
                }
            ),
            "infer": project.infer.model_copy(update={"sides": (577,)}),
        }
    )


def parity(settings: params.Params) -> Parity:
    """One batch, forward, loss and decode, on both devices in full float32."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(0)
    network = _network(settings).eval()
    batch = next(_batches(settings, CPU))
    objective = _objective(settings)
    fields, losses, poses = [], [], []
    for device in (CPU, GPU):
        network.to(device)
        with torch.inference_mode():
            found = network(batch.images.to(device))
            losses.append(objective(found, batch.targets.to(device)).total(objective.weights).item())
            # the targets are decoded: random weights find almost no one
            wanted = batch.targets.to(device).fields
            fields.append(found.probabilities().to(CPU))
            side = settings.train.crop
            level = Level(wanted.image(0), 1.0)
            poses.append(decoder(network, settings.decode).poses([level], height=side, width=side))
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    apart = {
        name: (one - other).abs().max().item()
        for name, one, other in zip(FIELDS, *(f.tensors().values() for f in fields), strict=True)
    }
    here, there = (found.keypoints.to(CPU) for found in poses)
    moved = here - there if len(here) == len(there) else torch.tensor(float("nan"))
    return Parity(
        probabilities=max(apart["heatmap"], apart["seg"]),
        offsets_px=max(apart["short"], apart["mid"], apart["long"]),
        loss=abs(losses[1] / losses[0] - 1),
        people=(len(here), len(there)),
        keypoints_px=moved.abs().max().item(),
    )


def matrix_rate(size: int = 8192, rounds: int = 20) -> float:
    """Operations a second of bfloat16 matrix products, the card's own best."""
    a, b = (torch.randn(size, size, device=GPU, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / _seconds(lambda: a @ b, rounds)


def rate(
    variant: str, settings: params.Params, card: float, *, precision: params.Precision, compiled: bool
) -> Rate:
    """Steps over one batch that lies on the GPU, again and again."""
    network = _network(settings)
    supervised = Supervised(network, _objective(settings)).to(GPU)
    batch = next(_batches(settings, GPU))
    optimizer = engine.optimizer(network, settings.train)
    with FlopCounterMode(display=False) as counter:
        engine.train_step(supervised, batch, optimizer, precision=precision)
    model = torch.compile(supervised) if compiled else supervised
    seconds = _seconds(lambda: engine.train_step(model, batch, optimizer, precision=precision), rounds=30)
    flops = counter.get_total_flops() / seconds
    return Rate(variant, settings.train.batch / seconds, flops / 1e12, flops / card)


def train(settings: params.Params) -> tuple[PersonLab, float]:
    """The trained network with its averaged weights, and images/s with the data's preparation."""
    network = _network(settings)
    supervised = Supervised(network, _objective(settings)).to(GPU)
    optimizer = engine.optimizer(network, settings.train)
    average = Average(start=round(settings.train.average_from * settings.train.steps))
    torch.cuda.synchronize()
    start = time.perf_counter()
    batches = track(_batches(settings, GPU), "training", total=settings.train.steps, transient=True)
    for step, batch in enumerate(batches, start=1):
        engine.train_step(supervised, batch, optimizer, precision=settings.train.precision)
        average.update(network, step)
    torch.cuda.synchronize()
    images = settings.train.steps * settings.train.batch
    seconds = time.perf_counter() - start
    network.load_state_dict(average.of(network))
    return network.eval(), images / seconds


def evaluate(network: PersonLab, settings: params.Params) -> dict[str, float]:
    """AP on the validation shards."""
    finer = PersonLab(settings.model, stride=settings.infer.stride, skeleton=COCO_PERSON).to(GPU).eval()
    finer.load_state_dict(network.state_dict())
    predictor = Predictor(finer, decoder(finer, settings.decode), settings.infer.sides, GPU)
    groups = shards.row_groups(IMAGES / "val")
    found = {row["image_id"]: predictor(pixels(row)) for group in groups for row in group.read().to_pylist()}
    truth = ground_truth(shards.annotated(IMAGES / "val", TARGETS / "val").values(), skeleton=COCO_PERSON)
    budget = settings.decode.max_people
    return {task: match(truth, found, task, budget).columns()["AP"] for task in ("keypoints", "segm")}


def _network(settings: params.Params) -> PersonLab:
    torch.manual_seed(0)
    return build(settings.model, stride=settings.train.stride, skeleton=COCO_PERSON).train()


def _objective(settings: params.Params) -> Objective:
    return Objective.of(settings.model, settings.train, skeleton=COCO_PERSON)


def _batches(settings: params.Params, device: torch.device) -> Iterator[Batch]:
    """The training batches; targets are rasterised on `device`."""
    threads = os.cpu_count() or 1
    folders = IMAGES / "train", TARGETS / "train"
    examples = load_batches(
        *folders,
        settings.train,
        rank=0,
        workers=1,
        done=0,
        threads=threads,
        overlap=True,
        skeleton=COCO_PERSON,
    )
    return prefetch(lambda each: _batch(each, settings, device), examples, threads=1, depth=2)


def _batch(examples: list[Example], settings: params.Params, device: torch.device) -> Batch:
    people = [each.people.to(device) for each in examples]
    targets = [
        encode(p, stride=settings.train.stride, radius=settings.model.radius, skeleton=COCO_PERSON)
        for p in people
    ]
    images = torch.stack([each.image for each in examples]).to(device)
    return Batch(images, stack(targets), [each.image_id for each in examples])


def _seconds(work: Callable[[], object], rounds: int) -> float:
    """Mean duration on the GPU, after a few rounds that do not count."""
    for _ in range(5):
        work()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(rounds):
        work()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / rounds


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--crop", type=int, default=385)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    return parser.parse_args()


if __name__ == "__main__":
    main()
