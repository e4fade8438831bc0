"""A rehearsal of the pipeline: its eight stages and their files, but nothing is trained, so it takes seconds.

`python rehearsal.py STAGE` in a project that `project` made. The further `train.learning_rate` is from the
best one, the further off are the predictions. `evaluate` is the real stage. People have the keypoints that
`acquire.sample.keypoints` says.
"""

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml

from personlab.skeleton import COCO_PERSON, Skeleton

BEST, USUAL, BAD = 1e-3, 3e-3, 1.0  # learning rates
HEIGHT, WIDTH, IMAGES = 120, 160, 24
STAGES = ("acquire", "ingest", "estimator", "impute", "targets", "train", "infer", "evaluate")
PARAMS = {
    "acquire": {"source": "sample"},
    "model": {"backbone": "resnet18", "width": 8, "radius": 12},
    "train": {"learning_rate": USUAL, "crop": 97, "batch": 2, "steps": 60},
    "infer": {"sides": [129], "stride": 16},
    "decode": {"nms_radius": 5, "bin": 1, "extensions": []},
    "evaluate": {"gallery": 4},
}
INPUTS = {  # of each stage: parameters and earlier outputs
    "acquire": (["acquire"], []),
    "ingest": (["ingest"], ["data/acquire"]),
    "estimator": (["estimator"], ["data/ingest"]),
    "impute": (["impute"], ["data/estimator"]),
    "targets": (["targets"], ["data/impute"]),
    "train": (
        ["model", "train"],
        ["data/ingest/train", "data/ingest/val", "data/targets/train", "data/targets/val"],
    ),
    "infer": (
        ["infer", "decode"],
        ["data/ingest/val", "data/train/model.safetensors", "data/train/model.json"],
    ),
    "evaluate": (["evaluate", "decode.max_people"], ["data/ingest/val", "data/targets/val", "data/infer"]),
}


def project(folder: Path, weights: Path | None = None) -> None:
    """Make a Git and DVC repository with the rehearsal, committed.

    A stage fails with the text of input/STAGE.txt unless that is "ok".

    Args:
        weights: a real model, which `train` writes instead of text that only `infer` can read.
    """
    from dvc.repo import Repo

    from personlab.params import Params
    from personlab.registry.provenance import ARTIFACT

    (folder / "input").mkdir(parents=True)
    if weights:
        for suffix in (".safetensors", ".json"):
            shutil.copy(weights.with_suffix(suffix), (folder / "input/model").with_suffix(suffix))
    stages = {}
    for stage, (params, deps) in INPUTS.items():
        (folder / "input" / f"{stage}.txt").write_text("ok\n")
        stages[stage] = {
            "cmd": f"python rehearsal.py {stage}",
            "params": params,
            "deps": [f"input/{stage}.txt", *deps],
            "outs": [f"data/{stage}"],
            "metrics": [] if stage == "acquire" else [{f"data/metrics/{stage}.json": {"cache": False}}],
        }
    stages["evaluate"]["outs"].append({"data/plots/evaluate": {"cache": False}})
    artifacts = {ARTIFACT: {"path": "data/infer", "type": "model"}}
    (folder / "dvc.yaml").write_text(
        yaml.safe_dump({"stages": stages, "artifacts": artifacts}, sort_keys=False)
    )
    complete = Params.model_validate(PARAMS).model_dump(mode="json")
    (folder / "params.yaml").write_text(yaml.safe_dump(complete, sort_keys=False))
    (folder / ".gitignore").write_text("/runs/\n/models/\n/.prefect/\n/ui.log\n__pycache__/\n")
    (folder / ".dvcignore").write_text("runs\nmodels\n.prefect\n__pycache__\n")
    (folder / "data").mkdir()
    (folder / "data/.gitignore").write_text(
        "".join(f"/{stage}\n" for stage in STAGES) + "/report\n.*.partial\n"
    )
    (folder / "rehearsal.py").write_bytes(Path(__file__).read_bytes())
    run(folder, "git", "init", "-q", "-b", "main")
    Repo.init(str(folder)).close()
    commit(folder)


