"""Train the single-person keypoint estimator on ground-truth boxes with Ray Train, and measure it on val."""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
import torch
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer, get_device
from torch import Tensor

from personlab import params, tables
from personlab.data.crops import Person, person_crop, training_crop, with_images
from personlab.data.example import pixels
from personlab.data.loader import ReadChunk, plan
from personlab.distributed import checkpoints, cluster
from personlab.distributed.board import fit, no_retry, watch
from personlab.distributed.checkpoints import Run
from personlab.errors import UserError
from personlab.metrics.oks import similarity
from personlab.model import checkpoint
from personlab.model.estimator import Estimator, build
from personlab.model.precision import autocast
from personlab.params import Params
from personlab.people import Annotation
from personlab.skeleton import KEYPOINTS, K
from personlab.tables import shards
from personlab.tables.shards import RowGroup
from personlab.utils import malloc
from personlab.utils.files import atomic_folder, write_json
from personlab.utils.prefetch import prefetch
from personlab.utils.progress import progress

log = logging.getLogger("personlab")

# A keypoint is found (PCK) if it is within this share of the longer side of the person's box.
_PCK_REACH: Final = 0.1
# The estimator is for small people, so it is also measured on people shown this many pixels tall.
_SMALL: Final = 28.0
_VALIDATION_BATCH: Final = 64
_CURVE_POINTS: Final = 100
# The code that decides how it learns, besides this file: a run is resumed only with the same code.
_CODE: Final = ("codec/fields.py", "codec/hough.py", "data", "model")

People = dict[int, list[Person]]  # by image id


def run(params: Params, root: Path) -> None:
    """Write data/estimator/estimator.safetensors with its card, metrics and plots.

    Raises:
        UserError: the training split has no people with keypoints, or an image cannot be decoded.
    """
    settings = params.estimator
    train, val = people_with_keypoints(root, "train"), people_with_keypoints(root, "val")
    if not train:
        raise UserError(
            "the train split has no people with labelled keypoints for the estimator to learn from; "
            "see data/ingest/rejects.parquet, or use other data (acquire.source)"
        )
    counts = [sum(map(len, people.values())) for people in (train, val)]
    log.info("estimator: %d people to train on, %d to validate on", *counts)
    run = checkpoints.run_of(
        root, "estimator", [settings], _inputs(settings, root), params.compute.storage_path
    )
    with run.lock():
        with cluster.connect(params.compute.ray_address):
            state, losses = _train(settings, params.compute, root, run)
        # The GPU may belong to a worker on another node.
        device = "cuda" if params.compute.gpu and torch.cuda.is_available() else "cpu"
        estimator = Estimator(settings).to(device).eval()
        estimator.load_state_dict(state)
        sizes = {"full": math.inf, "small": _SMALL}
        scores = {name: _validate(estimator, val, root, height, name) for name, height in sizes.items()}
        with atomic_folder(root / "data/estimator") as output:
            card = estimator.card({"people": counts[0], "steps": len(losses), "data": run.name})
            checkpoint.save(output / "estimator.safetensors", state, card)
        write_json(root / "data/plots/estimator/loss.json", _curve(losses))
        write_json(root / "data/plots/estimator/pck.json", _pck_points(scores))
        metrics = {name: score.summary() for name, score in scores.items()}
        write_json(root / "data/metrics/estimator.json", {"people": counts[1], **metrics})


def people_with_keypoints(root: Path, split: tables.Split) -> People:
    """The people of a split that have labelled keypoints, crowds left out."""
    table = tables.read_table(root / "data/ingest/people.parquet", tables.PEOPLE)
    people: People = {}
    for row in table.filter(pc.equal(table["split"], split)).to_pylist():
        if any(row["visibility"]) and not row["crowd"]:
            people.setdefault(row["image_id"], []).append(Person.of(Annotation.from_row(row)))
    return people


def _inputs(settings: params.Estimator, root: Path) -> list[Path]:
    """What a training run depends on besides its parameters: data, initial weights and code."""
    package = Path(__file__).parents[1]
    data = [root / "data/ingest/people.parquet", root / "data/ingest/train"]
    init = [root / settings.init] if settings.init else []
    return [*data, *init, *(package / name for name in _CODE), Path(__file__)]


# --- training ---------------------------------------------------------------------------------------------


