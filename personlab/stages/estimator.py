"""Train the single-person keypoint estimator on ground-truth boxes with Ray Train, and validate it."""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
import torch
from ray.train import ScalingConfig
from ray.train.torch import get_device
from torch import Tensor

from personlab import params, tables
from personlab.data.crops import Person, person_crop, training_crop, with_images
from personlab.data.images import pixels
from personlab.data.loader import ReadChunk, plan
from personlab.distributed import checkpoints, cluster
from personlab.distributed.board import fit, no_retry, watch
from personlab.distributed.checkpoints import Run
from personlab.distributed.trainer import Trainer
from personlab.errors import UserError
from personlab.metrics.oks import similarity
from personlab.model import checkpoint
from personlab.model.estimator import Estimator, build
from personlab.model.precision import autocast
from personlab.params import Params
from personlab.people import Annotation
from personlab.skeleton import Skeleton
from personlab.tables import shards
from personlab.tables.shards import RowGroup
from personlab.utils import malloc
from personlab.utils.files import atomic_folder, write_json
from personlab.utils.prefetch import prefetch
from personlab.utils.progress import progress

log = logging.getLogger("personlab")

# PCK: a keypoint is correct within this share of the longer side of the person's box.
_PCK_TOLERANCE: Final = 0.1
# Small people, whose keypoints are imputed, are simulated at this height in pixels.
_SMALL: Final = 28.0
_VALIDATION_BATCH: Final = 64
_CURVE_POINTS: Final = 100
# The code that decides the result, besides this file: a run resumes only with the same code.
_CODE: Final = (
    *("codec/fields.py", "codec/hough.py", "codec/loops.py", "codec/pyramid.py"),
    *("data", "model", "skeleton.py"),
)

People = dict[int, list[Person]]  # by image id
_Bools = npt.NDArray[np.bool_]
_Floats = npt.NDArray[np.float64]


def run(params: Params, root: Path) -> None:
    """Write data/estimator/estimator.safetensors with its card, metrics and plots.

    Raises:
        UserError: the training split has no people with keypoints, or an image cannot be decoded.
    """
    settings, skeleton = params.estimator, tables.read_dataset(root / "data").skeleton
    train, val = people_with_keypoints(root, "train"), people_with_keypoints(root, "val")
    if not train:
        raise UserError(
            "estimator: the train split has no people with labelled keypoints; see "
            "data/ingest/rejects.parquet, or use other data (acquire.source)"
        )
    counts = [sum(map(len, people.values())) for people in (train, val)]
    log.info("estimator: %d people to train on, %d to validate on", *counts)
    run = checkpoints.run_of(
        root, "estimator", [settings], _inputs(settings, root), params.compute.storage_path
    )
    with run.lock():
        with cluster.connect(params.compute.ray_address):
            state, losses = _train(settings, params.compute, root, run)
        # On a cluster, the GPU may be on another node.
        device = "cuda" if params.compute.gpu and torch.cuda.is_available() else "cpu"
        estimator = Estimator(settings, skeleton).to(device).eval()
        estimator.load_state_dict(state)
        sizes = {"full": math.inf, "small": _SMALL}
        scores = {name: _validate(estimator, val, root, height, name) for name, height in sizes.items()}
        with atomic_folder(root / "data/estimator") as output:
            card = estimator.card({"people": counts[0], "steps": len(losses), "data": run.name})
            checkpoint.save(output / "estimator.safetensors", state, card)
        write_json(root / "data/plots/estimator/loss.json", _curve(losses))
        for name, score in scores.items():
            write_json(root / f"data/plots/estimator/pck-{name}.json", _pck_points(score, skeleton))
        metrics = {name: score.summary() for name, score in scores.items()}
        write_json(root / "data/metrics/estimator.json", {"people": counts[1], **metrics})


def people_with_keypoints(root: Path, split: tables.Split) -> People:
    """The people of a split with labelled keypoints, without crowds."""
    table = tables.read_table(root / "data/ingest/people.parquet", tables.PEOPLE)
    people: People = {}
    for row in table.filter(pc.equal(table["split"], split)).to_pylist():
        if any(row["visibility"]) and not row["crowd"]:
            people.setdefault(row["image_id"], []).append(Person.of(Annotation.from_row(row)))
    return people


