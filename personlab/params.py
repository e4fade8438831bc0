"""The parameters of the pipeline: params.yaml as frozen pydantic models.

There are three kinds. A *stage section* decides the result of its stage and is a DVC dependency of exactly
the stages that use it. `decode` is how fields become people; `infer` uses it and records it in the model's
card. `compute` is where and how stages run; no stage depends on it.

An unknown or misspelt key in params.yaml is an error. Parameters that other versions saved with models stay
readable: `from_saved` renames moved keys, fills in missing ones and drops unknown ones.
"""

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Final, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from personlab.codec.extensions import EXTENSIONS, Extension
from personlab.errors import UserError

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Stride = Literal[8, 16, 32]
ResNetKind = Literal["resnet18", "resnet50", "resnet101", "resnet152"]
# mobilenet16 ends at output stride 16: the published networks of 0.50 and 0.75 times the standard width.
# slim-resnet50 is TF-Slim's ResNet-50.
BackboneKind = ResNetKind | Literal["mobilenet", "mobilenet16", "slim-resnet50"]
# of training; auto: bfloat16 where the processor or GPU computes it fast, else float32
Precision = Literal["auto", "float32", "bfloat16"]
# of prediction, where it has to be named, so that results do not depend on the machine
InferPrecision = Literal["float32", "float16", "bfloat16"]

# `model.init` and `estimator.init` for random weights. A committed file of this name stands for them, because
# dvc.yaml lists the path as a dependency and DVC cannot template a null.
RANDOM: Final = "models/random"


# `acquire.directory` without a folder, and `acquire.excerpt` without a file, likewise.
NO_FOLDER: Final = "data/none"


def _stands_for_none(name: str) -> tuple[BeforeValidator, PlainSerializer]:
    """A name that stands for None, and is written in its place to files that DVC reads."""
    return (
        BeforeValidator(lambda value: None if value == name else value),
        PlainSerializer(lambda value: value or name, when_used="json"),
    )