def _train(
    settings: params.Estimator, compute: params.Compute, root: Path, run: Run
) -> tuple[dict[str, Tensor], list[float]]:
    """The trained weights and the loss of every step."""
    needs = {"CPU": cluster.node_cpus(), "GPU": int(compute.gpu)}
    cluster.require(1, cpus=needs["CPU"], gpus=needs["GPU"], mend="set compute.gpu to false")
    with watch(settings.steps, "estimator") as board:
        config = {
            "params": settings.model_dump(),
            "checkpoint_every": compute.checkpoint_every,
            "root": str(root.resolve()),
            "run": run,
            "board": board,
        }
        trainer = TorchTrainer(
            _train_worker,
            train_loop_config=config,
            scaling_config=ScalingConfig(num_workers=1, use_gpu=compute.gpu, resources_per_worker=needs),
            run_config=run.config(compute.max_failures),
        )
        fit(trainer, board)
    saved = run.finished(settings.steps)
    return saved["model"], saved["losses"]


@no_retry
def _train_worker(config: dict[str, Any]) -> None:
    settings, run = params.Estimator.model_validate(config["params"]), config["run"]
    root = Path(config["root"])
    malloc.disable_trim()
    torch.manual_seed(settings.seed)
    device = get_device()
    estimator = build(settings, root).to(device).train()
    optimizer = torch.optim.Adam(estimator.parameters(), lr=settings.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=settings.learning_rate, total_steps=settings.steps + 1
    )
    learners: dict[str, Any] = {"model": estimator, "optimizer": optimizer, "schedule": schedule}
    losses: list[float] = []
    if saved := checkpoints.resumed(run, device, lambda line: config["board"].post.remote(0, line)):
        losses = saved["losses"]
        for name, learner in learners.items():
            learner.load_state_dict(saved[name])
        config["board"].post.remote(len(losses), f"resuming after step {len(losses)}")

    def state() -> dict[str, Any]:
        return {name: learner.state_dict() for name, learner in learners.items()} | {
            "step": len(losses),
            "losses": losses,
        }

    for step, batch in enumerate(_batches(settings, root, done=len(losses)), start=len(losses) + 1):
        images, keypoints, labelled = (tensor.to(device) for tensor in batch.tensors)
        with autocast(device, settings.precision):
            fields = estimator(images)
        loss = estimator.loss(fields, keypoints, labelled)
        losses.append(loss.item())
        if not np.isfinite(losses[-1]):
            raise UserError(
                f"estimator: the loss of step {step} is not finite on people "
                f"{', '.join(map(str, sorted(batch.person_ids)))}; look at their images, or lower "
                "estimator.learning_rate"
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        last = step == settings.steps
        line = f"step {step}, loss {np.mean(losses[-50:]):.3f}" if step % 50 == 0 or last else None
        config["board"].post.remote(step, line)
        if step % config["checkpoint_every"] == 0 or last:
            checkpoints.save(run, step, state)


@dataclass(frozen=True)
class _Batch:
    """Crops (B x 3 x H x W uint8), keypoints (B x K x 2, crop pixels), which are labelled (B x K)."""

    tensors: tuple[Tensor, Tensor, Tensor]
    person_ids: list[int]


def _batches(settings: params.Estimator, root: Path, *, done: int) -> Iterator[_Batch]:
    """Batches of random crops after step `done`, prepared ahead; every person once per epoch."""
    images = root / "data/ingest/train"
    people = people_with_keypoints(root, "train")
    groups, rows = _groups_of_people(images, people)
    chunks = plan(groups, batch=settings.batch, steps=settings.steps, seed=settings.seed, done=done)

    def read(chunk: ReadChunk) -> list[tuple[int, Person, Mapping[str, Any]]]:
        """The people of a chunk with their images' rows, in order."""
        files = {row["image_id"]: row for group in chunk.groups for row in group.read().to_pylist()}
        held = [(image, person) for group in chunk.groups for image, person in rows[group]]
        return [(chunk.epoch, person, files[image]) for image, person in (held[r] for r in chunk.rows)]

    def crop(item: tuple[int, Person, Mapping[str, Any]]) -> tuple[int, tuple[Tensor, Tensor, Tensor]]:
        epoch, person, row = item
        random = np.random.default_rng((settings.seed, epoch, person.id))
        size = {"height": settings.crop_height, "width": settings.crop_width}
        return person.id, training_crop(pixels(row), person, random, **size)

    threads = max(1, cluster.node_cpus() - 1)
    items = (item for chunk in prefetch(read, chunks, threads=1, depth=1) for item in chunk)
    crops = prefetch(crop, items, threads=threads, depth=2 * settings.batch)
    while batch := [crop for _, crop in zip(range(settings.batch), crops, strict=False)]:
        ids, tensors = zip(*batch, strict=True)
        stacked = (torch.stack(each) for each in zip(*tensors, strict=True))
        yield _Batch(tuple(stacked), list(ids))  # type: ignore[arg-type]


def _groups_of_people(
    images: Path, people: People
) -> tuple[list[RowGroup], dict[RowGroup, list[tuple[int, Person]]]]:
    """The row groups whose images show people, each with the number and list of its people."""
    groups, rows = list[RowGroup](), dict[RowGroup, list[tuple[int, Person]]]()
    for group in shards.row_groups(images):
        ids = group.read(["image_id"])["image_id"].to_pylist()
        mine = [(image_id, person) for image_id in ids for person in people.get(image_id, [])]
        if mine:
            groups.append(RowGroup(group.part, group.index, len(mine)))
            rows[groups[-1]] = mine
    return groups, rows


def _curve(losses: list[float]) -> list[dict[str, float]]:
    """At most 100 points of the loss curve, each the mean since the one before."""
    pieces = np.array_split(np.array(losses), min(len(losses), _CURVE_POINTS))
    ends = np.cumsum([len(piece) for piece in pieces])
    return [
        {"step": int(end), "loss": round(float(piece.mean()), 5)}
        for end, piece in zip(ends, pieces, strict=True)
    ]


# --- validation -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Scores:
    """How well people were estimated; N x K."""

    similarity: npt.NDArray[np.float64]  # per-keypoint similarity, as in OKS
    found: npt.NDArray[np.bool_]  # as in PCK
    labelled: npt.NDArray[np.bool_]

    def summary(self) -> dict[str, float | None]:
        """Mean OKS over people and PCK over keypoints; None where there are none."""
        if not len(self.labelled):
            return {"oks": None, "pck": None}
        per_person = (self.similarity * self.labelled).sum(1) / self.labelled.sum(1)
        return {
            "oks": round(float(per_person.mean()), 4),
            "pck": round(float(self.found[self.labelled].mean()), 4),
        }


def _validate(estimator: Estimator, val: People, root: Path, height: float, name: str) -> _Scores:
    """Estimate annotated people shown with the detail of at most `height` pixels each."""
    people, estimates = list[Person](), list[npt.NDArray[np.float64]]()
    size = {"height": estimator.settings.crop_height, "width": estimator.settings.crop_width}
    groups = shards.row_groups(root / "data/ingest/val")
    for group in progress(groups, label=f"estimator: validate at {name} size"):
        held = list(with_images(group.read().to_pylist(), val)) if val else []
        crops = [person_crop(image, person.box, **size, person_height=height) for person, image in held]
        people += [person for person, _ in held]
        for start in range(0, len(crops), _VALIDATION_BATCH):
            images, transforms = zip(*crops[start : start + _VALIDATION_BATCH], strict=True)
            estimates.append(estimator.estimate(images, transforms)[..., :2].astype(np.float64))
    return _score(people, np.concatenate(estimates) if people else np.zeros((0, K, 2)))


def _score(people: Sequence[Person], found: npt.NDArray[np.float64]) -> _Scores:
    annotated = np.array([person.keypoints for person in people]).reshape(-1, K, 2)
    reach = _PCK_REACH * np.array([max(person.box[2:]) for person in people]).reshape(-1, 1)
    return _Scores(
        similarity=similarity(found, annotated, np.array([person.area for person in people])),
        found=np.linalg.norm(found - annotated, axis=-1) <= reach,
        labelled=np.array([person.labelled for person in people]).reshape(-1, K),
    )


def _pck_points(scores: dict[str, _Scores]) -> list[dict[str, Any]]:
    """One point per keypoint and size; keypoints that are never labelled are left out."""
    return [
        {
            "keypoint": f"{keypoint}, {name}",  # bars of the same name would be one
            "pck": round(float(score.found[score.labelled[:, k], k].mean()), 4),
        }
        for name, score in scores.items()
        for k, keypoint in enumerate(KEYPOINTS)
        if score.labelled[:, k].any()
    ]
