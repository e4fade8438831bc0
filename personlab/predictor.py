"""Predict the people of an image: the network and the decoder of its fields as one object."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Final, Self

import numpy as np
import torch
from torch import Tensor, nn

from personlab import params
from personlab.codec.decode import Decoder, Level
from personlab.codec.fields import Fields, padded_side
from personlab.data.transform import ImageArray, Transform, fit
from personlab.errors import UserError
from personlab.model.network import PersonLab, from_checkpoint
from personlab.model.precision import autocast
from personlab.people import Detection
from personlab.skeleton import Skeleton

# Images that are predicted at a time, at most: each needs a few hundred megabytes.
MOST_AT_A_TIME: Final = 4

# On a GPU: batches that are worked on at a time, so that one is resized while another passes the network;
# images of a batch, at most; and the share of the memory for all of them.
BATCHES_AT_A_TIME: Final = 2
_LARGEST_BATCH: Final = 32
_MEMORY_SHARE: Final = 0.6


@dataclass(frozen=True)
class Predictor:
    """Predicts the people of images of any size.

    Attributes:
        sides: longest side of the network's input at each level of the pyramid, pixels.
        precision: of the network's layers up to its heads; these compute in float32.
    """

    network: PersonLab
    decoder: Decoder
    sides: tuple[int, ...]
    device: torch.device
    precision: params.InferPrecision = "float32"

    @classmethod
    def from_checkpoint(
        cls,
        path: Path | str,
        infer: params.Infer | None = None,
        decode: params.Decode | None = None,
        *,
        max_people: int | None = None,
        gpu: bool = False,
    ) -> Self:
        """Load a checkpoint.

        Args:
            path: the weights (*.safetensors), with their card beside them.
            infer: input sizes, output stride and precision. Default: one side of 801 pixels, stride 16,
                float32.
            decode: decoding parameters. Default: see `decoding`.
            max_people: proposals per image, instead of `decode.max_people`.
            gpu: run the network on CUDA.

        Raises:
            UserError: the checkpoint cannot be read, or there is no CUDA device.
        """
        path, infer = Path(path), infer or params.Infer()
        if gpu and not torch.cuda.is_available():
            raise UserError("no CUDA device; use the CPU, or install a PyTorch built for CUDA and its driver")
        device = torch.device("cuda" if gpu else "cpu")
        network = from_checkpoint(path, stride=infer.stride).to(device)
        if not gpu:
            _use_onednn(network)
        decode = decoding(network, max_people, decode)
        return cls(network, decoder(network, decode), infer.sides, device, infer.precision)

    @property
    def skeleton(self) -> Skeleton:
        return self.network.skeleton

    def __call__(self, image: ImageArray) -> list[Detection]:
        """The people of an RGB image (height x width x 3, uint8), best first, in pixels of the image.

        A network without mask heads gives people without masks.

        Raises:
            TypeError: the image is another array or none; `personlab.data.images` reads files and bytes.
            UserError: the network computes values that are not finite.
        """
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.shape[2:] != (3,):
            found = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
            raise TypeError(f"an image is an array of height x width x 3, RGB, uint8, not {found}")
        (levels,) = self.levels([image])
        return self.people(image, levels)

    def people(self, image: ImageArray, levels: Sequence[Level]) -> list[Detection]:
        """As `__call__`, from the image's `levels`.

        Raises:
            UserError: they are not finite.
        """
        height, width = image.shape[:2]
        try:
            return list(self.decoder.people(levels, height=height, width=width, image=image))
        except ValueError as error:
            raise UserError(f"{error}: {self._advice()}") from None

    def _advice(self) -> str:
        if self.precision == "float16":
            return "float16 ends at 65504; predict in float32"
        return "the network's weights are broken; use others"

    def levels(self, images: Sequence[ImageArray]) -> list[list[Level]]:
        """The fields of each image at every side, on the CPU.

        Images whose inputs have the same size pass the network together. On a CPU, fields of several images
        may differ from those of one by rounding.
        """
        found = [list[Level]() for _ in images]
        for side in self.sides:
            for levels, level in zip(found, self._levels(images, side), strict=True):
                levels.append(level)
        return found

    def level(self, image: ImageArray, side: int) -> Level:
        """The fields of an image whose longest side is resized to `side` pixels, on the CPU."""
        (found,) = self._levels([image], side)
        return found

    @torch.inference_mode()
    def _levels(self, images: Sequence[ImageArray], side: int) -> list[Level]:
        inputs = [self._input(image, side) for image in images]
        alike = defaultdict[torch.Size, list[int]](list)  # indices of inputs, by their size
        for index, (pixels, _) in enumerate(inputs):
            alike[pixels.shape].append(index)
        found = dict[int, Level]()
        for indices in alike.values():
            batch = torch.stack([inputs[index][0] for index in indices]).to(self.device)
            with autocast(self.device, self.precision):
                fields = probabilities(self.network(batch)).to("cpu")
            for row, index in enumerate(indices):
                own = fields.map(itemgetter(slice(row, row + 1)))
                found[index] = Level(own, inputs[index][1])
        return [found[index] for index in range(len(images))]

    def _input(self, image: ImageArray, side: int) -> tuple[Tensor, float]:
        """The network's input, 3 x H x W uint8, and its scale."""
        scale, height, width = fit(image.shape[0], image.shape[1], side)
        stride = self.network.stride
        transform = Transform(scale, (0.0, 0.0), padded_side(height, stride), padded_side(width, stride))
        return torch.from_numpy(transform.image(image)).permute(2, 0, 1), scale

    def batch_size(self, gpu_share: float = 1.0) -> int:
        """How many images to give to `levels` at a time: 1 on a CPU, which gains nothing by more; on a GPU as
        many as fit twice into its free memory, measured with one image.

        Args:
            gpu_share: of the GPU's memory that this process may use.
        """
        if self.device.type != "cuda":
            return 1
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        self.levels([np.zeros((max(self.sides), max(self.sides), 3), np.uint8)])
        needed = torch.cuda.max_memory_allocated(self.device) - before
        free, total = torch.cuda.mem_get_info(self.device)
        each = _MEMORY_SHARE * min(free, gpu_share * total) / BATCHES_AT_A_TIME
        return max(1, min(int(each / needed), _LARGEST_BATCH))


