"""Train the network with Ray Train, and export its averaged weights.

Started again after a kill, the stage goes on from the last checkpoint (personlab/distributed/checkpoints.py). What an
image looks like at a step depends on the seed, the epoch and the image alone, so going on is the same as
never having stopped.
"""

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import ray
import torch
from dvclive import Live  # type: ignore[attr-defined]
from ray import train as ray_train
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer, get_device, prepare_model

from personlab.codec.encode import encode
from personlab.codec.fields import stack
from personlab.data.example import Example
from personlab.data.loader import load_batches, plan, row_groups
from personlab.distributed import checkpoints
from personlab.distributed.board import fit, no_retry, watch
from personlab.distributed.checkpoints import Run, is_rank_zero, run_of
from personlab.distributed.cluster import connect, node_cpus, processors_each, require
from personlab.model import checkpoint
from personlab.model.losses import Objective
from personlab.model.network import PersonLab, build
from personlab.params import Codec, Model, Params, Section, Train
from personlab.training import engine
from personlab.training.engine import Average, Batch, Supervised
from personlab.training.validation import Validation
from personlab.utils import malloc
from personlab.utils.files import atomic_folder, write_atomic
from personlab.utils.prefetch import prefetch

log = logging.getLogger("personlab")

_LOG_EVERY = 50  # steps
# What decides how it learns, besides this file: dvc.yaml has the same list.
_CODE: Final = ("codec/encode.py", "codec/fields.py", "codec/refine.py", "data", "model", "training")
_CURVES: Final = {"loss": "loss", "ap": "AP on val images"}

Points = list[tuple[int, dict[str, float]]]  # of curves that share their steps: step, values by name


class Recipe(Section):
    """All that decides what a training run does, but its data."""

    codec: Codec
    model: Model
    train: Train


def run(params: Params, root: Path) -> None:
    """Write data/train/model.safetensors (+ .json), metrics.json and plots/.

    Raises:
        UserError: there are no images to train on, the loss stopped being finite, or a disk is full.
    """
    recipe = Recipe(codec=params.codec, model=params.model, train=params.train)
    next(plan(row_groups(root / "data/targets/train"), recipe.train))  # or say why not
    run = run_of(root, "train", _deciding(recipe), _inputs(recipe, root), params.ray.storage_path)
    with run.lock():
        with connect(params.ray.address), watch(recipe.train.steps, "train") as board:
            fit(_trainer(recipe, run, root, board), board)
        _export(recipe, run, root)


def _deciding(recipe: Recipe) -> list[Section]:
    """What may not change while a run goes on. How many workers there are may, so that it goes on with those
    that are left, unless each normalises by its own share of a batch. How it is validated may not: AP at
    other sizes or on other images would be another curve.
    """
    frozen = recipe.model.init is not None
    train = recipe.train.model_copy(update={"workers": 1}) if frozen else recipe.train
    return [recipe.codec, recipe.model, train]


def _inputs(recipe: Recipe, root: Path) -> list[Path]:
    """What a run depends on besides its parameters: shards, weights to begin with, the code that learns."""
    here = Path(__file__)
    init = [root / recipe.model.init] if recipe.model.init else []
    cards = [path.with_suffix(".json") for path in init]
    return [
        *(root / "data/targets" / split for split in ("train", "val")),
        *(*init, *cards),
        *(here.parents[1] / name for name in _CODE),
        here,
    ]


def _trainer(recipe: Recipe, run: Run, root: Path, board: Any) -> TorchTrainer:
    train = recipe.train
    needs = {"CPU": 0.5, "GPU": int(train.gpu)}
    mend = "lower train.workers" + (" or set train.gpu to false" if train.gpu else "")
    require(train.workers, cpus=needs["CPU"], gpus=needs["GPU"], mend=mend)
    # Ray would give a worker the threads of its half of a processor. This has to be set before the worker
    # imports torch; later changes are not followed.
    threads = {"OMP_NUM_THREADS": str(processors_each(train.workers, gpu=train.gpu))}
    return TorchTrainer(
        _work,
        train_loop_config={
            "recipe": recipe.model_dump(),
            "run": run,
            "root": str(root.resolve()),
            "board": board,
        },
        scaling_config=ScalingConfig(
            num_workers=train.workers,
            use_gpu=train.gpu,
            resources_per_worker=needs,
            # GPUs of one node exchange gradients faster; processors of one node only share what it has
            placement_strategy="PACK" if train.gpu else "SPREAD",
        ),
        run_config=replace(run.config(train.max_failures), worker_runtime_env={"env_vars": threads}),
    )


