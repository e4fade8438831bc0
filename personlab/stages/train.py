"""Train the network with Ray Train, and export its averaged weights.

After a kill, the same command resumes from the last checkpoint (distributed/checkpoints.py). The augmentation
of an image depends only on the seed, the epoch and the image, so a resumed run ends with the same weights as
an uninterrupted one (on a GPU, but for rounding).
"""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Final

import ray
import torch
from ray import train as ray_train
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer, get_device, prepare_model

from personlab.data.example import Example
from personlab.data.loader import image_groups, load_batches
from personlab.distributed import checkpoints
from personlab.distributed.board import fit, no_retry, watch
from personlab.distributed.checkpoints import Run, is_rank_zero, run_of
from personlab.distributed.cluster import connect, cpus_per_worker, node_cpus, require
from personlab.model import checkpoint
from personlab.model.losses import Objective
from personlab.model.network import PersonLab, build
from personlab.params import Compute, Model, Params, Section, Train
from personlab.tables import DATASET, read_dataset
from personlab.training import engine
from personlab.training.batches import batches
from personlab.training.engine import Average, Batch, StepLosses, Supervised
from personlab.training.validation import Validation
from personlab.utils import malloc
from personlab.utils.files import atomic_folder, write_json, write_tsv

log = logging.getLogger("personlab")

_LOG_EVERY: Final = 50  # steps
# Code that decides the weights, besides this file: a run is resumed only with the same code.
_CODE: Final = (
    *("codec/encode.py", "codec/fields.py", "codec/refine.py"),
    *("data", "model", "skeleton.py", "training"),
)

Points = list[tuple[int, dict[str, float]]]  # (step, value of each curve)


class Recipe(Section):
    """The parameters that decide the weights of a training run."""

    model: Model
    train: Train


def run(params: Params, root: Path) -> None:
    """Write data/train/model.safetensors, its card, metrics and learning curves.

    Raises:
        UserError: there are no images to train on, the loss is not finite, or a disk is full.
    """
    recipe = Recipe(model=params.model, train=params.train)
    image_groups(root / "data/ingest/train")  # raises without images, before Ray starts
    run = training_run(recipe, params.compute, root)
    with run.lock():
        with connect(params.compute.ray_address), watch(recipe.train.steps, "train") as board:
            fit(_trainer(recipe, params.compute, run, root, board), board)
        _export(recipe, run, root)


def training_run(recipe: Recipe, compute: Compute, root: Path) -> Run:
    """The run of a recipe on the data in `root`.

    With frozen normalisation statistics the number of workers changes rounding only, and a run can be resumed
    with any number. Otherwise each worker normalises by its own share of a batch, and runs with different
    numbers of workers are different runs.
    """
    sections: list[Section] = [recipe.model, recipe.train]
    if recipe.model.init is None and compute.workers > 1:
        sections.append(Compute(workers=compute.workers))
    return run_of(root, "train", sections, _inputs(recipe, root), compute.storage_path)


def _inputs(recipe: Recipe, root: Path) -> list[Path]:
    """The files that a run depends on: data, initial weights and code."""
    package = Path(__file__).parents[1]
    data = [root / "data" / stage / split for stage in ("ingest", "targets") for split in ("train", "val")]
    data.append(root / "data/ingest" / DATASET)
    init = [root / recipe.model.init] if recipe.model.init else []
    cards = [path.with_suffix(".json") for path in init]
    return [*data, *init, *cards, *(package / name for name in _CODE), Path(__file__)]