def _inputs(settings: params.Estimator, root: Path) -> list[Path]:
    """What decides the result besides the parameters: data, initial weights and code."""
    package = Path(__file__).parents[1]
    ingest = root / "data/ingest"
    data = [ingest / "people.parquet", ingest / tables.DATASET, ingest / "train"]
    init = [root / settings.init] if settings.init else []
    return [*data, *init, *(package / name for name in _CODE), Path(__file__)]


# --- training ---------------------------------------------------------------------------------------------


def _train(
    settings: params.Estimator, compute: params.Compute, root: Path, run: Run
) -> tuple[dict[str, Tensor], list[float]]:
    """Train on one worker; return the weights and the loss of every step."""
    needs = {"CPU": cluster.node_cpus(), "GPU": int(compute.gpu)}
    cluster.require(1, cpus=needs["CPU"], gpus=needs["GPU"], hint="set compute.gpu to false")
    with watch(settings.steps, "estimator") as board:
        trainer = Trainer(
            _train_worker,
            train_loop_config={
                "settings": settings,
                "checkpoint_every": compute.checkpoint_every,
                "root": root.resolve(),
                "run": run,
                "board": board,
            },
            scaling_config=ScalingConfig(num_workers=1, use_gpu=compute.gpu, resources_per_worker=needs),
            run_config=run.config(compute.max_failures),
        )
        fit(trainer, board)
    saved = run.finished(settings.steps)
    return saved["model"], saved["losses"]