def probabilities(logits: Fields) -> Fields:
    """The network's fields with probabilities in place of logits, the same with any number of threads.

    In float64: PyTorch's float32 sigmoid differs in the last digit where threads share a tensor.
    """
    exact = logits.replace(heatmap=logits.heatmap.double(), seg=logits.seg.double())
    return exact.probabilities().float()


def _use_onednn(network: nn.Module) -> None:
    """Run 1x1 convolutions in oneDNN with any number of threads.

    With one thread, PyTorch runs undilated ones elsewhere: slower, and with other sums in the last digits.
    Dilation does not change a 1x1 convolution.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1):
            module.dilation = (2, 2)


@contextmanager
def side_by_side(images: int) -> Iterator[int]:
    """Share PyTorch's threads between images: yield how many of `images` to predict at a time, in threads.

    Images side by side use a processor better than the layers of one network, and while one is decoded, the
    network works on another.
    """
    threads = torch.get_num_threads()
    at_a_time = max(1, min(threads, images, MOST_AT_A_TIME))
    torch.set_num_threads(threads // at_a_time)
    try:
        yield at_a_time
    finally:
        torch.set_num_threads(threads)


def decoding(
    network: PersonLab, max_people: int | None = None, decode: params.Decode | None = None
) -> params.Decode:
    """The decoding parameters of a network: `decode` if given; else those that its card records, which it was
    evaluated with; else the paper's, with lengths scaled to the network's radius R.

    max_people: overrides the proposals per image.
    """
    decode = decode or network.decode or params.Decode.scaled(network.model.radius)
    return decode.model_copy(update={"max_people": max_people}) if max_people else decode


def decoder(network: PersonLab, decode: params.Decode | None = None) -> Decoder:
    """The decoder of a network's fields; without refinement if the network was trained without."""
    settings = (decode or decoding(network)).model_dump()
    if not network.model.refine:
        settings |= {"trace_refinements": 0, "long_refinements": 0}
    return Decoder(radius=network.model.radius, skeleton=network.skeleton, **settings)
