"""What a GPU does: parity with the CPU, training and inference rates, and the share of the card's peak.

    python -m benchmarks.gpu [--device cuda] [--rounds 30] [--backbone resnet101] [--crop 801] [--batch 8]
                             [--inputs 801x529 1401x925] [--json FILE]

Renders 64 training images. Packages: torch, numpy, numba, opencv-python-headless, pyarrow, pandera[pyarrow],
pydantic, pycocotools, safetensors, pillow, PyYAML, tqdm, cyclopts, rich. About five minutes on a fast card;
each figure is printed, and written to FILE, once it is measured. In order:

- parity: one network on the CPU and on the device, both in float32 without TF32: fields, loss, and the people
  decoded from the same targets;
- matrix products in bfloat16: the rate that the card reaches at best;
- inference at stride 8: resizing, network and copy to the host in every precision, of one image and of
  as many together as the card's memory holds, at most 32; and decoding ten people's poses and masks
  from made fields of a square of that width. The paper (appendix A.1) reports 464 ms for all of it at
  801x529 with ResNet-101 on a Titan X;
- training steps in bfloat16 with averaged weights and batches prepared during the steps, as the stage `train`
  does; then on a batch that lies on the device, in float32, in bfloat16, and in bfloat16 compiled, which
  needs a C compiler. Operations are counted by PyTorch's FlopCounterMode. A warning names what in a step
  waits for the card.

"float32" is PyTorch's default on GPUs: convolutions in TF32. `--device cpu` runs the same code without a GPU,
to try it: choose small sizes.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import scenes, trial
from personlab import params
from personlab.codec.decode import Level
from personlab.codec.fields import FIELDS, Fields
from personlab.data.loader import load_batches
from personlab.data.transform import ImageArray
from personlab.model.losses import Objective
from personlab.model.network import PersonLab, build
from personlab.predictor import Predictor, decoder
from personlab.skeleton import COCO_PERSON
from personlab.training import engine
from personlab.training.batches import batches
from personlab.training.engine import Average, Batch, Supervised

CPU = torch.device("cpu")
PEOPLE = 10


@dataclass(frozen=True)
class Trial:
    """What is measured, and on which device."""

    device: torch.device
    model: params.Model
    train: params.Train
    data: Path  # of a project, up to `targets`
    rounds: int

    def network(self) -> PersonLab:
        torch.manual_seed(0)
        return build(self.model, stride=self.train.stride, skeleton=COCO_PERSON)

    def objective(self) -> Objective:
        return Objective.of(self.model, self.train, skeleton=COCO_PERSON)

    def batches(self, device: torch.device) -> Iterator[Batch]:
        """Training batches on a device, as the stage `train` makes them."""
        examples = load_batches(
            self.data / "ingest/train",
            self.data / "targets/train",
            self.train,
            rank=0,
            workers=1,
            done=0,
            threads=max(1, (os.cpu_count() or 1) - 1),
            overlap=device.type == "cuda",
            skeleton=COCO_PERSON,
        )
        return batches(examples, self.network(), device)

    def seconds(self, work: Callable[[], object]) -> float:
        """Mean duration, after a few rounds that do not count."""
        for _ in range(min(5, self.rounds)):
            work()
        self.wait()
        start = time.perf_counter()
        for _ in range(self.rounds):
            work()
        self.wait()
        return (time.perf_counter() - start) / self.rounds

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


@dataclass(frozen=True)
class Parity:
    """Largest absolute differences between CPU and device."""

    probabilities: float
    offsets_px: float
    loss: float  # relative, of the total
    people: tuple[int, int]  # decoded on the CPU, and from the device's targets
    keypoints_px: float  # of these people; NaN if the counts differ


@dataclass(frozen=True)
class Card:
    """What the card reaches at best."""

    matrix_tflops: float  # of bfloat16 matrix products


@dataclass(frozen=True)
class Training:
    """How fast training steps are."""

    variant: str
    images_per_s: float
    tflops: float
    share_of_card: float  # of Card.matrix_tflops


@dataclass(frozen=True)
class Inference:
    """Milliseconds an image."""

    size: str
    together: int  # images that pass the network together
    precision: str
    network: float  # resizing, network, copy to the host
    decoding: float  # ten people with masks
    images_per_s: float  # one after the other
    codec_share: float


Figures = Parity | Card | Training | Inference


def main() -> None:
    options = _options()
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        sample = {"sample": {"train_images": 64, "val_images": 2}}
        trial.project(Path(folder), Path(folder) / "none", acquire=sample)
        this = Trial(
            torch.device(options.device),
            params.Model(backbone=options.backbone, width=options.width, radius=32),
            params.Train(
                crop=options.crop,
                batch=options.batch,
                person_sizes=(0.3 * options.crop, 0.9 * options.crop),
                steps=10**6,
            ),
            Path(folder) / "data",
            options.rounds,
        )
        name = torch.cuda.get_device_name() if this.device.type == "cuda" else "CPU"
        console.print(f"{name}, torch {torch.__version__}, {options.backbone}, crop {options.crop}")
        found: list[dict[str, Any]] = []
        for figures in measure(this, options.inputs):
            console.print(figures)
            found.append({"what": type(figures).__name__} | asdict(figures))
            if options.json:
                options.json.write_text(json.dumps({"device": name, "figures": found}, indent=1) + "\n")


def measure(this: Trial, inputs: Sequence[tuple[int, int]]) -> Iterator[Figures]:
    """All figures, those last that are most likely to fail."""
    yield parity(this)
    card = matrix_rate(this)
    yield card
    for width, height in inputs:
        yield from images(this, width, height)
    yield loaded_steps(this, card)
    yield from resident_steps(this, card)


# --- parity -------------------------------------------------------------------------------------------------


def parity(this: Trial) -> Parity:
    """One batch, forward, loss and decode, on both devices in full float32."""
    allowed, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    network = _settled(this.network(), this.train.crop)
    objective, batch = this.objective(), next(this.batches(CPU))
    rasterised = next(this.batches(this.device))
    fields, losses, poses = [], [], []
    for device, targets in ((CPU, batch.targets), (this.device, rasterised.targets)):
        network.to(device)
        with torch.inference_mode():
            found = network(batch.images.to(device))
            losses.append(objective(found, targets).total(objective.weights).item())
        fields.append(found.probabilities().to(CPU).tensors())
        poses.append(_keypoints(this, targets.fields))
    torch.backends.cudnn.allow_tf32 = allowed
    apart = {name: (fields[0][name] - fields[1][name]).abs().max().item() for name in FIELDS}
    here, there = poses
    moved = (here - there).abs() if len(here) == len(there) else torch.tensor([float("nan")])
    return Parity(
        probabilities=max(apart["heatmap"], apart["seg"]),
        offsets_px=max(apart["short"], apart["mid"], apart["long"]),
        loss=abs(losses[1] / losses[0] - 1),
        people=(len(here), len(there)),
        keypoints_px=moved.max().item() if moved.numel() else 0.0,
    )


def _keypoints(this: Trial, fields: Fields) -> Tensor:
    """Of the people decoded from target fields: random weights find almost no one."""
    found = decoder(this.network())
    side = this.train.crop
    each_alone = [fields.map(itemgetter(slice(at, at + 1))) for at in range(this.train.batch)]
    levels = [Level(alone, 1.0) for alone in each_alone]
    return torch.cat(
        [torch.as_tensor(found.poses([each], height=side, width=side).keypoints) for each in levels]
    )


def _settled(network: PersonLab, side: int) -> PersonLab:
    """In evaluation mode, with the normalisation statistics of noise: others let random weights overflow."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean of all batches, here of one
    with torch.no_grad():
        network.train()(torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8))
    return network.eval()


