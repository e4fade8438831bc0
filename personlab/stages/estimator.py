"""Train the single-person estimator on ground-truth boxes, by Ray Train, and measure it on the val split."""

import json
import logging
import math
from collections.abc import Iterator, Sequence
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
from personlab.data.crops import Person, TrainingCrops, person_crop, read_image
from personlab.distributed import checkpoints, cluster
from personlab.distributed.board import fit, no_retry, watch
from personlab.distributed.checkpoints import Run
from personlab.errors import UserError
from personlab.metrics.oks import similarity
from personlab.model import checkpoint
from personlab.model.estimator import Estimator, build
from personlab.params import Params
from personlab.people import Annotation
from personlab.skeleton import KEYPOINTS, K
from personlab.stages.acquire import image_root
from personlab.utils import malloc
from personlab.utils.files import atomic_folder, write_atomic
from personlab.utils.prefetch import prefetch
from personlab.utils.progress import progress

log = logging.getLogger("personlab")

# A keypoint is found (PCK) if it is within this share of the longer side of the person's box.
_PCK_REACH = 0.1
# The estimator imputes small people, so it is also measured on people shown this many pixels tall.
_SMALL = 28.0
_CURVE_POINTS = 100
# What decides how it learns, besides this file: dvc.yaml lists it too, and what measures.
_CODE: Final = ("codec/fields.py", "codec/hough.py", "data", "metrics/oks.py", "model")


def run(params: Params, root: Path) -> None:
    """Write data/estimator: estimator.safetensors and its card, metrics.json, plots/.

    Raises:
        UserError: nobody to learn from, or an image that ingest accepted can no longer be read.
    """
    settings = params.estimator
    train, val = people_with_keypoints(root, "train"), people_with_keypoints(root, "val")
    if not train:
        raise UserError(
            "nobody in the train split has labelled keypoints, so the estimator has nothing to learn from; "
            "see data/ingest/rejects.parquet, or use other data (acquire.source)"
        )
    log.info("estimator: learning from %d people, measured on %d", len(train), len(val))
    run = checkpoints.run_of(root, "estimator", [settings], _inputs(settings, root), params.ray.storage_path)
    with run.lock():
        with cluster.connect(params.ray.address):
            state, losses = _train(settings, root, run)
        # the GPU may be a worker's on another node, where this process has none
        device = "cuda" if settings.gpu and torch.cuda.is_available() else "cpu"
        estimator = Estimator(settings).to(device).eval()
        estimator.load_state_dict(state)
        with atomic_folder(root / "data/estimator") as output:
            card = estimator.card({"people": len(train), "steps": len(losses), "data": run.name})
            checkpoint.save(output / "estimator.safetensors", state, card)
            _write_json(output / "plots/loss.json", _curve(losses))
            sizes = {"full": math.inf, "small": _SMALL}
            scores = {name: _validate(estimator, val, height, name) for name, height in sizes.items()}
            _write_json(output / "plots/pck.json", _pck_points(scores))
            metrics = {name: score.summary() for name, score in scores.items()}
            _write_json(output / "metrics.json", {"people": len(val), **metrics})


def people_with_keypoints(root: Path, split: tables.Split) -> list[Person]:
    """The people of a split that have labelled keypoints, as the ingest stage left them."""
    folder = image_root(root)
    images = tables.read_table(root / "data/ingest/images.parquet", tables.IMAGES).to_pylist()
    path = {(row["split"], row["image_id"]): folder / row["file_name"] for row in images}
    people = tables.read_table(root / "data/ingest/people.parquet", tables.PEOPLE)
    rows = people.filter(pc.equal(people["split"], split)).to_pylist()
    annotated = [(Annotation.from_row(row), path[split, row["image_id"]]) for row in rows]
    return [
        Person(file, person.keypoints, person.visibility > 0, person.box, person.area)
        for person, file in annotated
        if person.visibility.any() and not person.crowd
    ]


def _inputs(settings: params.Estimator, root: Path) -> list[Path]:
    """What a training run depends on besides its parameters: the tables, weights to begin with, and the code
    that learns.
    """
    package = Path(__file__).parents[1]
    code = [*(package / name for name in _CODE), Path(__file__)]
    ingested = [root / f"data/ingest/{name}.parquet" for name in ("images", "people")]
    return [*ingested, *([root / settings.init] if settings.init else []), *code]


# --- training ---------------------------------------------------------------------------------------------


def _train(settings: params.Estimator, root: Path, run: Run) -> tuple[dict[str, Tensor], list[float]]:
    """The trained weights and the loss of every step."""
    needs = {"CPU": cluster.node_cpus(), "GPU": int(settings.gpu)}
    cluster.require(1, cpus=needs["CPU"], gpus=needs["GPU"], mend="set estimator.gpu to false")
    with watch(settings.steps, "estimator") as board:
        trainer = TorchTrainer(
            _train_worker,
            train_loop_config={
                "params": settings.model_dump(),
                "root": str(root.resolve()),
                "run": run,
                "board": board,
            },
            scaling_config=ScalingConfig(
                num_workers=1,
                use_gpu=settings.gpu,
                resources_per_worker=needs,
            ),
            run_config=run.config(settings.max_failures),
        )
        fit(trainer, board)
    saved = run.finished(settings.steps)
    return saved["model"], saved["losses"]


