"""Train the network with Ray Train, and export its averaged weights.

The run keeps its checkpoints in runs/, outside DVC's outputs, under a name derived from the parameters and
the shards: started again after a kill, the stage goes on from the last checkpoint. What an image looks like
at a step depends on the seed, the epoch and the image alone, so going on is the same as never having stopped.
"""

import json
import logging
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
import torch
from dvclive import Live  # type: ignore[attr-defined]
from ray import train as ray_train
from ray.train import Checkpoint, ScalingConfig
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
from personlab.stages.cluster import connect, final, fit, forget, node_cpus, run_config, watch

log = logging.getLogger("personlab")

_STATE = "state.pt"
_LOG_EVERY = 50  # steps


class Recipe(Section):
    """All that decides what a training run does, but its data."""

    codec: Codec
    model: Model
    train: Train


def run(params: Params, root: Path) -> None:
    """Write data/train/model.safetensors (+ .json), metrics.json and plots/.

    Raises:
        UserError: there are too few images to train on, or the loss stopped being finite.
    """
    recipe = Recipe(codec=params.codec, model=params.model, train=params.train)
    shards = root.resolve() / "data/targets/train"
    next(plan(row_groups(shards), recipe.train, workers=recipe.train.workers))  # or say why not
    settings = run_config(root, "train", recipe, [shards], max_failures=recipe.train.max_failures)
    live = Path(str(settings.storage_path)) / str(settings.name) / "live"
    with connect(), watch(recipe.train.steps, "train") as board:
        trainer = TorchTrainer(
            _work,
            train_loop_config={
                "recipe": recipe.model_dump(),
                "root": str(root.resolve()),
                "live": str(live),
                "shards": str(shards),
                "board": board,
            },
            scaling_config=ScalingConfig(
                num_workers=recipe.train.workers,
                use_gpu=recipe.train.gpu,
                resources_per_worker={"CPU": 0.5, **({"GPU": 1} if recipe.train.gpu else {})},
            ),
            run_config=replace(settings, worker_runtime_env={"env_vars": _threads(recipe.train.workers)}),
        )
        _export(recipe, fit(trainer, board), live, root)
    forget(settings)


def _threads(workers: int) -> dict[str, str]:
    """What a worker really uses of the processors: Ray would give it the threads of its half of one.

    They have to be set before the worker imports torch; later changes are not followed.
    """
    return {"OMP_NUM_THREADS": str(max(1, node_cpus() // workers))}


def _export(recipe: Recipe, folder: Path, live: Path, root: Path) -> None:
    """Turn a run's last checkpoint and curves into the stage's output."""
    network = build(recipe.model, recipe.codec, stride=recipe.train.stride, root=root)
    state = torch.load(folder / _STATE, weights_only=True)
    with atomic_folder(root / "data/train") as output:
        checkpoint.save(
            output / "model.safetensors", state["averaged"], network.card(recipe.train.model_dump())
        )
        write_atomic(output / "metrics.json", json.dumps(state["losses"], indent=2) + "\n")
        shutil.copytree(live / "plots/metrics", output / "plots")
    log.info("train: %d steps done, data/train/model.safetensors written", state["step"])


@final
def _work(config: dict[str, Any]) -> None:
    """What each training worker does."""
    recipe = Recipe.model_validate(config["recipe"])
    train, device, board = recipe.train, get_device(), config["board"]
    torch.manual_seed(train.seed)
    network = build(recipe.model, recipe.codec, stride=train.stride, root=Path(config["root"]))
    supervised = Supervised(network.train(), Objective.of(recipe.model, recipe.codec, train)).to(device)
    progress = _Progress(network, engine.optimizer(network, train), _average(train))
    if saved := ray_train.get_checkpoint():
        with saved.as_directory() as folder:
            progress.load(Path(folder), device)
        board.post.remote(progress.step, f"going on from step {progress.step}")
    curves = _Curves(Path(config["live"]), board, progress.step) if _leads() else None

    parallel = prepare_model(supervised, move_to_device=False)
    pace = _Pace()
    batches = _batches(recipe, Path(config["shards"]), device, done=progress.step)
    for step, batch in zip(range(progress.step + 1, train.steps + 1), pace.timed(batches), strict=False):
        losses = engine.train_step(parallel, batch, progress.optimizer, precision=train.precision)
        progress.average.update(network, step)
        progress.step = step
        if curves:
            curves.add(step, losses, last=step == train.steps)
        if step % train.checkpoint_every == 0 or step == train.steps:
            _report(progress, losses)
    if curves:
        curves.live.end()
        ray.get(board.post.remote(progress.step, pace.summary()))


def _average(train: Train) -> Average:
    return Average(start=round(train.average_from * train.steps))


def _leads() -> bool:
    """One worker writes for all."""
    return int(ray_train.get_context().get_world_rank()) == 0


@dataclass
class _Progress:
    """All that a checkpoint has to hold for a run to go on as if it had never stopped."""

    network: PersonLab
    optimizer: torch.optim.Optimizer
    average: Average
    step: int = 0

    def save(self, folder: Path, losses: dict[str, float]) -> None:
        state = {
            "step": self.step,
            "losses": losses,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state_dict(),
            "averaged": self.average.of(self.network),
        }
        torch.save(state, folder / _STATE)

    def load(self, folder: Path, device: torch.device) -> None:
        state = torch.load(folder / _STATE, map_location=device, weights_only=True)
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average.load_state_dict(state["average"], device)
        self.step = state["step"]


def _report(progress: _Progress, losses: dict[str, float]) -> None:
    """Hand a checkpoint to Ray; every worker has to, but only one brings the files."""
    with tempfile.TemporaryDirectory() as folder:
        if _leads():
            progress.save(Path(folder), losses)
        kept = Checkpoint.from_directory(folder) if _leads() else None
        ray_train.report(losses, checkpoint=kept)


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


class _Curves:
    """Mean losses over the last steps: to DVCLive's curves, and a line to the log."""

    def __init__(self, folder: Path, board: Any, step: int) -> None:
        self.live = Live(str(folder), resume=step > 0, save_dvc_exp=False, dvcyaml=None, report=None)
        self.board = board
        self.recent: list[dict[str, float]] = []

    def add(self, step: int, losses: dict[str, float], *, last: bool) -> None:
        self.recent.append(losses)
        if step % _LOG_EVERY and not last:
            self.board.post.remote(step)
            return
        means = {name: sum(each[name] for each in self.recent) / len(self.recent) for name in losses}
        self.recent = []
        self.live.step = step
        for name, value in means.items():
            self.live.log_metric(f"loss/{name}", value)
        self.live.make_summary()
        self.board.post.remote(step, ", ".join(f"{name} {value:.4f}" for name, value in means.items()))


def _batches(recipe: Recipe, shards: Path, device: torch.device, *, done: int) -> Iterator[Batch]:
    """This worker's share of every training batch from step `done` on, on `device`, prepared ahead."""
    context = ray_train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    threads = max(1, node_cpus() // workers - 1)
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