# --- training -----------------------------------------------------------------------------------------------


def matrix_rate(this: Trial) -> Card:
    size = 8192 if this.device.type == "cuda" else 512
    a, b = (torch.randn(size, size, device=this.device, dtype=torch.bfloat16) for _ in range(2))
    return Card(2 * size**3 / this.seconds(lambda: a @ b) / 1e12)


def resident_steps(this: Trial, card: Card) -> Iterator[Training]:
    """Steps over one batch that lies on the device, again and again."""
    variants: list[tuple[str, params.Precision, bool]] = [
        ("float32", "float32", False),
        ("bfloat16", "bfloat16", False),
        ("bfloat16, compiled", "bfloat16", True),
    ]
    batch = next(this.batches(this.device))
    for name, precision, compiled in variants:
        if compiled and this.device.type != "cuda":
            continue
        supervised, optimizer = _learner(this)
        if compiled:
            supervised.compile()
        step = partial(engine.train_step, supervised, batch, optimizer, precision=precision)
        seconds = this.seconds(step)
        if this.device.type == "cuda":
            torch.cuda.set_sync_debug_mode("warn")  # PyTorch names what in a step waits for the card
            step()
            torch.cuda.set_sync_debug_mode("default")
        yield _training(this, name, seconds, card)


def loaded_steps(this: Trial, card: Card) -> Training:
    """Steps in bfloat16 with averaging, and with batches that are prepared meanwhile."""
    supervised, optimizer = _learner(this)
    batches, average = this.batches(this.device), Average(start=0)

    def step() -> None:
        engine.train_step(supervised, next(batches), optimizer, precision="bfloat16")
        average.update(supervised.network, 0)

    return _training(this, "bfloat16, with loading and averaging", this.seconds(step), card)


