"""AP of the decoder on the fields of a network on photos, and what each choice is worth.

    python -m benchmarks.photos --weights FILE... --annotations FILE --images FOLDER [--sides 513 801 1201]
                                [--strides 16 8] [--precisions float32] [--steps] [--samples 1000]
                                [--json FILE]

The photos are those of any annotation file in COCO's format. The network runs once on each image, side and
stride; all decoders read the same fields. Ours is compared with itself with one choice changed, and with tfjs
body-pix 2.2.1 under Node, at a score threshold low enough not to limit AP. Differences have the 95% interval
of a paired bootstrap over the images. A choice that changes nothing in a task has no column there. tfjs is
left out without Node or if body-pix cannot be installed.

`--steps` measures our steps beyond the paper's decoder instead: each on top of the former, and last of all.
Several files of weights, or precisions of the network, are compared with the first one instead, each with the
decoding of its card.
"""

import argparse
import json
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from pycocotools.coco import COCO

from benchmarks.tfjs import Scene, Tfjs, TfjsError, install
from personlab.codec.decode import Decoder, Level, detections
from personlab.codec.extensions import EXTENSIONS, Extension
from personlab.data import images
from personlab.metrics.bootstrap import interval, resampled_ap
from personlab.metrics.coco import Array, Matches, Task, match
from personlab.metrics.files import read_annotations
from personlab.params import Infer, InferPrecision
from personlab.people import Detection
from personlab.predictor import Predictor
from personlab.utils.progress import progress

CACHE = Path(".cache") / "bench-node"

SETTING = "sides / stride"
OURS = "ours"
PAPER = "paper"

# Least heatmap value of a seed for tfjs; its default is 0.4.
SCORE_THRESHOLD = 0.01

# Least score of a pose that gets a mask from tfjs: its default, and the best of those tried.
MASKS_SCORE = 0.2

# Number of keypoints by which tfjs assigns pixels, and least p_S of a person's pixel: the best of those
# tried, and its defaults.
TFJS = {"tfjs": (17, 0.5), "tfjs, its own masks": (5, 0.7)}


def methods(decoder: Decoder) -> dict[str, Decoder]:
    """Our decoder, and variants with one choice changed."""
    return {
        OURS: decoder,
        "2 steps": replace(decoder, trace_refinements=2),
        "no steps": replace(decoder, trace_refinements=0, long_refinements=0),
        "masks without steps": replace(decoder, long_refinements=0),
        "Hough": replace(decoder, scoring="hough"),
        "hard NMS": replace(decoder, nms="hard"),
        "Hough, hard NMS": replace(decoder, scoring="hough", nms="hard"),
    }


def steps(decoder: Decoder) -> dict[str, Decoder]:
    """The paper's decoder, then with each of our steps more; and ours with each step left out."""
    some = {f"+ {step}": EXTENSIONS[:count] for count, step in enumerate(EXTENSIONS, start=1)}
    others = {f"- {step}": tuple(other for other in EXTENSIONS if other != step) for step in EXTENSIONS}
    del some[f"+ {EXTENSIONS[-1]}"], others[f"- {EXTENSIONS[-1]}"]  # they are all steps, and all but the last
    chosen: dict[str, tuple[Extension, ...]] = {PAPER: (), **some, OURS: EXTENSIONS, **others}
    return {name: replace(decoder, extensions=extensions) for name, extensions in chosen.items()}


@dataclass(frozen=True, order=True)
class Setting:
    """Input of the network: one side, or a pyramid."""

    stride: int
    sides: tuple[int, ...]

    def __str__(self) -> str:
        return f"{' + '.join(map(str, self.sides))} / {self.stride}"


@dataclass(frozen=True)
class Score:
    """One decoder in one setting and task: the paper's columns, and the AP of every resampling."""

    setting: Setting
    method: str
    task: Task
    columns: dict[str, float]
    resampled: Array

    @classmethod
    def of(cls, setting: Setting, method: str, matches: Matches, samples: int) -> "Score":
        return cls(setting, method, matches.task, matches.columns(), resampled_ap(matches, samples=samples))

    def plain(self) -> str:
        low, high = interval(self.resampled)
        return f"{100 * self.columns['AP']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"

    def minus(self, other: "Score") -> str:
        low, high = interval(self.resampled - other.resampled)
        difference = self.columns["AP"] - other.columns["AP"]
        return f"{100 * difference:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


