"""Train the network with Ray Train, and export its averaged weights.

Started again after a kill, the stage goes on from the last checkpoint (personlab/stages/runs.py). What an
image looks like at a step depends on the seed, the epoch and the image alone, so going on is the same as
never having stopped.
"""

import json
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ray
import torch
from dvclive import Live  # type: ignore[attr-defined]
from ray import train as ray_train
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer, get_device, prepare_model

from personlab import engine
from personlab.ahead import ahead
from personlab.codec.encode import encode
from personlab.codec.fields import stack
from personlab.data.example import Example
from personlab.data.feed import feed, plan, row_groups
from personlab.engine import Average, Batch, Supervised
from personlab.files import atomic_folder, write_atomic
from personlab.model import checkpoint
from personlab.model.losses import Objective
from personlab.model.network import PersonLab, build
from personlab.params import Codec, Model, Params, Section, Train
from personlab.stages import runs
from personlab.stages.cluster import connect, final, fit, node_cpus, processors_each, watch
from personlab.stages.runs import Run, leads, run_of

log = logging.getLogger("personlab")

_LOG_EVERY = 50  # steps


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
    shards = root.resolve() / "data/targets/train"
    next(plan(row_groups(shards), recipe.train))  # or say why not
    run = run_of(root, "train", recipe, [shards], params.ray.storage_path)
    with run.opened():
        with connect(params.ray.address), watch(recipe.train.steps, "train") as board:
            fit(_trainer(recipe, run, root, shards, board), board)
        _export(recipe, run, root)


def _trainer(recipe: Recipe, run: Run, root: Path, shards: Path, board: Any) -> TorchTrainer:
    train = recipe.train
    # Ray would give a worker the threads of its half of a processor. This has to be set before the worker
    # imports torch; later changes are not followed.
    threads = {"OMP_NUM_THREADS": str(processors_each(train.workers, gpu=train.gpu))}
    return TorchTrainer(
        _work,
        train_loop_config={
            "recipe": recipe.model_dump(),
            "run": run,
            "root": str(root.resolve()),
            "shards": str(shards),
            "board": board,
        },
        scaling_config=ScalingConfig(
            num_workers=train.workers,
            use_gpu=train.gpu,
            resources_per_worker={"CPU": 0.5, **({"GPU": 1} if train.gpu else {})},
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
        for name in state["losses"]:
            rows = [f"{step}\t{means[name]}" for step, means in state["curve"]["points"]]
            write_atomic(output / f"plots/loss/{name}.tsv", "\n".join([f"step\t{name}", *rows, ""]))
    log.info("train: %d steps done, data/train/model.safetensors written", state["step"])


@final
def _work(config: dict[str, Any]) -> None:
    """What each training worker does."""
    recipe, run, board = Recipe.model_validate(config["recipe"]), config["run"], config["board"]
    train, device = recipe.train, get_device()
    torch.manual_seed(train.seed)
    network = build(recipe.model, recipe.codec, stride=train.stride, root=Path(config["root"]))
    supervised = Supervised(network.train(), Objective.of(recipe.model, recipe.codec, train)).to(device)
    progress = _Progress(network, engine.optimizer(network, train), _average(train))
    if state := runs.resumed(run, device, lambda news: board.post.remote(0, news)):
        progress.load(state, device)
        board.post.remote(progress.step, f"going on from step {progress.step}")
    display = _Display(run.scratch / "live", board, progress.curve) if leads() else None

    parallel = prepare_model(supervised, move_to_device=False)
    pace = _Pace()
    batches = _batches(recipe, Path(config["shards"]), device, done=progress.step)
    for step, batch in zip(range(progress.step + 1, train.steps + 1), pace.timed(batches), strict=False):
        losses = engine.train_step(parallel, batch, progress.optimizer, precision=train.precision)
        last = step == train.steps
        progress.advance(step, losses, last=last)
        if display:
            display.show(step)
        if step % train.checkpoint_every == 0 or last:
            runs.keep(run, step, progress.state)
    if leads():
        ray.get(board.post.remote(progress.step, pace.summary()))


def _average(train: Train) -> Average:
    return Average(start=round(train.average_from * train.steps))


@dataclass
class _Curve:
    """Losses, each the mean over the `_LOG_EVERY` steps up to its own (over fewer, after the last step)."""

    points: list[tuple[int, dict[str, float]]] = field(default_factory=list)
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
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state_dict(),
            "averaged": self.average.of(self.network),
        }

    def load(self, state: dict[str, Any], device: torch.device) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average.load_state_dict(state["average"], device)
        self.curve = _Curve(**state["curve"])
        self.step, self.losses = state["step"], state["losses"]


class _Pace:
    """How fast a worker trains from its second batch on, and how much of that time it waits for data."""

    def __init__(self) -> None:
        self.images, self.waited, self.began = 0, 0.0, time.monotonic()

    def timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        yield next(batches)  # the first one waits for Ray to start reading
        self.began = time.monotonic()
        while True:
            asked = time.monotonic()
            batch = next(batches)
            self.waited += time.monotonic() - asked
            self.images += len(batch.images)
            yield batch

    def summary(self) -> str:
        seconds = max(time.monotonic() - self.began, 1e-9)
        share = self.waited / seconds
        return (
            f"{self.images / seconds:.1f} images/s on each worker, {share:.0%} of the time waiting for data"
        )


class _Display:
    """Shows how training goes: on the board, and by DVCLive, whose curves are drawn anew when it goes on."""

    def __init__(self, folder: Path, board: Any, curve: _Curve) -> None:
        self.live = Live(str(folder), save_dvc_exp=False, dvcyaml=None, report=None)
        self.board, self.curve = board, curve
        self._draw(curve.points)

    def show(self, step: int) -> None:
        """To be called after every step."""
        news = None
        if self.curve.points and self.curve.points[-1][0] == step:
            self._draw(self.curve.points[-1:])
            news = ", ".join(f"{name} {value:.4f}" for name, value in self.curve.points[-1][1].items())
        self.board.post.remote(step, news)

    def _draw(self, points: Sequence[tuple[int, dict[str, float]]]) -> None:
        for step, means in points:
            self.live.step = step
            for name, value in means.items():
                self.live.log_metric(f"loss/{name}", value)
        self.live.make_summary()


def _batches(recipe: Recipe, shards: Path, device: torch.device, *, done: int) -> Iterator[Batch]:
    """This worker's share of every training batch from step `done` on, on `device`, prepared ahead."""
    context = ray_train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    threads = max(1, node_cpus() // context.get_local_world_size() - 1)
    examples = feed(shards, recipe.train, rank=rank, workers=workers, done=done, threads=threads)
    return ahead(lambda each: _batch(each, recipe, device), examples, threads=1, depth=2)


def _batch(examples: list[Example], recipe: Recipe, device: torch.device) -> Batch:
    """Examples as one batch; their targets are rasterised where the network is."""
    people = [each.people.to(device) for each in examples]
    return Batch(
        images=torch.stack([each.image for each in examples]).to(device),
        targets=stack([encode(p, stride=recipe.train.stride, radius=recipe.codec.radius) for p in people]),
        image_ids=[each.image_id for each in examples],
    )