def _learner(this: Trial) -> tuple[Supervised, torch.optim.Optimizer]:
    network = this.network().train()
    supervised = Supervised(network, this.objective()).to(this.device)
    return supervised, engine.optimizer(network, this.train)


def _training(this: Trial, variant: str, seconds: float, card: Card) -> Training:
    rate = _operations(this) / seconds / 1e12
    return Training(variant, this.train.batch / seconds, rate, rate / card.matrix_tflops)


def _operations(this: Trial) -> int:
    """Of a training step, counted without computing it."""
    network = PersonLab(this.model, stride=this.train.stride, skeleton=COCO_PERSON).train()
    with FakeTensorMode(allow_non_fake_inputs=True), FlopCounterMode(display=False) as counter:
        seen = torch.zeros(this.train.batch, 3, this.train.crop, this.train.crop, dtype=torch.uint8)
        fields = [each for fields in network.forward_training(seen) for each in fields.tensors().values()]
        sum(each.sum() for each in fields if each.requires_grad).backward()  # type: ignore[union-attr]
    return int(counter.get_total_flops())


# --- inference ----------------------------------------------------------------------------------------------


def images(this: Trial, width: int, height: int) -> Iterator[Inference]:
    """Images at stride 8, with the people of made fields."""
    torch.manual_seed(0)
    network = _settled(PersonLab(this.model, stride=8, skeleton=COCO_PERSON), 193).to(this.device)
    people = decoder(network)
    photo: ImageArray = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    level = Level(scenes.predicted(scenes.people(PEOPLE, stride=8, side=width), stride=8), 1.0)

    square: ImageArray = np.random.default_rng(0).integers(0, 255, (width, width, 3), dtype=np.uint8)

    def decode() -> None:
        list(people.people([level], height=width, width=width, image=square))

    decoding = 1e3 * this.seconds(decode)
    for precision in get_args(params.InferPrecision):
        predictor = Predictor(network, people, (width,), this.device, precision)
        for together in (1, max(2, predictor.batch_size())):
            seen = 1e3 * this.seconds(partial(predictor.levels, [photo] * together)) / together
            total = seen + decoding
            size = f"{width}x{height}"
            yield Inference(size, together, precision, seen, decoding, 1e3 / total, decoding / total)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--rounds", type=int, default=30, metavar="N")
    parser.add_argument("--backbone", default="resnet101")
    parser.add_argument("--width", type=int, default=64, metavar="N")
    parser.add_argument("--crop", type=int, default=801, metavar="N")
    parser.add_argument("--batch", type=int, default=8, metavar="N")
    parser.add_argument(
        "--inputs", nargs="+", type=_size, default=[(801, 529), (1401, 925)], metavar="WxH", help="W: 8 n + 1"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device here; --device cpu tries the script")
    return options


def _size(text: str) -> tuple[int, int]:
    width, height = map(int, text.split("x"))
    if width % 8 != 1:
        raise ValueError(width)
    return width, height


if __name__ == "__main__":
    main()