Init = Annotated[str | None, *_stands_for_none(RANDOM)]
OptionalPath = Annotated[str | None, *_stands_for_none(NO_FOLDER)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Sample(Section):
    """The rendered sample dataset."""

    train_images: PositiveInt = 400
    val_images: PositiveInt = 100
    seed: int = 1
    width: PositiveInt = 480
    height: PositiveInt = 360
    keypoints: Literal[17, 14] = 17


class Layout(Section):
    """The annotation files and image folders of a folder in COCO's format, relative to it.

    Without a file for val, a share of the images of `train` is the validation split.
    """

    train: str = "annotations/person_keypoints_train2017.json"
    train_images: str = "train2017"
    val: str | None = "annotations/person_keypoints_val2017.json"
    val_images: str = "val2017"
    val_share: float = Field(default=0.1, gt=0.0, lt=1.0)
    seed: int = 0

    @model_validator(mode="after")
    def _inside(self) -> Self:
        for name in ("train", "train_images", "val", "val_images"):
            path = PurePosixPath(getattr(self, name) or ".")
            if path.is_absolute() or ".." in path.parts:
                raise ValueError(f"{name}: {path} is not inside acquire.directory")
        return self


class Acquire(Section):
    """Where images and annotations come from."""

    source: Literal["sample", "directory", "coco2017", "yolo"] = "sample"
    directory: OptionalPath = None
    layout: Layout = Layout()
    categories: tuple[str, ...] = ()
    download: str = "data/coco2017"
    excerpt: OptionalPath = None
    url: str = "http://images.cocodataset.org"
    sample: Sample = Sample()

    @model_validator(mode="after")
    def _has_its_directory(self) -> Self:
        if (self.source in ("directory", "yolo")) != bool(self.directory):
            need = f"takes no acquire.directory: set it to {NO_FOLDER}"
            raise ValueError(f"source {self.source} {need if self.directory else 'needs acquire.directory'}")
        return self

    @model_validator(mode="after")
    def _excerpt_is_of_coco(self) -> Self:
        if self.excerpt and self.source != "coco2017":
            raise ValueError(f"excerpt is for source coco2017, not for {self.source}: set it to {NO_FOLDER}")
        return self


class Skeleton(Section):
    """The keypoints, where the dataset does not say it or is to be overruled (data/category.py)."""

    keypoints: tuple[str, ...] | None = None
    links: tuple[tuple[str, str], ...] | None = None
    pairs: tuple[tuple[str, str], ...] | None = None
    sigmas: tuple[PositiveFloat, ...] | None = None


class Ingest(Section):
    """COCO JSON to validated tables, images to shards."""

    max_reject_fraction: Fraction = 0.01
    train_images_with_people_only: bool = True
    shard_mb: PositiveInt = 128
    row_group: PositiveInt = 64


class Estimator(Section):
    """The single-person keypoint estimator used for imputation (G-RMI)."""

    backbone: BackboneKind = "resnet18"
    width: PositiveInt = 24
    init: Init = None
    crop_height: PositiveInt = 97
    crop_width: PositiveInt = 73
    stride: Stride = 8
    radius: PositiveFloat = 10.0
    batch: PositiveInt = 16
    steps: PositiveInt = 1200
    learning_rate: PositiveFloat = 2e-3
    precision: Precision = "float32"
    seed: int = 0

    @model_validator(mode="after")
    def _on_the_grid(self) -> Self:
        for name, side in (("crop_height", self.crop_height), ("crop_width", self.crop_width)):
            if (side - 1) % self.stride:
                raise ValueError(f"{name}: {side} is not a multiple of stride {self.stride} plus 1")
        return self


class Impute(Section):
    """Keypoints for small people that have a mask but no keypoints."""

    max_area: PositiveFloat | None = 32.0**2  # pixels; COCO's small
    min_score: Fraction = 0.5


class Targets(Section):
    """The people that training learns from."""

    imputed: bool = True


class Model(Section):
    """The network; recorded in the card of its checkpoints."""

    backbone: BackboneKind = "resnet18"
    width: PositiveInt = 32
    radius: PositiveFloat = 32.0  # R of the paper, input pixels
    refine: bool = True
    init: Init = None
    init_heads: bool = True


class LossWeights(Section):
    """Weight of each field's loss; the defaults are the paper's."""

    heatmap: float = 4.0
    seg: float = 2.0
    short: float = 1.0
    mid: float = 0.25
    long: float = 0.125


class Train(Section):
    """Training (paper, section 4.1)."""

    crop: PositiveInt = 801
    stride: Stride = 16
    batch: PositiveInt = 8
    steps: PositiveInt = 1_000_000
    optimizer: Literal["sgd", "adam"] = "sgd"
    learning_rate: PositiveFloat = 1e-3
    decay_from: Fraction = 1.0
    momentum: Fraction = 0.9
    weight_decay: float = Field(default=0.0, ge=0.0)
    average_from: Fraction = 0.5
    min_scale: PositiveFloat = 0.5
    max_scale: PositiveFloat = 1.5
    person_sizes: tuple[PositiveFloat, PositiveFloat] | None = None
    loss_weights: LossWeights = LossWeights()
    pos_weight: PositiveFloat = 1.0
    precision: Precision = "float32"
    gradients: Literal["float32", "bfloat16"] = "float32"
    compile: bool = False
    validate_every: int = Field(default=0, ge=0)
    validate_images: PositiveInt = 100
    validate_side: PositiveInt = 801
    seed: int = 0

    @model_validator(mode="after")
    def _on_the_grid(self) -> Self:
        if (self.crop - 1) % self.stride:
            raise ValueError(f"crop: {self.crop} is not a multiple of stride {self.stride} plus 1")
        return self


# Of the longest side of the network's input, pixels. Memory grows with its square, and larger values are
# probably typing errors.
LARGEST_SIDE: Final = 8192
Side = Annotated[int, Field(gt=0, le=LARGEST_SIDE)]


class Infer(Section):
    """Input sizes, output stride and precision of the network in prediction."""

    sides: tuple[Side, ...] = Field(default=(801,), min_length=1)
    stride: Stride = 16
    precision: InferPrecision = "float32"


class Export(Section):
    """The weights that the stage `infer` predicts with and exports."""

    initial_share: Fraction = 0.0


class Evaluate(Section):
    """Scores, curves and pictures."""

    gallery: PositiveInt = 24


class Decode(Section):
    """How fields become people (paper, sections 3.1 and 3.2). Lengths are in input pixels."""

    nms_radius: PositiveFloat = 10.0
    bin: PositiveFloat = 2.0
    seed_threshold: PositiveFloat = 0.01
    trace_refinements: int = Field(default=4, ge=0)
    mask_distance: PositiveFloat = 0.25
    scoring: Literal["expected-oks", "hough"] = "expected-oks"
    nms: Literal["soft", "hard"] = "soft"
    max_people: PositiveInt = 20
    extensions: tuple[Extension, ...] = EXTENSIONS

    @classmethod
    def scaled(cls, radius: float) -> Self:
        """The defaults, which go with disks of R = 32 pixels, with lengths scaled to disks of `radius`."""
        ratio = radius / 32.0
        return cls(nms_radius=10.0 * ratio, bin=2.0 * ratio)


class Compute(Section):
    """Where and how stages run. No stage depends on it: finished stages stay valid when it changes.

    An interrupted training continues too, unless `workers` changes and the initial weights are random: each
    worker then normalises over its own share of the batch."""

    gpu: bool = False
    gpus_per_actor: float = Field(default=1, gt=0, le=1)
    workers: PositiveInt = 1
    checkpoint_every: PositiveInt = 500
    max_failures: int = Field(default=2, ge=-1)
    ray_address: str | None = None
    storage_path: str | None = None


class Params(Section):
    acquire: Acquire = Acquire()
    skeleton: Skeleton = Skeleton()
    ingest: Ingest = Ingest()
    estimator: Estimator = Estimator()
    impute: Impute = Impute()
    targets: Targets = Targets()
    model: Model = Model()
    train: Train = Train()
    export: Export = Export()
    infer: Infer = Infer()
    evaluate: Evaluate = Evaluate()
    decode: Decode = Decode()
    compute: Compute = Compute()

    @model_validator(mode="after")
    def _batch_is_shared(self) -> Self:
        if self.train.batch % self.compute.workers:
            raise ValueError(
                f"train.batch: {self.train.batch} cannot be shared by {self.compute.workers} workers "
                "(compute.workers)"
            )
        return self

    @model_validator(mode="after")
    def _blends_trained_weights(self) -> Self:
        if self.export.initial_share and not (self.model.init and self.model.init_heads):
            raise ValueError(
                "export.initial_share: needs a model.init whose heads are used (model.init_heads)"
            )
        return self


def load(path: Path) -> Params:
    """Read and check a params.yaml.

    Raises:
        UserError: the file is missing, is not UTF-8 or not YAML, or holds an unknown key or a bad value; the
            message names each offending key.
    """
    try:
        content = path.read_bytes()
        raw: Any = yaml.safe_load(content.decode("utf-8-sig")) or {}
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run from the project's folder or pass --params") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        if b"\0" in content:
            raise UserError(f"{path}: not UTF-8 but UTF-16; save it as UTF-8") from None
        if isinstance(error, UnicodeDecodeError):
            line = content.count(b"\n", 0, error.start) + 1
            raise UserError(
                f"{path}: not UTF-8 in line {line}, but Latin-1 or Windows-1252, it seems; save it as UTF-8"
            ) from None
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"{path}: {reasons(error)}") from None