def _trainer(recipe: Recipe, compute: Compute, run: Run, root: Path, board: Any) -> TorchTrainer:
    needs = {"CPU": 0.5, "GPU": int(compute.gpu)}
    hint = "lower compute.workers" + (" or set compute.gpu to false" if compute.gpu else "")
    require(compute.workers, cpus=needs["CPU"], gpus=needs["GPU"], hint=hint)
    # Ray would give a worker the threads of its half of a processor. This has to be set before the worker
    # imports torch, which does not follow later changes.
    threads = {"OMP_NUM_THREADS": str(cpus_per_worker(compute.workers, gpu=compute.gpu))}
    return TorchTrainer(
        _work,
        train_loop_config={
            "recipe": recipe,
            "checkpoint_every": compute.checkpoint_every,
            "run": run,
            "root": root.resolve(),
            "board": board,
        },
        scaling_config=ScalingConfig(
            num_workers=compute.workers,
            use_gpu=compute.gpu,
            resources_per_worker=needs,
            # GPUs of one node exchange gradients faster; CPU workers on one node would share its cores
            placement_strategy="PACK" if compute.gpu else "SPREAD",
        ),
        run_config=replace(run.config(compute.max_failures), worker_runtime_env={"env_vars": threads}),
    )


def _network(recipe: Recipe, root: Path) -> PersonLab:
    """The network to train: with heads for the dataset's keypoints, and for masks if it has any."""
    dataset = read_dataset(root / "data")
    return build(
        recipe.model,
        stride=recipe.train.stride,
        skeleton=dataset.skeleton,
        masks=dataset.masks,
        root=root,
    )


def _export(recipe: Recipe, run: Run, root: Path) -> None:
    """Write the outputs of the stage from the last checkpoint of a run."""
    state = run.finished(recipe.train.steps)
    network = _network(recipe, root)
    with atomic_folder(root / "data/train") as output:
        card = network.card(recipe.train.model_dump())
        checkpoint.save(output / "model.safetensors", state["averaged"], card)
    with atomic_folder(root / "data/plots/train") as output:
        _write_curves(output / "loss.tsv", state["curve"]["points"])
        _write_curves(output / "ap.tsv", state["ap"])
    write_json(root / "data/metrics/train.json", state["losses"])
    log.info("train: %d steps, data/train/model.safetensors written", state["step"])


def _write_curves(path: Path, points: Points) -> None:
    """One table of the points of all curves; no file without points."""
    names = dict.fromkeys(name for _, values in points for name in values)
    if points:
        write_tsv(
            path, ({"step": step, **{name: values.get(name) for name in names}} for step, values in points)
        )


@no_retry
def _work(config: dict[str, Any]) -> None:
    """The training loop of one worker."""
    recipe, run, board, root = (config[key] for key in ("recipe", "run", "board", "root"))
    train, device = recipe.train, get_device()
    malloc.disable_trim()
    torch.manual_seed(train.seed)
    network = _network(recipe, root)
    supervised = Supervised(network.train(), Objective.of(recipe.model, train, network.skeleton)).to(device)
    average = Average(start=round(train.average_from * train.steps))
    progress = _Progress(network, engine.optimizer(network, train), average)
    if state := checkpoints.resumed(run, device, lambda line: board.post.remote(0, line)):
        progress.load(state, device)
        if is_rank_zero():
            board.post.remote(progress.step, f"resuming from step {progress.step}")
    monitors = is_rank_zero() and train.validate_every > 0
    validation = Validation.of(network, root / "data", train) if monitors else None

    if train.compile:
        supervised.compile()
    parallel = prepare_model(supervised, move_to_device=False)
    engine.set_gradient_precision(parallel, train)
    gpu = device.type != "cpu"
    examples = _examples(recipe, root / "data", network, gpu=gpu, done=progress.step)
    throughput = _Throughput(gpu)
    timed = throughput.timed(batches(examples, network, device))
    for step, batch in zip(range(progress.step + 1, train.steps + 1), timed, strict=False):
        engine.set_learning_rate(progress.optimizer, train, step)
        progress.advance(
            step, engine.train_step(parallel, batch, progress.optimizer, precision=train.precision)
        )
        last = step == train.steps
        saves = step % config["checkpoint_every"] == 0 or last
        validates = train.validate_every > 0 and step % train.validate_every == 0
        if step % _LOG_EVERY == 0 or saves or validates:
            progress.read_losses()
        if step % _LOG_EVERY == 0 or last:
            progress.add_point()
        if validation and validates:
            with throughput.paused():  # the other workers wait for this one before the next step
                progress.ap.append((step, validation(average.of(network))))
        if is_rank_zero():
            _report(board, step, progress)
        if saves:
            checkpoints.save(run, step, progress.state)
    if is_rank_zero():
        ray.get(board.post.remote(progress.step, throughput.summary()))