@no_retry
def _train_worker(config: dict[str, Any]) -> None:
    settings, run = params.Estimator.model_validate(config["params"]), config["run"]
    root = Path(config["root"])
    malloc.disable_trim()
    people = people_with_keypoints(root, "train")
    torch.manual_seed(settings.seed)
    device = get_device()
    estimator = build(settings, root).to(device).train()
    optimizer = torch.optim.Adam(estimator.parameters(), lr=settings.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=settings.learning_rate, total_steps=settings.steps + 1
    )
    learners: dict[str, Any] = {"model": estimator, "optimizer": optimizer, "schedule": schedule}
    losses: list[float] = []
    if saved := checkpoints.resumed(run, device, lambda news: config["board"].post.remote(0, news)):
        losses = saved["losses"]
        for name, learner in learners.items():
            learner.load_state_dict(saved[name])
        config["board"].post.remote(len(losses), f"going on after step {len(losses)}")

    def state() -> dict[str, Any]:
        return {name: learner.state_dict() for name, learner in learners.items()} | {
            "step": len(losses),
            "losses": losses,
        }

    crops = TrainingCrops(people, height=settings.crop_height, width=settings.crop_width, seed=settings.seed)
    for step, batch in enumerate(_batches(settings, crops, first=len(losses)), start=len(losses) + 1):
        images, keypoints, labelled = (tensor.to(device) for tensor in batch)
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bfloat16"):
            fields = estimator(images)
        loss = estimator.loss(fields, keypoints, labelled)
        losses.append(loss.item())
        if not np.isfinite(losses[-1]):
            names = {crops.person(n).path.name for n in range(step * settings.batch)[-settings.batch :]}
            raise UserError(
                f"estimator: the loss of step {step} is not finite on images {', '.join(sorted(names))}; "
                "look at these images, or lower estimator.learning_rate"
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        last = step == settings.steps
        news = f"step {step}, loss {np.mean(losses[-50:]):.3f}" if step % 50 == 0 or last else None
        config["board"].post.remote(step, news)
        if step % settings.checkpoint_every == 0 or last:
            checkpoints.save(run, step, state)


def _batches(
    settings: params.Estimator, crops: TrainingCrops, *, first: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Batches of crops from step `first` on, prepared ahead: a resumed run sees what it would have seen."""

    def batch(step: int) -> tuple[Tensor, Tensor, Tensor]:
        items = [crops[n] for n in range(step * settings.batch, (step + 1) * settings.batch)]
        images, keypoints, labelled = (torch.stack(each) for each in zip(*items, strict=True))
        return images, keypoints, labelled

    threads = max(1, cluster.node_cpus() - 1)
    return prefetch(batch, range(first, settings.steps), threads=threads, depth=2 * threads)


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


def _validate(estimator: Estimator, people: Sequence[Person], height: float, name: str) -> _Scores:
    """Estimate annotated people shown with the detail of at most `height` pixels each."""
    settings, estimates = estimator.settings, list[npt.NDArray[np.float64]]()
    starts = range(0, len(people), settings.batch)
    for start in progress(starts, label=f"estimator val, {name} size"):
        crops, transforms = zip(
            *(
                person_crop(
                    read_image(person.path),
                    person.box,
                    height=settings.crop_height,
                    width=settings.crop_width,
                    person_height=height,
                )
                for person in people[start : start + settings.batch]
            ),
            strict=True,
        )
        estimates.append(estimator.estimate(crops, transforms)[..., :2].astype(np.float64))
    found = np.concatenate(estimates) if people else np.zeros((0, K, 2))
    annotated = np.array([person.keypoints for person in people]).reshape(-1, K, 2)
    labelled = np.array([person.labelled for person in people]).reshape(-1, K)
    reach = _PCK_REACH * np.array([max(person.box[2:]) for person in people]).reshape(-1, 1)
    return _Scores(
        similarity=similarity(found, annotated, np.array([person.area for person in people])),
        found=np.linalg.norm(found - annotated, axis=-1) <= reach,
        labelled=labelled,
    )


def _pck_points(scores: dict[str, _Scores]) -> list[dict[str, Any]]:
    """One point per keypoint and size; keypoints that nobody has labelled are left out."""
    return [
        {
            "keypoint": f"{keypoint}, {name}",  # bars of the same name would be one
            "pck": round(float(score.found[score.labelled[:, k], k].mean()), 4),
        }
        for name, score in scores.items()
        for k, keypoint in enumerate(KEYPOINTS)
        if score.labelled[:, k].any()
    ]


def _write_json(path: Path, content: Any) -> None:
    write_atomic(path, json.dumps(content, indent=2, allow_nan=False) + "\n")
