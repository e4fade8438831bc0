"""Time and bytes of an image that no other benchmark measures: inputs of the cost model.

    python -m benchmarks.costs --weights FILE [--coco FOLDER] [--json FILE]

CPU time on photos of a COCO folder (../shared/data/coco-mini). The network in `--weights` decides only the
times of the codec and of `evaluate`, and the size of predictions. Operations are counted by PyTorch's
FlopCounterMode without computing them. The figures are the inputs of benchmarks/scaling.py.
"""

import argparse
import json
import resource
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rich.console import Console
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import trial
from personlab import params, tables
from personlab.codec.decode import detections
from personlab.codec.fields import Fields
from personlab.data import images
from personlab.data.crops import person_crop, with_images
from personlab.data.images import pixels
from personlab.inference import job as batch
from personlab.inference.listing import list_images
from personlab.model.estimator import Estimator, PersonFields
from personlab.model.network import PersonLab
from personlab.params import Model, Params
from personlab.predictor import Predictor, decoding
from personlab.skeleton import COCO_PERSON
from personlab.tables import shards

_PAPER = Model(backbone="resnet101", width=64)
_MOBILE = Model(backbone="mobilenet16", width=24)
_LISTED = 1_000_000
_PART = 256
_TASKS = 500, 4500
_PHOTOS = 20