def _export(recipe: Recipe, run: Run, root: Path) -> None:
    """Turn a run's last checkpoint into the stage's output."""
    state = run.finished(recipe.train.steps)
    network = build(recipe.model, recipe.codec, stride=recipe.train.stride, root=root)
    with atomic_folder(root / "data/train") as output:
        checkpoint.save(
            output / "model.safetensors", state["averaged"], network.card(recipe.train.model_dump())
        )
        write_atomic(output / "metrics.json", json.dumps(state["losses"], indent=2) + "\n")
        _write_curves(output / "plots/loss", state["curve"]["points"])
        _write_curves(output / "plots/ap", state["ap"])
    log.info("train: %d steps done, data/train/model.safetensors written", state["step"])


def _write_curves(folder: Path, points: Points) -> None:
    for name in {name: None for _, values in points for name in values}:
        rows = [f"{step}\t{values[name]}" for step, values in points]
        write_atomic(folder / f"{name}.tsv", "\n".join([f"step\t{name}", *rows, ""]))


@no_retry
def _work(config: dict[str, Any]) -> None:
    """What each training worker does."""
    recipe, run, board = Recipe.model_validate(config["recipe"]), config["run"], config["board"]
    train, device = recipe.train, get_device()
    malloc.disable_trim()
    torch.manual_seed(train.seed)
    root = Path(config["root"])
    network = build(recipe.model, recipe.codec, stride=train.stride, root=root)
    supervised = Supervised(network.train(), Objective.of(recipe.model, recipe.codec, train)).to(device)
    progress = _Progress(network, engine.optimizer(network, train), _average(train))
    if state := checkpoints.resumed(run, device, lambda news: board.post.remote(0, news)):
        progress.load(state, device)
        board.post.remote(progress.step, f"going on from step {progress.step}")
    display = _Display(run.scratch / "live", board, progress) if is_rank_zero() else None
    validation = (
        Validation.of(network, root / "data/targets/val", train)
        if is_rank_zero() and train.validate_every
        else None
    )

    parallel = prepare_model(supervised, move_to_device=False)
    pace = _Pace()
    batches = _batches(recipe, root / "data/targets/train", device, done=progress.step)
    for step, batch in zip(range(progress.step + 1, train.steps + 1), pace.timed(batches), strict=False):
        engine.set_learning_rate(progress.optimizer, train, step)
        losses = engine.train_step(parallel, batch, progress.optimizer, precision=train.precision)
        last = step == train.steps
        progress.advance(step, losses, last=last)
        if validation and step % train.validate_every == 0:
            with pace.interrupted():  # the other workers wait for this one before the next step
                progress.ap.append((step, validation(progress.average.of(network))))
        if display:
            display.show(step)
        if step % train.checkpoint_every == 0 or last:
            checkpoints.save(run, step, progress.state)
    if is_rank_zero():
        ray.get(board.post.remote(progress.step, pace.summary()))


def _average(train: Train) -> Average:
    return Average(start=round(train.average_from * train.steps))


@dataclass
class _Curve:
    """Losses, each the mean over the `_LOG_EVERY` steps up to its own (over fewer, after the last step)."""

    points: Points = field(default_factory=list)
    recent: list[dict[str, float]] = field(default_factory=list)

    def add(self, step: int, losses: dict[str, float], *, last: bool) -> None:
        self.recent.append(losses)
        if step % _LOG_EVERY == 0 or last:
            means = {name: sum(each[name] for each in self.recent) / len(self.recent) for name in losses}
            self.points.append((step, means))
            self.recent = []