def commit(folder: Path) -> None:
    run(folder, "git", "add", "-A")
    run(folder, "git", "-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "-qm", "rehearsal")


def run(folder: Path, *command: str) -> str:
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


@contextmanager
def dvc(folder: Path) -> Iterator[Any]:
    """DVC's `Repo` of a project, which is the current folder for the time of the block."""
    from dvc.repo import Repo

    with chdir(folder), Repo() as repo:
        yield repo


def experiments(folder: Path) -> list[str]:
    """Names of the DVC experiments."""
    return run(folder, "git", "for-each-ref", "--format=%(refname:lstrip=4)", "refs/exps/*/*/*").split()


# --- the stages: each writes data/STAGE -------------------------------------------------------------------


def acquire(out: Path, params: Any) -> None:
    (out / "source.json").write_text(json.dumps({"source": "sample", "root": "data/acquire"}))


def ingest(out: Path, params: Any) -> None:
    write_shards(out / "train", "images", first=1, skeleton=skeleton_of(params))
    write_shards(out / "val", "images", first=1001, skeleton=skeleton_of(params))
    metrics("ingest", images=24)
    picture(out / "sheet.jpg", "red")


def estimator(out: Path, params: Any) -> None:
    metrics("estimator", pck=0.5)


def impute(out: Path, params: Any) -> None:
    metrics("impute", imputed=3)
    picture(out / "imputed.png", "blue")


def targets(out: Path, params: Any) -> None:
    write_shards(out / "train", "people", first=1, skeleton=skeleton_of(params))
    write_shards(out / "val", "people", first=1001, skeleton=skeleton_of(params))
    metrics("targets", train={"images": IMAGES}, val={"images": IMAGES})


def train(out: Path, params: Any) -> None:
    from safetensors.numpy import load_file, save_file

    blur = 4.0 * abs(np.log10(params.train.learning_rate / BEST))
    weights, card = out / "model.safetensors", {"skeleton": skeleton_of(params).to_record()}
    if (real := Path("input/model.safetensors")).exists():
        save_file(load_file(real), weights, {"blur": str(blur)})  # the same network, but other bytes
        digest = hashlib.sha256(weights.read_bytes()).hexdigest()
        card = json.loads(real.with_suffix(".json").read_bytes()) | {"sha256": digest}
    else:
        weights.write_text(f"{blur}\n")
    (out / "model.json").write_text(json.dumps(card | {"blur": blur}))
    metrics("train", heatmap=blur / 10)


def infer(out: Path, params: Any) -> None:
    for name in ("model.safetensors", "model.json"):
        (out / name).write_bytes(Path("data/train", name).read_bytes())
    blur = json.loads(Path("data/train/model.json").read_bytes())["blur"]
    write_predictions(out, blur, first=1001, skeleton=skeleton_of(params))
    metrics("infer", images=IMAGES, proposals=2 * IMAGES, people=2 * IMAGES)


def metrics(stage: str, **values: Any) -> None:
    Path("data/metrics").mkdir(parents=True, exist_ok=True)
    Path("data/metrics", f"{stage}.json").write_text(json.dumps(values))


def skeleton_of(params: Any) -> Skeleton:
    """COCO's, or that of 14 keypoints."""
    from personlab.data.category import Category, skeleton
    from personlab.synthetic.dataset import LIMBS, LIMBS_SKELETON

    if params.acquire.sample.keypoints == len(COCO_PERSON.keypoints):
        return COCO_PERSON
    links = tuple((a - 1, b - 1) for a, b in LIMBS_SKELETON)
    return skeleton(Category((1,), "person", LIMBS, len(LIMBS), links), [])


def write_shards(out: Path, kind: str, first: int, skeleton: Skeleton = COCO_PERSON) -> None:
    """Shards of images, with the description of the dataset beside them, or of their people."""
    from personlab import tables

    count = len(skeleton.keypoints)
    rows = [
        {
            "image_id": image_id,
            "file_name": f"{image_id}.jpg",
            "height": HEIGHT,
            "width": WIDTH,
            "image": jpeg(image_id),
            "people": [person(2 * image_id + n, box, count) for n, box in enumerate(boxes(image_id))],
        }
        for image_id in range(first, first + IMAGES)
    ]
    schema = tables.IMAGES if kind == "images" else tables.TARGETS
    if kind == "images":
        tables.Dataset(skeleton, masks=True).write(out.parent)
    tables.write_table(pa.Table.from_pylist(rows, schema=schema), out / "part-00000.parquet", params_hash="0")


def write_predictions(out: Path, blur: float, first: int, skeleton: Skeleton = COCO_PERSON) -> None:
    """Predictions of all people, up to three times `blur` pixels off."""
    from personlab import tables

    rows, count = [], len(skeleton.keypoints)
    for image_id in range(first, first + IMAGES):
        chance = np.random.default_rng(image_id)
        people = [detection(box, blur * chance.uniform(-3, 3, 2), s, count) for box, s in scored(image_id)]
        rows.append({"image_id": image_id, "height": HEIGHT, "width": WIDTH, "people": people})
    table = pa.Table.from_pylist(rows, schema=tables.PREDICTIONS)
    tables.write_table(table, out / "part-00000.parquet", params_hash="0")


def boxes(image_id: int) -> list[tuple[int, int, int, int]]:
    shift = image_id % 7
    return [(10 + shift, 20, 50, 80), (90 + shift, 15, 50, 80)]


def scored(image_id: int) -> Iterator[tuple[tuple[int, int, int, int], float]]:
    scores = np.random.default_rng(image_id + 1).uniform(0.3, 1.0, 2)
    return zip(boxes(image_id), sorted(scores, reverse=True), strict=True)


def person(number: int, box: tuple[int, int, int, int], count: int) -> dict[str, Any]:
    return {
        "person_id": number,
        "keypoints": lattice(box, count).ravel(),
        "visibility": [2] * count,
        "confidence": [1.0] * count,
        "imputed": False,
        "box": list(box),
        "area": float(box[2] * box[3]),
        "crowd": False,
        "mask": rectangle(box),
    }


def detection(box: tuple[int, int, int, int], off: np.ndarray, score: float, count: int) -> dict[str, Any]:
    x, y = np.clip(np.round(np.add(box[:2], off)), 0, (WIDTH - box[2], HEIGHT - box[3])).astype(int)
    return {
        "score": score,
        "keypoints": (lattice(box, count) + off).ravel(),
        "keypoint_scores": [score] * count,
        "mask": rectangle((x, y, box[2], box[3])),
    }


def lattice(box: tuple[int, int, int, int], count: int) -> np.ndarray:
    x, y, w, h = box
    return np.array(
        [(x + w * (k % 4 + 0.5) / 4, y + h * (k // 4 + 0.5) / 5) for k in range(count)], np.float32
    )


def rectangle(box: tuple[int, int, int, int]) -> bytes:
    from pycocotools import mask as rle

    x, y, w, h = box
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8, order="F")
    mask[y : y + h, x : x + w] = 1
    counts: bytes = rle.encode(mask)["counts"]
    return counts


def jpeg(image_id: int) -> bytes:
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (WIDTH, HEIGHT), (image_id % 200, 120, 90)).save(file, "JPEG")
    return file.getvalue()


def picture(path: Path, colour: str) -> None:
    from PIL import Image

    Image.new("RGB", (40, 30), colour).save(path)


def main(stage: str) -> None:
    from personlab.params import load

    if (text := Path("input", f"{stage}.txt").read_text().strip()) != "ok":
        sys.exit(text)
    print(f"{stage}: hello from the stage")
    params = load(Path("params.yaml"))
    if stage == "evaluate":
        from personlab.stages import evaluate

        evaluate.run(params, Path())
        return
    folder = Path("data", stage)
    folder.mkdir(parents=True)
    globals()[stage](folder, params)


if __name__ == "__main__":
    main(sys.argv[1])