@no_retry
def _train_worker(config: dict[str, Any]) -> None:
    settings: params.Estimator = config["settings"]
    run, board, root = config["run"], config["board"], config["root"]
    malloc.disable_trim()
    torch.manual_seed(settings.seed)
    device = get_device()
    skeleton = tables.read_dataset(root / "data").skeleton
    estimator = build(settings, root, skeleton=skeleton).to(device).train()
    optimizer = torch.optim.Adam(estimator.parameters(), lr=settings.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=settings.learning_rate, total_steps=settings.steps + 1
    )
    stateful: dict[str, Any] = {"model": estimator, "optimizer": optimizer, "schedule": schedule}
    losses: list[float] = []
    if saved := checkpoints.resumed(run, device, lambda line: board.post.remote(0, line)):
        losses = saved["losses"]
        for name, each in stateful.items():
            each.load_state_dict(saved[name])
        board.post.remote(len(losses), f"resuming from step {len(losses)}")

    def state() -> dict[str, Any]:
        states = {name: each.state_dict() for name, each in stateful.items()}
        return states | {"step": len(losses), "losses": losses}

    for step, batch in enumerate(_batches(settings, root, done=len(losses)), start=len(losses) + 1):
        with autocast(device, settings.precision):
            fields = estimator(batch.images.to(device))
        loss = estimator.loss(fields, batch.keypoints.to(device), batch.labelled.to(device))
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise UserError(
                f"estimator: the loss of step {step} is not finite on people "
                f"{', '.join(map(str, sorted(batch.person_ids)))}; check their images, or lower "
                "estimator.learning_rate"
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        last = step == settings.steps
        line = f"step {step}, loss {np.mean(losses[-50:]):.3f}" if step % 50 == 0 or last else None
        board.post.remote(step, line)
        if step % config["checkpoint_every"] == 0 or last:
            checkpoints.save(run, step, state)


@dataclass(frozen=True)
class _Batch:
    images: Tensor  # B x 3 x crop height x crop width, uint8
    keypoints: Tensor  # B x K x 2, crop pixels
    labelled: Tensor  # B x K
    person_ids: list[int]


def _batches(settings: params.Estimator, root: Path, *, done: int) -> Iterator[_Batch]:
    """Batches of random crops for the steps after `done`, prepared ahead. An epoch has every person once."""
    people, flip = people_with_keypoints(root, "train"), tables.read_dataset(root / "data").skeleton.flip
    groups = list(_groups_with_people(root / "data/ingest/train", people))
    sizes = [len(members) for _, members in groups]
    chunks = plan(sizes, batch=settings.batch, steps=settings.steps, seed=settings.seed, done=done)
    size = {"height": settings.crop_height, "width": settings.crop_width}

    def read(chunk: ReadChunk) -> list[tuple[int, Person, Mapping[str, Any]]]:
        """The people of a chunk, in order: epoch, person, row of the image."""
        chosen = [groups[index] for index in chunk.groups]
        images = {row["image_id"]: row for group, _ in chosen for row in group.read().to_pylist()}
        members = [member for _, members in chosen for member in members]
        ordered = (members[row] for row in chunk.rows)
        return [(chunk.epoch, person, images[image_id]) for image_id, person in ordered]

    def crop(item: tuple[int, Person, Mapping[str, Any]]) -> tuple[Tensor, Tensor, Tensor, int]:
        epoch, person, image = item
        random = np.random.default_rng((settings.seed, epoch, person.id))
        return *training_crop(pixels(image), person, random, flip, **size), person.id

    items = (item for chunk in prefetch(read, chunks, threads=1, depth=1) for item in chunk)
    threads = max(1, cluster.node_cpus() - 1)
    crops = prefetch(crop, items, threads=threads, depth=2 * settings.batch)
    while batch := list(islice(crops, settings.batch)):
        images, keypoints, labelled, person_ids = zip(*batch, strict=True)
        yield _Batch(torch.stack(images), torch.stack(keypoints), torch.stack(labelled), list(person_ids))


def _groups_with_people(images: Path, people: People) -> Iterator[tuple[RowGroup, list[tuple[int, Person]]]]:
    """The row groups whose images show people, each with its people and their image ids."""
    for group in shards.row_groups(images):
        ids = group.read(["image_id"])["image_id"].to_pylist()
        members = [(image_id, person) for image_id in ids for person in people.get(image_id, [])]
        if members:
            yield group, members


def _curve(losses: list[float]) -> list[dict[str, float]]:
    """At most 100 points of the loss curve, each the mean since the previous one."""
    pieces = np.array_split(np.array(losses), min(len(losses), _CURVE_POINTS))
    ends = np.cumsum([len(piece) for piece in pieces]).tolist()
    means = [round(float(piece.mean()), 5) for piece in pieces]
    return [{"step": end, "loss": mean} for end, mean in zip(ends, means, strict=True)]


# --- validation -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Scores:
    """Scores of the keypoints of N people: N x K each."""

    similarity: _Floats  # as in OKS
    correct: _Bools  # as in PCK
    labelled: _Bools

    def summary(self) -> dict[str, float | None]:
        """Mean OKS over people and PCK over keypoints; None without people."""
        if not len(self.labelled):
            return {"oks": None, "pck": None}
        oks = (self.similarity * self.labelled).sum(1) / self.labelled.sum(1)
        pck = self.correct[self.labelled].mean()
        return {"oks": round(float(oks.mean()), 4), "pck": round(float(pck), 4)}


def _validate(estimator: Estimator, val: People, root: Path, height: float, name: str) -> _Scores:
    """Scores of the estimates of annotated people, shown at a resolution of at most `height` pixels each."""
    people, estimates = list[Person](), list[_Floats]()
    size = {"height": estimator.settings.crop_height, "width": estimator.settings.crop_width}
    groups = shards.row_groups(root / "data/ingest/val")
    for group in progress(groups, label=f"estimator: validate at {name} size"):
        shown = list(with_images(group.read().to_pylist(), val)) if val else []
        crops = [person_crop(image, person.box, **size, person_height=height) for person, image in shown]
        people += [person for person, _ in shown]
        for start in range(0, len(crops), _VALIDATION_BATCH):
            images, transforms = zip(*crops[start : start + _VALIDATION_BATCH], strict=True)
            estimates.append(estimator.estimate(images, transforms)[..., :2].astype(np.float64))
    count = len(estimator.skeleton.keypoints)
    found = np.concatenate(estimates) if people else np.zeros((0, count, 2))
    return _score(people, found, estimator.skeleton)


def _score(people: Sequence[Person], estimates: _Floats, skeleton: Skeleton) -> _Scores:
    count = len(skeleton.keypoints)
    annotated = np.array([person.keypoints for person in people]).reshape(-1, count, 2)
    area = np.array([person.area for person in people])
    tolerance = _PCK_TOLERANCE * np.array([max(person.box[2:]) for person in people]).reshape(-1, 1)
    return _Scores(
        similarity=similarity(estimates, annotated, area, skeleton.kappas),
        correct=np.linalg.norm(estimates - annotated, axis=-1) <= tolerance,
        labelled=np.array([person.labelled for person in people]).reshape(-1, count),
    )


def _pck_points(score: _Scores, skeleton: Skeleton) -> list[dict[str, Any]]:
    """One point per keypoint, without keypoints that are never labelled."""
    return [
        {"keypoint": keypoint, "pck": round(float(score.correct[score.labelled[:, k], k].mean()), 4)}
        for k, keypoint in enumerate(skeleton.keypoints)
        if score.labelled[:, k].any()
    ]
