"""From an image to the people in it: the network and the codec as one thing.

What the command line, a notebook and a Ray actor all call.
"""

from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Self

import torch

from personlab import params
from personlab.codec.decode import Decoder, Level, detections
from personlab.codec.fields import padded_side
from personlab.data.transform import ImageArray, Transform, fit
from personlab.errors import UserError
from personlab.model.network import PersonLab, from_checkpoint
from personlab.people import Detection


@dataclass(frozen=True)
class Predictor:
    """Finds people in images of any size.

    sides: the longest side, in pixels, that the image is resized to at each level of the pyramid.
    """

    network: PersonLab
    decoder: Decoder
    sides: tuple[int, ...]
    device: torch.device

    @classmethod
    def from_checkpoint(
        cls,
        path: Path,
        infer: params.Infer | None = None,
        decode: params.Decode | None = None,
        *,
        max_people: int | None = None,
        gpu: bool = False,
    ) -> Self:
        """Load the weights at `path`.

        Args:
            path: a checkpoint, *.safetensors, with its card beside it.
            infer: input sizes and stride; by default one side of 801 pixels and stride 16.
            decode: decoding parameters; by default those that the model was judged with (its card's), or the
                paper's, scaled to the model's radius, where it has not been judged.
            max_people: proposals per image, if other than `decode` says.
            gpu: compute the network on CUDA.

        Raises:
            UserError: the checkpoint cannot be read, or there is no CUDA device.
        """
        infer = infer or params.Infer()
        if gpu and not torch.cuda.is_available():
            raise UserError("no CUDA device here; use the CPU, or a PyTorch built for CUDA and its driver")
        device = torch.device("cuda" if gpu else "cpu")
        network = from_checkpoint(path, stride=infer.stride).to(device)
        return cls(network, decoder(network, decode or decoding(network, max_people)), infer.sides, device)

    def __call__(self, image: ImageArray) -> list[Detection]:
        """The people of an RGB image (height x width x 3, uint8), best first, in the image's own pixels.

        Without masks if the network finds poses only.

        Raises:
            UserError: the network computes values that are not finite.
        """
        height, width = image.shape[:2]
        levels = [self.level(image, side) for side in self.sides]
        try:
            poses = self.decoder.poses(levels, height=height, width=width)
        except ValueError as error:
            raise UserError(f"{error}: the network's weights are broken; use others") from None
        if not levels[0].fields.has_masks:
            return list(detections(poses, repeat(None, len(poses.scores))))
        return list(detections(poses, self.decoder.masks(levels, poses, height=height, width=width)))

    @torch.inference_mode()
    def level(self, image: ImageArray, side: int) -> Level:
        """The fields of an image resized so that its longest side is `side` pixels."""
        scale, height, width = fit(image.shape[0], image.shape[1], side)
        stride = self.network.stride
        transform = Transform(scale, (0.0, 0.0), padded_side(height, stride), padded_side(width, stride))
        seen = torch.from_numpy(transform.image(image)).permute(2, 0, 1)[None].to(self.device)
        return Level(self.network(seen).probabilities(), scale)


def decoding(network: PersonLab, max_people: int | None = None) -> params.Decode:
    """The decoding parameters that a model is served with unless others are given."""
    decode = network.decode or params.Decode.scaled(network.model.radius)
    return decode.model_copy(update={"max_people": max_people}) if max_people else decode


def decoder(network: PersonLab, decode: params.Decode | None = None) -> Decoder:
    """The decoder of a network's fields. A network trained without refinement is decoded without it."""
    settings = (decode or decoding(network)).model_dump()
    if not network.model.refine:
        settings |= {"trace_refinements": 0, "long_refinements": 0}
    return Decoder(radius=network.model.radius, **settings)
