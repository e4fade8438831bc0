"""Batches on the device that trains: collated examples, whose targets are rasterised there."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial

import torch
from torch import Tensor

from personlab.codec.encode import encode
from personlab.codec.fields import stack
from personlab.data.example import Example
from personlab.model.network import PersonLab
from personlab.training.engine import Batch
from personlab.utils.prefetch import prefetch


def batches(examples: Iterable[list[Example]], network: PersonLab, device: torch.device) -> Iterator[Batch]:
    """The batches of lists of examples, to train `network` on `device`.

    On a GPU they are made ahead, by a thread and on a CUDA stream of their own: on the stream of the training
    steps, copying an example would wait for the steps before. On a CPU, whose cores a step needs, each is
    made on demand.
    """
    make = partial(collate, network=network, device=device)
    if device.type != "cuda":
        return map(make, examples)
    return prefetch(_on_own_stream(make, device), examples, threads=1, depth=2)


def collate(examples: list[Example], network: PersonLab, device: torch.device) -> Batch:
    """One batch of examples, with the target fields that the network is to learn."""
    rasterise = partial(encode, stride=network.stride, radius=network.model.radius, skeleton=network.skeleton)
    return Batch(
        images=torch.stack([each.image for each in examples]).to(device),
        targets=stack([rasterise(each.people.to(device)) for each in examples]),
        image_ids=[each.image_id for each in examples],
    )


def _on_own_stream(
    make: Callable[[list[Example]], Batch], device: torch.device
) -> Callable[[list[Example]], Batch]:
    """`make` on a new CUDA stream; its batches are ready, and for the stream that is current here."""
    steps, own = torch.cuda.current_stream(device), torch.cuda.Stream(device)

    def made(examples: list[Example]) -> Batch:
        with torch.cuda.stream(own):
            batch = make(examples)
        own.synchronize()
        for tensor in _tensors(batch):
            tensor.record_stream(steps)  # their memory is free only when the steps that read it are done
        return batch

    return made


def _tensors(batch: Batch) -> list[Tensor]:
    targets = batch.targets
    validity = [each for each in vars(targets).values() if isinstance(each, Tensor)]
    return [batch.images, *targets.fields.tensors().values(), *validity]