def main() -> None:
    options = _options()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        # listing comes first: its memory is measured by the peak of the process
        found = listing(Path(folder)) | operations()
        found |= stages(Path(folder), options.coco, options.weights)
        parts()  # warms up
        found |= photo(options.coco, options.weights) | parts()
    for name, value in found.items():
        Console().print(f"{name} = {value:.6g}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


# --- operations ---------------------------------------------------------------------------------------------


def operations() -> dict[str, float]:
    """TFLOP an image (a multiplication and an addition are two), and parameters."""
    photo = {"infer": (1401, 1057), "mobile": (513, 385)}  # width and height, 4:3
    trained = PersonLab(_PAPER, stride=16, skeleton=COCO_PERSON).train()
    estimator = Estimator(_paper_params().estimator, skeleton=COCO_PERSON).train()
    networks = {
        "infer": PersonLab(_PAPER, stride=8, skeleton=COCO_PERSON).eval(),
        "mobile": PersonLab(_MOBILE, stride=16, skeleton=COCO_PERSON).eval(),
    }
    with FakeTensorMode(allow_non_fake_inputs=True):
        crop = torch.zeros(1, 3, 801, 801, dtype=torch.uint8)
        person = torch.zeros(1, 3, 353, 257, dtype=torch.uint8)
        counts = {
            "train_tflop": _tflop(lambda: _backward(*trained.forward_training(crop))),
            "estimator_train_tflop": _tflop(lambda: _backward(estimator(person))),
        }
        with torch.inference_mode():
            counts["impute_tflop"] = _tflop(lambda: estimator.eval()(person))
            for name, network in networks.items():
                width, height = photo[name]
                seen = torch.zeros(1, 3, height, width, dtype=torch.uint8)
                counts[f"{name}_tflop"] = _tflop(partial(network, seen))
    return counts | {"parameters": float(sum(p.numel() for p in trained.parameters()))}


def _paper_params() -> Params:
    return params.load(trial.ROOT / "configs/coco2017-resnet101.yaml")


def _tflop(work: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops()) / 1e12


def _backward(*outputs: Fields | PersonFields) -> None:
    tensors = [t for each in outputs for t in vars(each).values() if isinstance(t, Tensor)]
    torch.stack([tensor.sum() for tensor in tensors]).sum().backward()


# --- stages -------------------------------------------------------------------------------------------------


def stages(folder: Path, coco: Path, weights: Path) -> dict[str, float]:
    """Seconds and bytes an image of the stages that do not use Ray, and of a person that is imputed."""
    from personlab.stages import acquire, evaluate, ingest, targets

    own = params.load(trial.ROOT / "params.yaml")
    predictor = Predictor.from_checkpoint(weights)
    own = own.model_copy(
        update={
            "acquire": params.Acquire(source="directory", directory=str(coco.resolve())),
            "infer": params.Infer(precision="float32"),
            "decode": decoding(predictor.network),
            "evaluate": params.Evaluate(gallery=1),
        }
    )
    acquire.run(own, folder)
    ingested = _seconds(lambda: ingest.run(own, folder))
    (folder / "data/impute").mkdir()
    shutil.copy(folder / "data/ingest/people.parquet", folder / "data/impute")
    targeted = _seconds(lambda: targets.run(own, folder))
    count, val = (
        sum(group.rows for split in splits for group in shards.row_groups(folder / "data/ingest" / split))
        for splits in (tables.SPLITS, ("val",))
    )
    checked = sum(split.images for split in acquire.read_source(folder).splits.values())

    def size(pattern: str) -> int:
        return sum(path.stat().st_size for path in folder.glob(f"data/{pattern}/part-*.parquet"))

    _predict(predictor, folder)
    evaluated = _seconds(lambda: evaluate.run(own, folder))
    return {
        "ingest_s": ingested / checked,
        "targets_s": targeted / count,
        "evaluate_s": evaluated / val,
        "impute_s": _crop_seconds(folder),
        "jpeg_bytes": sum(p.stat().st_size for p in coco.glob("*2017/*.jpg")) / checked,
        "shard_bytes": (size("ingest/*") + size("targets/*")) / count,
        "prediction_bytes": size("infer") / val,
    }


def _predict(predictor: Predictor, folder: Path) -> None:
    """The predictions of the stage infer, without Ray."""
    for shard in shards.parts(folder / "data/ingest/val", "ingest"):
        rows = [
            {key: row[key] for key in ("image_id", "height", "width")}
            | {"people": [person.to_row() for person in predictor(pixels(row))]}
            for row in tables.read_table(shard, tables.IMAGES).to_pylist()
        ]
        table = pa.Table.from_pylist(rows, schema=tables.PREDICTIONS)
        tables.write_table(table, folder / "data/infer" / shard.name, params_hash="")


def _crop_seconds(folder: Path) -> float:
    """Seconds of the stage impute for a person beside the network: decode and crop, at the paper's size."""
    settings = _paper_params().estimator
    table = tables.read_table(folder / "data/ingest/people.parquet", tables.PEOPLE).to_pylist()
    people = defaultdict[int, list[dict[str, Any]]](list)
    for person in table:
        people[person["image_id"]].append(person)

    def crop() -> None:
        for split in tables.SPLITS:
            for group in shards.row_groups(folder / "data/ingest" / split):
                for person, image in with_images(group.read().to_pylist(), people):
                    x, y, width, height = person["box"]
                    size = {"height": settings.crop_height, "width": settings.crop_width}
                    person_crop(image, (x, y, width, height), **size)

    return _seconds(crop) / len(table)


def _seconds(work: Callable[[], object]) -> float:
    """CPU time, which depends less on the load of the machine."""
    start = time.process_time()
    work()
    return time.process_time() - start


# --- prediction ---------------------------------------------------------------------------------------------


def photo(coco: Path, weights: Path) -> dict[str, float]:
    """Seconds a photo of an actor's work beside the network, at the sizes of `operations`."""
    spent = defaultdict[str, float](float)
    paths = sorted((coco / "val2017").glob("*.jpg"))[:_PHOTOS]
    settings = {
        "large": params.Infer(sides=(1401,), stride=8, precision="float32"),
        "mobile": params.Infer(sides=(513,), stride=16, precision="float32"),
    }
    for name, setting in settings.items():
        predictor = Predictor.from_checkpoint(weights, setting)
        predictor(images.read(paths[0]))  # compiles
        for path in paths:
            start = time.process_time()
            image = images.read(path)
            spent["decode_s"] += (time.process_time() - start) / 2
            height, width = image.shape[:2]
            levels = [predictor.level(image, *setting.sides)]
            start = time.process_time()
            poses, drawn = predictor.decoder.decode(levels, height=height, width=width, image=image)
            masks = list(drawn)
            decoded = time.process_time()
            list(detections(poses, masks))
            spent[f"{name}_codec_s"] += decoded - start
            spent[f"{name}_rle_s"] += time.process_time() - decoded
    return {name: seconds / len(paths) for name, seconds in spent.items()}


# --- batch inference ----------------------------------------------------------------------------------------


def listing(folder: Path) -> dict[str, float]:
    """Costs of a list of a million URIs: of planning the run, and of each actor that opens the list."""
    listed = folder / "uris.txt"
    with listed.open("w") as file:
        for number in range(_LISTED):
            file.write(f"s3://a-bucket/photos/{number % 1000:03}/{number:012}.jpg\n")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    stored = tables.table_bytes(list_images(str(listed)).entries, params_hash="", row_group_size=_PART)
    planned = time.process_time() - start
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    path = folder / "inputs.parquet"
    path.write_bytes(stored)
    opened = _seconds(lambda: pq.ParquetFile(path))
    return {
        "listing_s": planned / _LISTED,
        "listing_bytes": grown / _LISTED,
        "inputs_bytes": len(stored) / _LISTED,
        "footer_bytes": int.from_bytes(stored[-8:-4], "little") / (_LISTED / _PART),
        "footer_s": opened / (_LISTED / _PART),
        "manifest_bytes": float(len(_stored_part(1).model_dump_json(indent=1))),
    }


def _stored_part(number: int) -> batch.Part:
    """The record of a part of which every image shows three people."""
    return batch.Part(
        number=number,
        predictions=_PART,
        errors=0,
        proposals=20 * _PART,
        people=3 * _PART,
        sha256=["0" * 64],
    )


def parts() -> dict[str, float]:
    """Ray's cost of a part: seconds of the driver, and bytes in the object store, from the difference."""
    from personlab.distributed import batch as stage
    from personlab.distributed.cluster import connect

    spent, stored = list[float](), list[float]()
    with connect():
        for count in _TASKS:
            start = time.process_time()
            units = stage._one_block_each(range(count))
            for _ in units.map(_part).iter_rows():
                pass
            spent.append(time.process_time() - start)
            stored.append(_store_bytes())
            del units
    more = _TASKS[1] - _TASKS[0]
    return {"part_s": (spent[1] - spent[0]) / more, "part_bytes": (stored[1] - stored[0]) / more}


def _part(row: dict[str, Any]) -> dict[str, Any]:
    part = _stored_part(row["number"])
    return {"part": part.model_dump_json(), "failure": ""}


def _store_bytes() -> float:
    """Bytes in the object store."""
    import ray

    time.sleep(2)  # nodes report periodically
    there, free = ray.cluster_resources(), ray.available_resources()
    return float(there["object_store_memory"] - free["object_store_memory"])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.costs", description="Measure stages.")
    parser.add_argument("--weights", type=Path, required=True, metavar="FILE")
    parser.add_argument("--coco", type=Path, default=trial.COCO_MINI, metavar="FOLDER")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    return parser.parse_args()


if __name__ == "__main__":
    main()