@dataclass
class _Progress:
    """The state of a run, as checkpoints hold it."""

    network: PersonLab
    optimizer: torch.optim.Optimizer
    average: Average
    points: Points = field(default_factory=list)  # losses, each the mean over the steps since the last point
    recent: list[dict[str, float]] = field(default_factory=list)  # losses of the steps since then
    unread: list[StepLosses] = field(default_factory=list)  # losses of the last steps, still on the device
    ap: Points = field(default_factory=list)  # of the averaged weights
    losses: dict[str, float] = field(default_factory=dict)  # of the last step that has been read
    step: int = 0

    def advance(self, step: int, losses: StepLosses) -> None:
        """Record that `step` has updated the network."""
        self.average.update(self.network, step)
        self.step = step
        self.unread.append(losses)

    def read_losses(self) -> None:
        """Read the losses of all steps so far. This waits for the GPU, which then has no work for a moment.

        Raises:
            UserError: a loss is not finite.
        """
        self.recent += engine.read_losses(self.unread)
        self.losses = self.recent[-1]
        self.unread = []

    def add_point(self) -> None:
        """Add a point to the loss curves."""
        means = {name: fmean(each[name] for each in self.recent) for name in self.losses}
        self.points.append((self.step, means))
        self.recent = []

    def state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "losses": self.losses,
            "curve": {"points": self.points, "recent": self.recent},
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
        self.points, self.recent = state["curve"]["points"], state["curve"]["recent"]
        self.step, self.losses, self.ap = state["step"], state["losses"], state["ap"]


class _Throughput:
    """Images per second of a worker from its second batch on, and how long it waits for data.

    On a GPU the latter is not known: the process waits for the steps before at any time.
    """

    def __init__(self, gpu: bool) -> None:
        self.gpu = gpu
        self.images, self.waited, self.validated, self.start = 0, 0.0, 0.0, time.monotonic()

    def timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        yield next(batches)  # its time includes reading the first shards
        self.start = time.monotonic()
        while True:
            start = time.monotonic()
            batch = next(batches)
            self.waited += time.monotonic() - start
            self.images += len(batch.images)
            yield batch

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time of the block, a validation."""
        start = time.monotonic()
        yield
        self.validated += time.monotonic() - start

    def summary(self) -> str:
        seconds = max(time.monotonic() - self.start - self.validated, 1e-9)
        validation = f"; {self.validated:.0f} s of validation not included" if self.validated else ""
        waiting = "" if self.gpu else f", {self.waited / seconds:.0%} of the time waiting for data"
        return f"{self.images / seconds:.1f} images/s on each worker{waiting}{validation}"


def _report(board: Any, step: int, progress: _Progress) -> None:
    """Post the step, and new points of the curves."""
    for curve, points in (("loss", progress.points), ("AP on val images", progress.ap)):
        if points and points[-1][0] == step:
            values = ", ".join(f"{name} {value:.4f}" for name, value in points[-1][1].items())
            board.post.remote(step, f"{curve}: {values or 'no annotated people'}")
    board.post.remote(step)


def _examples(
    recipe: Recipe, data: Path, network: PersonLab, *, gpu: bool, done: int
) -> Iterator[list[Example]]:
    """This worker's share of every training batch after step `done`.

    They are prepared during the steps of a GPU, but between the steps of a CPU, which would share its cores.
    """
    context = ray_train.get_context()
    threads = max(1, node_cpus() // context.get_local_world_size() - 1) if gpu else torch.get_num_threads()
    return load_batches(
        data / "ingest/train",
        data / "targets/train",
        recipe.train,
        rank=context.get_world_rank(),
        workers=context.get_world_size(),
        done=done,
        threads=threads,
        overlap=gpu,
        skeleton=network.skeleton,
    )