def of_project() -> Params:
    """The parameters of the project in the current folder; the defaults if there is none.

    Raises:
        UserError: as `load`.
    """
    path = Path("params.yaml")
    return load(path) if path.exists() else Params()


def reasons(error: ValidationError) -> str:
    """What is wrong with values, key by key, on one line."""
    return "; ".join(_reason(detail) for detail in error.errors())


def _reason(detail: Any) -> str:
    key = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        return f"unknown key '{key}'{_hint(key)}"
    if detail["type"] == "value_error":  # of a validator here; those of all sections name the keys themselves
        return f"{key}: {detail['ctx']['error']}" if key else str(detail["ctx"]["error"])
    return f"{key or '(top level)'}: {detail['msg'][0].lower()}{detail['msg'][1:]}"


def _hint(key: str) -> str:
    section, _, name = key.rpartition(".")
    if key in _MOVED or (section and name in Compute.model_fields):
        return f"; it is now '{_MOVED.get(key, f'compute.{name}')}'"
    if key in ("codec", "ray"):
        return "; its keys are in other sections now, see params.yaml"
    return " (misspelt?)"


# --- parameters that older versions saved -------------------------------------------------------------------

# Section of versions up to 0.1, today's section, keys.
_MOVES: Final = (
    ("codec", "model", "radius"),
    ("codec", "decode", "nms_radius bin seed_threshold trace_refinements mask_distance"),
    ("infer", "decode", "scoring nms max_people"),
    ("targets", "ingest", "shard_mb row_group"),
    ("train", "compute", "gpu workers checkpoint_every max_failures"),
)
_MOVED: Final = {f"{old}.{key}": f"{new}.{key}" for old, new, keys in _MOVES for key in keys.split()} | {
    "ray.address": "compute.ray_address",
    "ray.storage_path": "compute.storage_path",
}
# Defaults of keys that versions up to 0.1 could leave out and that have another default now.
_OLD_DEFAULTS: Final = {"infer": {"sides": [1401], "stride": 8}, "impute": {"max_area": None}}


def from_saved(raw: Mapping[str, Any]) -> Params:
    """Parameters that any version saved, as this version's.

    Keys that have moved are read under their old names, missing keys get the default they had in the version
    that saved the file, and keys that no longer exist are dropped.

    Raises:
        ValidationError: a value is not of its key's type.
    """
    tree: dict[str, Any] = {
        name: dict(section) for name, section in raw.items() if isinstance(section, Mapping)
    }
    if "decode" not in tree:  # a version up to 0.1
        for section, defaults in _OLD_DEFAULTS.items():
            tree[section] = defaults | tree.get(section, {})
    for old, new in _MOVED.items():
        (section, key), (new_section, new_key) = old.split("."), new.split(".")
        if key in tree.get(section, {}):
            tree.setdefault(new_section, {}).setdefault(new_key, tree[section][key])
    if {"decode", "codec"} & tree.keys():  # before `extensions`, decoding was the paper's
        tree.setdefault("decode", {}).setdefault("extensions", [])
    # Before it had to be named, which made it bfloat16 on some machines.
    if tree.get("infer", {}).get("precision") == "auto":
        del tree["infer"]["precision"]
    weights = tree.get("train", {}).get("loss_weights")
    if isinstance(weights, list | tuple):
        tree["train"]["loss_weights"] = dict(zip(LossWeights.model_fields, weights, strict=True))
    for section in ("model", "estimator"):
        if tree.get(section, {}).get("backbone") == "tf-resnet50":
            tree[section]["backbone"] = "slim-resnet50"
    return Params.model_validate(tree, extra="ignore")
