"""The engine: steps that learn, losses that stop, averages that are means."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from operator import itemgetter
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from personlab import params
from personlab.codec.encode import Instances, encode
from personlab.codec.fields import cells, stack
from personlab.errors import UserError
from personlab.model.losses import Objective
from personlab.model.network import PersonLab, build
from personlab.model.precision import autocast, is_fast
from personlab.skeleton import COCO_PERSON
from personlab.training.engine import (
    Average,
    Batch,
    Supervised,
    optimizer,
    read_losses,
    set_gradient_precision,
    set_learning_rate,
    train_step,
)
from tests.coco_person import K

STRIDE: params.Stride = 16
SIDE = 65
MODEL = params.Model(backbone="resnet18", width=8, radius=16.0)
TRAIN = params.Train(learning_rate=1e-3)
OBJECTIVE = Objective.of(MODEL, TRAIN, skeleton=COCO_PERSON)


def network(seed: int = 0, model: params.Model = MODEL) -> PersonLab:
    torch.manual_seed(seed)
    return build(model, stride=STRIDE, skeleton=COCO_PERSON)


def batch(seed: int = 0, size: int = 2) -> Batch:
    """Noise with one person somewhere in each image."""
    generator = torch.Generator().manual_seed(seed)
    side = cells(SIDE, STRIDE)
    targets = []
    for _ in range(size):
        mask = torch.zeros(1, side, side)
        mask[:, 1:4, 1:3] = 1.0
        people = Instances(
            keypoints=SIDE * torch.rand(1, K, 2, generator=generator),
            labelled=torch.ones(1, K, dtype=torch.bool),
            masks=mask,
            crowd=torch.zeros(1, dtype=torch.bool),
            imputed=torch.zeros(1, dtype=torch.bool),
            unmasked=torch.zeros(1, dtype=torch.bool),
        )
        targets.append(encode(people, stride=STRIDE, radius=MODEL.radius, skeleton=COCO_PERSON))
    images = torch.randint(0, 256, (size, 3, SIDE, SIDE), generator=generator, dtype=torch.uint8)
    return Batch(images, stack(targets), [100 + index for index in range(size)])


def spoilt(given: Batch) -> Batch:
    """A batch whose loss is not a number."""
    fields = given.targets.fields
    bad = replace(given.targets, fields=fields.replace(seg=torch.full_like(fields.seg, torch.nan)))
    return replace(given, targets=bad)


def test_a_step_descends_both_sets_of_heads() -> None:
    made, given = network(), batch()
    supervised = Supervised(made, OBJECTIVE)
    before = copy.deepcopy(made.state_dict())
    (report,) = read_losses([train_step(supervised, given, optimizer(made, TRAIN))])
    restored = network()
    restored.load_state_dict(before)
    restored.train()
    final, middle = restored.forward_training(given.images)
    expected = [OBJECTIVE(fields, given.targets).total(TRAIN.loss_weights) for fields in (final, middle)]
    assert report["total"] == pytest.approx(float(sum(expected).detach()), rel=1e-5)
    assert list(report) == ["total", "heatmap", "seg", "short", "mid", "long"]
    unchanged = [n for n, parameter in made.named_parameters() if torch.equal(parameter, before[n])]
    assert unchanged == []


def test_the_paper_s_step_is_plain_gradient_descent() -> None:
    made, given = network(), batch()
    twin = copy.deepcopy(made)
    train_step(Supervised(made, OBJECTIVE), given, optimizer(made, TRAIN))
    Supervised(twin, OBJECTIVE)(given.images, given.targets)[0].backward()
    for stepped, before in zip(made.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(stepped, before - TRAIN.learning_rate * before.grad)


@pytest.mark.parametrize(("name", "precision"), [("sgd", "float32"), ("adam", "bfloat16")])
def test_it_learns_one_batch(name: str, precision: params.Precision) -> None:
    made, given = network(), batch()
    train = params.Train(optimizer=name, learning_rate=3e-3)
    stepping = optimizer(made, train)
    supervised = Supervised(made, OBJECTIVE)
    losses = read_losses([train_step(supervised, given, stepping, precision=precision) for _ in range(30)])
    assert losses[-1]["total"] < 0.75 * losses[0]["total"]


@pytest.mark.parametrize(("capability", "fast"), [("avx512_bf16", True), ("amx_bf16", True), ("avx2", False)])
def test_auto_is_bfloat16_only_where_it_is_fast(
    monkeypatch: pytest.MonkeyPatch, capability: str, fast: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, capability: True})
    device = torch.device("cpu")
    assert is_fast(device) is fast
    product = {}
    for precision in ("auto", "float32", "bfloat16"):
        with autocast(device, precision):
            product[precision] = (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
    assert product == {
        "auto": torch.bfloat16 if fast else torch.float32,
        "float32": torch.float32,
        "bfloat16": torch.bfloat16,
    }


def test_optimizers_are_what_the_parameters_say() -> None:
    made = network()
    train = params.Train(learning_rate=0.5, momentum=0.8, weight_decay=0.1)
    sgd = optimizer(made, train)
    assert isinstance(sgd, torch.optim.SGD)
    assert [sgd.defaults[key] for key in ("lr", "momentum", "weight_decay")] == [0.5, 0.8, 0.1]
    adam = optimizer(made, train.model_copy(update={"optimizer": "adam"}))
    assert isinstance(adam, torch.optim.Adam)
    assert [adam.defaults[key] for key in ("lr", "betas", "weight_decay")] == [0.5, (0.8, 0.999), 0.1]


def rates(**settings: float) -> list[float]:
    """The learning rate of each of ten steps."""
    train = TRAIN.model_copy(update={"steps": 10, **settings})
    found = optimizer(nn.Linear(1, 1), train)
    seen = []
    for step in range(1, 11):
        set_learning_rate(found, train, step)
        (group,) = found.param_groups
        seen.append(group["lr"])
    return seen


def test_the_learning_rate_stays_unless_it_is_told_to_fall() -> None:
    assert rates() == [1e-3] * 10


def test_the_learning_rate_falls_in_a_straight_line_to_a_last_step_that_still_counts() -> None:
    assert rates(decay_from=0.6) == pytest.approx([1e-3] * 6 + [8e-4, 6e-4, 4e-4, 2e-4])
    assert rates(decay_from=0.0) == pytest.approx([1e-3 * left / 11 for left in range(10, 0, -1)])


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_a_step_whose_loss_is_not_finite_is_skipped_and_named_when_it_is_read(name: str) -> None:
    made = network()
    stepping = optimizer(made, TRAIN.model_copy(update={"optimizer": name}))
    supervised = Supervised(made, OBJECTIVE)
    first = train_step(supervised, batch(), stepping)
    before = copy.deepcopy((dict(made.named_parameters()), stepping.state_dict()))
    second = train_step(supervised, spoilt(batch()), stepping)
    assert all(torch.equal(parameter, before[0][name]) for name, parameter in made.named_parameters())
    torch.testing.assert_close(stepping.state_dict(), before[1], rtol=0, atol=0)
    third = train_step(supervised, batch(2), stepping)
    assert [losses["total"] > 0 for losses in read_losses([first, third])] == [True, True]
    with pytest.raises(UserError, match=r"not finite on images 100, 101 \(.*seg nan") as caught:
        read_losses([first, second, third])
    assert "learning_rate" in str(caught.value)
    assert read_losses([]) == []


def steps_of(module: nn.Module, count: int) -> Iterator[int]:
    """Give every parameter and buffer new random values, `count` times."""
    for step in range(count):
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point():
                tensor.data.normal_()
        yield step


def test_the_average_is_the_mean_of_the_snapshots_from_start_on() -> None:
    torch.manual_seed(0)
    module, average, snapshots = nn.BatchNorm1d(5), Average(start=3), []
    for step in steps_of(module, 40):
        average.update(module, step)
        if step >= 3:
            snapshots.append({n: t.double().clone() for n, t in module.state_dict().items()})
    found = average.of(module)
    for name in ("weight", "bias", "running_mean", "running_var"):
        mean = torch.stack([snapshot[name] for snapshot in snapshots]).mean(0)
        torch.testing.assert_close(average.state_dict()[f"mean.{name}"], mean, rtol=1e-12, atol=1e-12)
        assert torch.equal(found[name], mean.float())
    assert torch.equal(found["num_batches_tracked"], module.num_batches_tracked)
    assert found.keys() == module.state_dict().keys()


def test_before_its_start_the_average_is_the_network() -> None:
    module, average = nn.BatchNorm1d(5), Average(start=10)
    for step in steps_of(module, 5):
        average.update(module, step)
    assert all(torch.equal(tensor, module.state_dict()[name]) for name, tensor in average.of(module).items())


def test_the_average_does_not_follow_the_network_afterwards() -> None:
    module, average = nn.Linear(2, 2), Average(start=0)
    average.update(module, 0)
    expected = module.weight.detach().clone()
    taken = average.of(module)
    module.weight.data.zero_()
    assert torch.equal(average.of(module)["weight"], expected)
    assert torch.equal(taken["weight"], expected)


def test_a_resumed_average_goes_on_as_if_never_stopped() -> None:
    torch.manual_seed(0)
    module, unbroken, broken = nn.Linear(3, 2), Average(start=1), Average(start=1)
    for step in steps_of(module, 9):
        unbroken.update(module, step)
        broken.update(module, step)
        state, broken = broken.state_dict(), Average(start=1)
        broken.load_state_dict(state)
    assert all(torch.equal(t, broken.state_dict()[name]) for name, t in unbroken.state_dict().items())


def _work(rank: int, folder: Path, compiled: bool) -> None:
    """One of two workers: three steps on its share of uneven batches, then one that cannot be taken."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
    made = frozen_network()
    supervised = Supervised(made, OBJECTIVE)
    if compiled:
        supervised.compile(backend="aot_eager")  # traced as by the default, which also compiles for minutes
    wrapped, stepping = DistributedDataParallel(supervised), optimizer(made, TRAIN)
    reports = read_losses([train_step(wrapped, shares(seed)[rank], stepping) for seed in range(3)])
    given = shares(3)[rank]
    spoiled = train_step(wrapped, spoilt(given) if rank else given, stepping)
    with pytest.raises(UserError) as caught:
        read_losses([spoiled])
    rounded = DistributedDataParallel(Supervised(frozen_network(), OBJECTIVE))
    set_gradient_precision(rounded, TRAIN.model_copy(update={"gradients": "bfloat16"}))
    rounded(shares(0)[rank].images, shares(0)[rank].targets)[0].backward()
    found = {
        "state": made.state_dict(),
        "reports": reports,
        "message": str(caught.value),
        "rounded": [parameter.grad for parameter in rounded.parameters()],
    }
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


