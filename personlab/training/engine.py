"""Training in plain torch: one step of the optimizer, and averaging of the parameters.

For several workers, wrap `Supervised` in DistributedDataParallel. A step of several workers is that of one
worker on their batches together, except for rounding and for normalisation statistics that are not frozen,
which each worker takes over its own share.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from personlab import params
from personlab.codec.fields import Targets
from personlab.errors import UserError
from personlab.model.losses import Losses, Objective, positions
from personlab.model.network import PersonLab
from personlab.model.precision import autocast

_LOSSES: Final = ("total", *(field.name for field in fields(Losses)))


@dataclass(frozen=True)
class Batch:
    """Input images, their target fields and their ids."""

    images: Tensor  # B x 3 x H x W uint8 RGB
    targets: Targets
    image_ids: list[int]  # B, for messages


class Supervised(nn.Module):
    """A network and its objective as one module, to be wrapped by DistributedDataParallel.

    DistributedDataParallel exchanges gradients of what passes through `forward`, so the loss is computed
    here.
    """

    def __init__(self, network: PersonLab, objective: Objective) -> None:
        super().__init__()
        self.network, self.objective = network, objective

    def forward(self, images: Tensor, targets: Targets) -> tuple[Tensor, Losses]:
        """The weighted loss of all heads, to be minimised, and the losses of the final ones.

        The mean over the workers, which data-parallel training takes, is the loss over the whole batch.
        """
        counts = _sum_over_workers(positions(targets)).clamp(min=1) / _workers()
        losses = [self.objective(f, targets, counts) for f in self.network.forward_training(images)]
        return torch.stack([each.total(self.objective.weights) for each in losses]).sum(), losses[0]


@dataclass(frozen=True)
class StepLosses:
    """The losses of a step, on the network's device, where they need not be ready yet."""

    means: Tensor  # (6,): the total and the losses of the final heads, over the batches of all workers
    total: Tensor  # scalar, of this worker's batch
    image_ids: list[int]  # of this worker's batch


def optimizer(network: nn.Module, train: params.Train) -> torch.optim.Optimizer:
    """The paper's SGD with momentum, or Adam with `momentum` as the decay of its first moment.

    Both are fused: one kernel for all weights, which can skip a step without the processor waiting for it.
    """
    parameters, rate, decay = network.parameters(), train.learning_rate, train.weight_decay
    if train.optimizer == "sgd":
        return torch.optim.SGD(parameters, rate, momentum=train.momentum, weight_decay=decay, fused=True)
    return torch.optim.Adam(parameters, rate, betas=(train.momentum, 0.999), weight_decay=decay, fused=True)


def set_gradient_precision(supervised: nn.Module, train: params.Train) -> None:
    """Let workers, if there are several, exchange gradients in the precision `train.gradients`."""
    if isinstance(supervised, DistributedDataParallel) and train.gradients == "bfloat16":
        supervised.register_comm_hook(None, _in_bfloat16)


def _in_bfloat16(
    group: dist.ProcessGroup,
    bucket: dist.GradBucket,  # type: ignore[name-defined]
) -> Future[Tensor]:
    """PyTorch's hook, which DistributedDataParallel refuses by its name without GPUs, where it works too."""
    return bf16_compress_hook(group, bucket)


def set_learning_rate(optimizer: torch.optim.Optimizer, train: params.Train, step: int) -> None:
    """Set the rate of step `step` (from 1): constant as in the paper, linear to 0 after `decay_from`.

    The rate would be 0 one step after the last.
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
) -> StepLosses:
    """Take one step of a fused optimizer on a batch on the network's device, without waiting for a GPU.

    If the loss is not finite on one of the workers, the weights stay as they are, and `read_losses` raises
    the error.

    Args:
        supervised: a `Supervised`, wrapped by DistributedDataParallel if there are several workers.

    Returns the losses before the step: "total", which is minimised, and those of the final heads, weighted by
    `pos_weight` but not by `loss_weights`.
    """
    optimizer.zero_grad(set_to_none=True)
    with autocast(batch.images.device, precision):
        total, final = supervised(batch.images, batch.targets)
    total.backward()
    means = _sum_over_workers(torch.stack([total, *vars(final).values()]).detach()) / _workers()
    # As torch.amp.GradScaler tells a fused optimizer to skip a step, on the device.
    optimizer.found_inf = (~means[0].isfinite()).float()  # type: ignore[attr-defined]
    optimizer.step()
    return StepLosses(means, total.detach(), batch.image_ids)


def read_losses(steps: Sequence[StepLosses]) -> list[dict[str, float]]:
    """The losses of steps by name: "total", "heatmap", "seg", "short", "mid", "long". Waits for the steps.

    Raises:
        UserError: a loss is not finite; raised on every worker.
    """
    if not steps:
        return []
    losses = [
        dict(zip(_LOSSES, values, strict=True))
        for values in torch.stack([step.means for step in steps]).tolist()
    ]
    for step, found in zip(steps, losses, strict=True):
        if not math.isfinite(found["total"]):
            images = _gather([] if step.total.isfinite() else step.image_ids)
            values = ", ".join(f"{name} {value:g}" for name, value in found.items())
            raise UserError(
                f"the loss is not finite on images {', '.join(map(str, images))} ({values}); "
                "check these images, or lower train.learning_rate"
            )
    return losses


class Average:
    """Polyak-Ruppert averaging: the mean of the parameters after every step from `start` on.

    Normalisation statistics are averaged too, because those of the last step do not fit averaged weights (the
    mean is about as good as measuring them again). Frozen ones do not change. The mean has float64 precision:
    in float32, updates vanish after about 10^5 steps.
    """

    def __init__(self, *, start: int) -> None:
        self.start = start
        self._count = 0
        self._mean: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Add the network's state after step `step`; ignored before `start`."""
        if step < self.start:
            return
        self._count += 1
        for name, tensor in network.state_dict().items():
            if name in self._mean:
                self._mean[name] += (tensor - self._mean[name]) / self._count
            elif tensor.is_floating_point():
                self._mean[name] = tensor.to(torch.float64, copy=True)

    def of(self, network: nn.Module) -> dict[str, Tensor]:
        """The network's state dict, averaged, except for counts; before `start`, as it is."""
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


def _workers() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _sum_over_workers(values: Tensor) -> Tensor:
    if _workers() > 1:
        dist.all_reduce(values)
    return values


def _gather(items: list[int]) -> list[int]:
    """The items of all workers."""
    gathered = [items] * _workers()
    if len(gathered) > 1:
        dist.all_gather_object(gathered, items)
    return [item for each in gathered for item in each]