@dataclass
class _Progress:
    """All that a checkpoint has to hold for a run to go on as if it had never stopped."""

    network: PersonLab
    optimizer: torch.optim.Optimizer
    average: Average
    curve: _Curve = field(default_factory=_Curve)
    ap: Points = field(default_factory=list)  # of the averaged weights
    losses: dict[str, float] = field(default_factory=dict)  # of the last step
    step: int = 0

    def advance(self, step: int, losses: dict[str, float], *, last: bool) -> None:
        """The network is now what `step` made of it."""
        self.average.update(self.network, step)
        self.curve.add(step, losses, last=last)
        self.step, self.losses = step, losses

    def state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "losses": self.losses,
            "curve": {"points": self.curve.points, "recent": self.curve.recent},
            "ap": self.ap,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state_dict(),
            "averaged": self.average.of(self.network),
        }

    def load(self, state: dict[str, Any], device: torch.device) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average.load_state_dict(state["average"], device)
        self.curve, self.ap = _Curve(**state["curve"]), state["ap"]
        self.step, self.losses = state["step"], state["losses"]


class _Pace:
    """How fast a worker trains from its second batch on, and how much of that time it waits for data."""

    def __init__(self) -> None:
        self.images, self.waited, self.validated, self.began = 0, 0.0, 0.0, time.monotonic()

    def timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        yield next(batches)  # the first one waits for Ray to start reading
        self.began = time.monotonic()
        while True:
            asked = time.monotonic()
            batch = next(batches)
            self.waited += time.monotonic() - asked
            self.images += len(batch.images)
            yield batch

    @contextmanager
    def interrupted(self) -> Iterator[None]:
        """The time of the block, in which the worker validates, is not training's."""
        began = time.monotonic()
        yield
        seconds = time.monotonic() - began
        self.validated += seconds
        self.began += seconds

    def summary(self) -> str:
        seconds = max(time.monotonic() - self.began, 1e-9)
        share = self.waited / seconds
        validated = f"; {self.validated:.0f} s of validation besides" if self.validated else ""
        return (
            f"{self.images / seconds:.1f} images/s on each worker, "
            f"{share:.0%} of the time waiting for data{validated}"
        )


class _Display:
    """Shows how training goes: on the board, and by DVCLive, whose curves are drawn anew when it goes on."""

    def __init__(self, folder: Path, board: Any, progress: _Progress) -> None:
        self.live = Live(str(folder), save_dvc_exp=False, dvcyaml=None, report=None)
        self.board, self.progress = board, progress
        self._draw("loss", progress.curve.points)
        self._draw("ap", progress.ap)

    def show(self, step: int) -> None:
        """To be called after every step."""
        self._tell(step, "loss", self.progress.curve.points)
        self._tell(step, "ap", self.progress.ap)
        self.board.post.remote(step)

    def _tell(self, step: int, curves: str, points: Points) -> None:
        """What is new, if anything is."""
        if points and points[-1][0] == step:
            self._draw(curves, points[-1:])
            values = ", ".join(f"{name} {value:.4f}" for name, value in points[-1][1].items())
            self.board.post.remote(step, f"{_CURVES[curves]}: {values or 'there is nobody to find'}")

    def _draw(self, curves: str, points: Points) -> None:
        for step, values in points:
            self.live.step = step
            for name, value in values.items():
                self.live.log_metric(f"{curves}/{name}", value)
        self.live.make_summary()


def _batches(recipe: Recipe, shards: Path, device: torch.device, *, done: int) -> Iterator[Batch]:
    """This worker's share of every training batch from step `done` on, on `device`: prepared ahead if that is
    a GPU, in turn with the steps if they compute on these very processors."""
    context = ray_train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    gpu = device.type != "cpu"
    threads = max(1, node_cpus() // context.get_local_world_size() - 1) if gpu else torch.get_num_threads()
    examples = load_batches(
        shards, recipe.train, rank=rank, workers=workers, done=done, threads=threads, overlap=gpu
    )
    batch = partial(_batch, recipe=recipe, device=device)
    return prefetch(batch, examples, threads=1, depth=2) if gpu else map(batch, examples)


def _batch(examples: list[Example], recipe: Recipe, device: torch.device) -> Batch:
    """Examples as one batch; their targets are rasterised where the network is."""
    people = [each.people.to(device) for each in examples]
    return Batch(
        images=torch.stack([each.image for each in examples]).to(device),
        targets=stack([encode(p, stride=recipe.train.stride, radius=recipe.codec.radius) for p in people]),
        image_ids=[each.image_id for each in examples],
    )
