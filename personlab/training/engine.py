"""Training in plain torch: one step, and the average of the parameters on the way.

Knows no cluster: wrap `Supervised` in DistributedDataParallel and nothing else changes. A step of several
workers is the step that one would take on all of their batches together, but for rounding, and but for
normalisation statistics that are not frozen: those each worker takes over its own share.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Self

import torch
import torch.distributed as dist
from torch import Tensor, nn

from personlab import params
from personlab.codec.fields import Targets
from personlab.errors import UserError
from personlab.model.losses import Losses, Objective, positions
from personlab.model.network import PersonLab
from personlab.model.precision import autocast

_REPORTED = ("total", *(field.name for field in fields(Losses)))


@dataclass(frozen=True)
class Batch:
    images: Tensor  # B x 3 x H x W uint8 RGB
    targets: Targets
    image_ids: list[int]  # B, for messages

    def to(self, device: torch.device | str) -> Self:
        return type(self)(self.images.to(device), self.targets.to(device), self.image_ids)


class Supervised(nn.Module):
    """A network and its objective as one module: what is trained, and what DistributedDataParallel wraps.

    The loss belongs inside the module because data-parallel gradients are only exchanged for what passes
    through its `forward`, and so that no field has to pass its borders.
    """

    def __init__(self, network: PersonLab, objective: Objective) -> None:
        super().__init__()
        self.network, self.objective = network, objective

    def forward(self, images: Tensor, targets: Targets) -> tuple[Tensor, Losses]:
        """What to minimise (both sets of heads, weighted), and the losses of the final heads alone.

        Each is this worker's part of it: their mean over the workers, which is what data-parallel training
        takes, is the loss over the whole batch.
        """
        counts = _sum(positions(targets)).clamp(min=1) / _workers()
        final, middle = (self.objective(f, targets, counts) for f in self.network.forward_training(images))
        weights = self.objective.weights
        return final.total(weights) + middle.total(weights), final


def optimizer(network: nn.Module, train: params.Train) -> torch.optim.Optimizer:
    """The paper's SGD with momentum, or Adam, where `momentum` is the decay of its first moment."""
    if train.optimizer == "sgd":
        return torch.optim.SGD(
            network.parameters(),
            lr=train.learning_rate,
            momentum=train.momentum,
            weight_decay=train.weight_decay,
        )
    return torch.optim.Adam(
        network.parameters(),
        lr=train.learning_rate,
        betas=(train.momentum, 0.999),
        weight_decay=train.weight_decay,
        fused=True,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, train: params.Train, step: int) -> None:
    """The rate of step `step` (from 1): constant as in the paper, and from `decay_from` on falling to 0.

    It falls in a straight line, which would reach 0 one step after the last.
    """
    begin = train.decay_from * train.steps
    left = (train.steps + 1 - step) / (train.steps + 1 - begin)
    for group in optimizer.param_groups:
        group["lr"] = train.learning_rate * min(1.0, left)


def train_step(
    supervised: nn.Module,
    batch: Batch,
    optimizer: torch.optim.Optimizer,
    *,
    precision: params.Precision = "float32",
) -> dict[str, float]:
    """One step of the optimizer on one batch, which lies on the network's device.

    supervised: a `Supervised`, wrapped by DistributedDataParallel if there are several workers.

    Returns the losses before the step, over the batches of all workers: "total" as minimised, the others of
    the final heads, unweighted.

    Raises:
        UserError: the loss is not finite; no weight has been changed, and every worker says so.
    """
    optimizer.zero_grad(set_to_none=True)
    with autocast(batch.images.device, precision):
        total, final = supervised(batch.images, batch.targets)
    total.backward()  # before the losses are asked for: on a GPU that waits for all that was launched so far
    report = _report(_sum(_scalars(total, final)) / _workers())
    if not math.isfinite(report["total"]):
        images = _of_all([] if torch.isfinite(total) else batch.image_ids)
        raise UserError(
            f"the loss is not finite on images {', '.join(map(str, images))} ({_shown(report)}); "
            "look at these images, or lower train.learning_rate"
        )
    optimizer.step()
    return report


class Average:
    """Polyak-Ruppert averaging: the mean of the parameters after every step from `start` on.

    Normalisation statistics are averaged alike: averaged weights shift what passes through the network, and
    the last step's statistics do not fit them (their mean does about as well as measuring them anew).
    Frozen ones stay what they are. The mean is kept in float64: a float32 one would hardly move any more
    after some 10^5 steps.
    """

    def __init__(self, *, start: int) -> None:
        self.start = start
        self._count = 0
        self._mean: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Take in the network as it is after step `step`; ignored before `start`."""
        if step < self.start:
            return
        self._count += 1
        for name, tensor in network.state_dict().items():
            if not tensor.is_floating_point():
                continue
            if name in self._mean:
                self._mean[name] += (tensor - self._mean[name]) / self._count
            else:
                self._mean[name] = tensor.to(torch.float64, copy=True)

    def of(self, network: nn.Module) -> dict[str, Tensor]:
        """The network's state dict, averaged (as it is, before `start`); counts are the network's own."""
        state = network.state_dict()
        return {name: self._mean.get(name, own).to(own.dtype).clone() for name, own in state.items()}

    def state_dict(self) -> dict[str, Tensor]:
        means = {f"mean.{name}": mean for name, mean in self._mean.items()}
        return {"count": torch.tensor(self._count), **means}

    def load_state_dict(self, state: Mapping[str, Tensor], device: torch.device | str = "cpu") -> None:
        self._count = int(state["count"])
        self._mean = {
            name.removeprefix("mean."): mean.to(device, copy=True)
            for name, mean in state.items()
            if name != "count"
        }


def _scalars(total: Tensor, losses: Losses) -> Tensor:
    return torch.stack([total, *losses.scalars()]).detach()


def _report(scalars: Tensor) -> dict[str, float]:
    values: list[float] = scalars.tolist()
    return dict(zip(_REPORTED, values, strict=True))


def _shown(report: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in report.items())


def _workers() -> int:
    return dist.get_world_size() if _distributed() else 1


def _sum(values: Tensor) -> Tensor:
    """Over all workers."""
    if _distributed():
        dist.all_reduce(values)
    return values


def _of_all(items: list[int]) -> list[int]:
    """The items of all workers."""
    gathered = [items]
    if _distributed():
        gathered = [[] for _ in range(_workers())]
        dist.all_gather_object(gathered, items)
    return [item for each in gathered for item in each]


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()