Found = dict[tuple[Setting, str], dict[int, list[Detection]]]


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    truth = read_annotations(options.annotations).truth
    contenders = _contenders(options)
    first = next(iter(contenders[0].decoders))
    try:
        tfjs: AbstractContextManager[Tfjs | None] = Tfjs(install(CACHE))
    except TfjsError as reason:
        print(f"without tfjs body-pix: {reason}")
        tfjs = nullcontext()
    with tfjs as other, tempfile.TemporaryDirectory() as folder:
        files = files_of(options.annotations, options.images)
        found = find(contenders, truth, files, other, Path(folder))
    scores = [
        Score.of(setting, method, match(truth, people, task), options.samples)
        for (setting, method), people in progress(found.items(), label="scoring")
        for task in get_args(Task)
    ]
    for task in get_args(Task):
        of_task = [score for score in scores if score.task == task]
        if options.steps:
            print(worth_of_steps(of_task))
        else:
            print(choices(of_task, first), pyramids(of_task, first), sep="\n")
    if options.json:
        figures = [{**asdict(score), "resampled": interval(score.resampled)} for score in scores]
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


@dataclass(frozen=True)
class Contender:
    """A network at one stride, and the decoders of its fields by name of the method."""

    predictor: Predictor
    decoders: dict[str, Decoder]
    tfjs: dict[str, tuple[int, float]]  # the same for tfjs: values of TFJS


def _contenders(options: argparse.Namespace) -> list[Contender]:
    """Every network at every stride: one with several decoders, or several with their own."""
    networks = list(product(options.weights, options.precisions))
    decoders = steps if options.steps else methods
    contenders = []
    for (weights, precision), stride in product(networks, options.strides):
        infer = Infer(sides=tuple(options.sides), stride=stride, precision=precision)
        predictor = Predictor.from_checkpoint(weights, infer)
        if len(networks) == 1:
            contenders.append(Contender(predictor, decoders(predictor.decoder), TFJS))
        else:
            name = f"{weights} in {precision}"
            tfjs = {f"{name}, {choice}": values for choice, values in TFJS.items()}
            contenders.append(Contender(predictor, {name: predictor.decoder}, tfjs))
    return contenders


def find(
    contenders: Sequence[Contender], truth: COCO, files: dict[int, Path], tfjs: Tfjs | None, folder: Path
) -> Found:
    """The people found by every method in every setting, by image."""
    found: Found = defaultdict(dict)
    for image_id in progress(sorted(truth.imgs), label="decoding"):
        image = images.read(files[image_id], apply_exif=False)
        height, width = image.shape[:2]
        for contender in contenders:
            predictor = contender.predictor
            levels = {side: predictor.level(image, side) for side in predictor.sides}
            for sides in [*((side,) for side in levels), *_pyramids(tuple(levels))]:
                setting = Setting(predictor.network.stride, sides)
                seen = [levels[side] for side in sides]
                for name, decoder in contender.decoders.items():
                    people = decoder.people(seen, height=height, width=width, image=image)
                    found[setting, name][image_id] = list(people)
                if tfjs and len(seen) == 1:
                    for name, choice in contender.tfjs.items():
                        people = _by_tfjs(tfjs, seen[0], choice, height, width, folder)
                        found[setting, name][image_id] = list(people)
    return found


def _by_tfjs(
    tfjs: Tfjs, level: Level, choice: tuple[int, float], height: int, width: int, folder: Path
) -> Iterator[Detection]:
    keypoints, person = choice
    scene = Scene(level.fields, height, width, level.scale, 20, SCORE_THRESHOLD, person)
    poses = tfjs.load(scene, folder)
    masks = iter(tfjs.instances(scene, folder, keypoints=keypoints, min_score=MASKS_SCORE))
    return detections(poses, (next(masks) if score >= MASKS_SCORE else None for score in poses.scores))


