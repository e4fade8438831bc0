"""AP of a network with some of its fields replaced by the true ones, or by those of other weights.

    python -m benchmarks.fields --weights FILE [--other FILE...] --annotations FILE --images FOLDER
                                [--side 801] [--stride 8] [--samples 1000] [--json FILE]

By default, fields are replaced by the encoded annotations where these are defined: the gain bounds what a
better field could bring. With `--other`, by the fields of other weights with the same keypoints and radius:
the difference shows which field a training has improved or made worse. Differences have the 95% interval of
a paired bootstrap over the images.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final, get_args

import torch
from pycocotools.coco import COCO

from benchmarks.photos import Score, Setting, files_of, table
from personlab.codec.decode import Level
from personlab.codec.encode import encode
from personlab.codec.fields import FIELDS, Fields
from personlab.data import images
from personlab.data.transform import ImageArray
from personlab.errors import UserError
from personlab.metrics.coco import Task, match
from personlab.metrics.files import read_annotations
from personlab.metrics.oracle import people_of, project
from personlab.params import Infer
from personlab.people import Detection
from personlab.predictor import Predictor, side_by_side
from personlab.utils.progress import progress

# The fields that are replaced together.
REPLACED: Final = (
    *((name,) for name in FIELDS),
    ("heatmap", "short"),
    ("heatmap", "short", "mid"),
    ("seg", "long"),
    FIELDS,
)

# Fields to replace the predicted ones with, given the image, its id and its predicted level.
Source = Callable[[ImageArray, int, Level], Fields]


def main() -> None:
    options = _options()
    infer = Infer(sides=(options.side,), stride=options.stride, precision="float32")
    predictor = Predictor.from_checkpoint(options.weights, infer)
    truth = read_annotations(options.annotations).truth
    sources: dict[str, Source] = {
        str(path): partial(_of_others, _like(predictor, path)) for path in options.other
    } or {"true": partial(_true, truth, predictor)}
    found = find(predictor, sources, files_of(options.annotations, options.images))
    setting, figures = Setting(options.stride, (options.side,)), []
    for task in get_args(Task):
        scores = [
            Score.of(setting, method, match(truth, people, task), options.samples)
            for method, people in found.items()
        ]
        columns = [name for name in scores[0].columns if name.startswith("AP")]
        differences = ["", *(each.minus(scores[0]) for each in scores[1:])]
        rows = [
            [each.method, *(f"{100 * each.columns[name]:.1f}" for name in columns), difference]
            for each, difference in zip(scores, differences, strict=True)
        ]
        print(table(f"{task}, {setting}", ["fields replaced", *columns, "difference of AP"], rows))
        figures += [{"task": task, "method": each.method, **each.columns} for each in scores]
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


def find(
    predictor: Predictor, sources: dict[str, Source], files: dict[int, Path]
) -> dict[str, dict[int, list[Detection]]]:
    """The people found with every choice of fields, by choice and image id; a predictor of one side."""
    (side,) = predictor.sides

    def people(image_id: int) -> dict[str, list[Detection]]:
        image = images.read(files[image_id], apply_exif=False)
        height, width = image.shape[:2]
        level = predictor.level(image, side)
        levels = {"none": level}
        for source, other in sources.items():
            fields = other(image, image_id, level)
            for names in REPLACED:
                some = level.fields.replace(**{name: getattr(fields, name) for name in names})
                levels[f"{source} {', '.join(names)}"] = replace(level, fields=some)
        return {
            name: list(predictor.decoder.people([each], height=height, width=width, image=image))
            for name, each in levels.items()
        }

    found: dict[str, dict[int, list[Detection]]] = defaultdict(dict)
    with side_by_side(len(files)) as threads, ThreadPoolExecutor(threads) as pool:
        several = zip(files, pool.map(people, files), strict=True)
        for image_id, by_name in progress(several, total=len(files), label="decoding"):
            for name, each in by_name.items():
                found[name][image_id] = each
    return found


def _like(predictor: Predictor, path: Path) -> Predictor:
    """Other weights, of the same keypoints and radius."""
    infer = Infer(sides=predictor.sides, stride=predictor.network.stride, precision=predictor.precision)
    other = Predictor.from_checkpoint(path, infer)
    if (other.skeleton, other.decoder.radius) != (predictor.skeleton, predictor.decoder.radius):
        raise UserError(f"{path}: its keypoints or model.radius are not those of --weights")
    return other


def _of_others(other: Predictor, image: ImageArray, _image_id: int, _level: Level) -> Fields:
    (side,) = other.sides
    return other.level(image, side).fields


def _true(truth: COCO, predictor: Predictor, image: ImageArray, image_id: int, level: Level) -> Fields:
    """The targets where they are defined, the predicted fields elsewhere."""
    (side,) = predictor.sides
    height, width = image.shape[:2]
    stride, skeleton = predictor.network.stride, predictor.skeleton
    people, _ = project(
        people_of(truth, image_id), height=height, width=width, side=side, stride=stride, skeleton=skeleton
    )
    targets = encode(people, stride=stride, radius=predictor.decoder.radius, skeleton=skeleton)
    defined = {
        "heatmap": targets.heatmap_valid,
        "short": targets.short_valid[:, :, None],
        "mid": targets.mid_valid[:, :, None],
        "seg": targets.seg_valid,
        "long": targets.long_valid[:, :, None],
    }
    if not level.fields.has_masks:
        del defined["seg"], defined["long"]
    wanted, predicted = targets.fields.tensors(), level.fields.tensors()
    return level.fields.replace(
        **{name: torch.where(where, wanted[name], predicted[name]) for name, where in defined.items()}
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fields", description="Measure what each field of a network is worth."
    )
    parser.add_argument("--weights", type=Path, required=True, metavar="FILE")
    parser.add_argument(
        "--other", type=Path, nargs="+", default=[], metavar="FILE", help="take the fields of these"
    )
    parser.add_argument("--annotations", type=Path, required=True, metavar="FILE")
    parser.add_argument("--images", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--side", type=int, default=801, metavar="N")
    parser.add_argument("--stride", type=int, default=8, choices=[8, 16, 32], metavar="S")
    parser.add_argument("--samples", type=int, default=1000, metavar="N", help="of the bootstrap")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all columns here")
    return parser.parse_args()


if __name__ == "__main__":
    main()