def frozen_network() -> PersonLab:
    """Whose normalisation statistics are frozen, as pretrained weights' are."""
    made = network()
    made.backbone.freeze_bn = True
    return made.train()


def shares(seed: int) -> tuple[Batch, Batch]:
    """A batch in two: of the second half most is undefined."""
    whole = batch(seed, size=4)
    fields, masks = whole.targets.fields, {}
    for name in ("heatmap_valid", "mid_valid", "seg_valid", "long_valid"):
        masks[name] = getattr(whole.targets, name).clone()
        masks[name][2:, ..., 1:] = False
    halves = [slice(0, 2), slice(2, 4)]
    first, second = (
        Batch(
            whole.images[half],
            replace(
                whole.targets,
                fields=fields.map(itemgetter(half)),
                **{name: mask[half] for name, mask in masks.items()},
            ),
            whole.image_ids[half],
        )
        for half in halves
    )
    return first, second


def both(halves: tuple[Batch, Batch]) -> Batch:
    """The batch of both workers."""
    targets = stack([half.targets for half in halves])
    return Batch(torch.cat([half.images for half in halves]), targets, [100, 101, 102, 103])


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, True])
def test_two_workers_take_the_steps_of_one(tmp_path: Path, compiled: bool) -> None:
    torch.multiprocessing.spawn(_work, (tmp_path, compiled), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    alone = frozen_network()
    stepping = optimizer(alone, TRAIN)
    for seed in range(3):
        whole = both(shares(seed))
        (report,) = read_losses([train_step(Supervised(alone, OBJECTIVE), whole, stepping)])
        assert first["reports"][seed] == pytest.approx(report, rel=1e-4)
        assert second["reports"][seed] == first["reports"][seed]
    for name, tensor in alone.state_dict().items():
        torch.testing.assert_close(first["state"][name], tensor, rtol=1e-4, atol=1e-6)
        assert torch.equal(first["state"][name], second["state"][name])
    assert first["message"] == second["message"]
    assert "not finite on images 102, 103 (" in first["message"]
    once, whole = Supervised(frozen_network(), OBJECTIVE), both(shares(0))
    once(whole.images, whole.targets)[0].backward()
    for exact, *found in zip(once.parameters(), first["rounded"], second["rounded"], strict=True):
        assert torch.equal(*found)
        # each worker's half is rounded, and so is their sum
        assert float((found[0] - exact.grad).norm() / exact.grad.norm()) < 2 * torch.finfo(torch.bfloat16).eps
        assert not torch.equal(found[0], exact.grad)