def choices(scores: Sequence[Score], first: str) -> str:
    """A row for each setting: AP of the first method, and the differences of the others from it."""
    by_key = {(score.setting, score.method): score for score in scores}
    others = [method for method in _different(scores) if method != first]
    rows = []
    for setting in dict.fromkeys(score.setting for score in scores):
        ours = by_key[setting, first]
        beside = [by_key.get((setting, method)) for method in others]
        rows.append([str(setting), ours.plain(), *(other.minus(ours) if other else "" for other in beside)])
    return table(
        f"{scores[0].task} AP, and the differences of others from the first", [SETTING, first, *others], rows
    )


def worth_of_steps(scores: Sequence[Score]) -> str:
    """A row for each step and setting: AP with the steps so far, what it adds to them, and to all others."""
    by_key = {(score.setting, score.method): score for score in scores}
    rows = []
    for setting in dict.fromkeys(score.setting for score in scores):
        every, before = by_key[setting, OURS], by_key[setting, PAPER]
        rows.append([str(setting), PAPER, before.plain(), "", ""])
        for step in EXTENSIONS:
            so_far = by_key.get((setting, f"+ {step}"), every)
            without = by_key.get((setting, f"- {step}"), before)  # the last one has been left out already
            rows.append([str(setting), step, so_far.plain(), so_far.minus(before), every.minus(without)])
            before = so_far
        rows.append([str(setting), "all", every.plain(), every.minus(by_key[setting, PAPER]), ""])
        rows += [
            [str(setting), name, by_key[setting, name].plain(), "", ""]
            for name in TFJS
            if (setting, name) in by_key
        ]
    headings = [SETTING, "step", "AP", "on top of the former", "on top of all others"]
    return table(f"{scores[0].task} AP, and what each step adds", headings, rows)


def _different(scores: Sequence[Score]) -> list[str]:
    """The methods without those that give the same as an earlier one in this task."""
    results = defaultdict[str, list[Array]](list)
    for score in scores:
        results[score.method].append(score.resampled)
    first = dict[bytes, str]()
    for method, resampled in results.items():
        first.setdefault(np.concatenate(resampled).tobytes(), method)
    return list(first.values())


def pyramids(scores: Sequence[Score], first: str) -> str:
    """A row for each pyramid: AP of the first method, and its gain over each single side at that stride."""
    ours = {score.setting: score for score in scores if score.method == first}
    sides = dict.fromkeys(setting.sides for setting in ours if len(setting.sides) == 1)
    rows = [
        [
            str(setting),
            score.plain(),
            *(score.minus(ours[Setting(setting.stride, side)]) for side in sides),
        ]
        for setting, score in ours.items()
        if len(setting.sides) > 1
    ]
    headings = [SETTING, first, *(f"- {side}" for (side,) in sides)]
    return table(f"{scores[0].task} AP of pyramids, and their gain over single sides", headings, rows)


def table(title: str, headings: list[str], rows: list[list[str]]) -> str:
    """A Markdown table under a title; the first column names the rows."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join([f"{title}:", "", *(f"| {' | '.join(line)} |" for line in lines), ""])


def _pyramids(sides: tuple[int, ...]) -> list[tuple[int, ...]]:
    """All sides, and all but the smallest, where that leaves several."""
    return [chosen for chosen in (sides[1:], sides) if len(chosen) > 1]


def files_of(annotations: Path, images: Path) -> dict[int, Path]:
    return {
        image["id"]: images / image["file_name"] for image in json.loads(annotations.read_bytes())["images"]
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.photos", description="Measure the decoder's AP on real network output."
    )
    parser.add_argument("--weights", type=Path, nargs="+", required=True, metavar="FILE")
    parser.add_argument("--annotations", type=Path, required=True, metavar="FILE")
    parser.add_argument("--images", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--sides", type=int, nargs="+", default=[513, 801, 1201], metavar="N")
    parser.add_argument("--strides", type=int, nargs="+", default=[16, 8], choices=[8, 16, 32], metavar="S")
    parser.add_argument("--precisions", nargs="+", default=["float32"], choices=get_args(InferPrecision))
    parser.add_argument("--steps", action="store_true", help="measure our steps beyond the paper")
    parser.add_argument("--samples", type=int, default=1000, metavar="N", help="of the bootstrap")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of torch")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all columns here")
    options = parser.parse_args()
    if options.steps and len(options.weights) * len(options.precisions) > 1:
        parser.error("--steps takes one file of weights and one precision")
    return options


if __name__ == "__main__":
    main()
