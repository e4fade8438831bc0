"""params.yaml as frozen models: one section per stage, plus `codec` and `model`, which several stages share.

A key that is unknown or misspelt is an error, never a silently ignored wish. Only the stages and the
command line read parameters from disk; the science is handed plain values.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from personlab.errors import UserError

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Stride = Literal[8, 16, 32]
ResNetKind = Literal["resnet18", "resnet50", "resnet101", "resnet152"]
# Those of Google's published weights: MobileNetV1 (16: native output stride 16), and TensorFlow's ResNet-50.
BackboneKind = ResNetKind | Literal["mobilenet", "mobilenet16", "tf-resnet50"]
Precision = Literal["float32", "bfloat16"]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Sample(Section):
    """The rendered dataset."""

    train_images: PositiveInt = 400
    val_images: PositiveInt = 100
    seed: int = 1
    width: PositiveInt = 480
    height: PositiveInt = 360


class Acquire(Section):
    """Where images and annotations come from."""

    source: Literal["sample", "directory", "coco2017"] = "sample"
    # an existing COCO layout (source: directory), or where COCO 2017 is kept (source: coco2017)
    directory: str | None = None
    # where COCO 2017 is downloaded from
    url: str = "http://images.cocodataset.org"
    sample: Sample = Sample()

    @model_validator(mode="after")
    def _needs_directory(self) -> Self:
        if self.source != "sample" and not self.directory:
            raise ValueError(f"acquire.source: {self.source} needs acquire.directory")
        return self


class Ingest(Section):
    """COCO JSON to validated tables."""

    # the stage fails if a larger share of the rows is rejected
    max_reject_fraction: Fraction = 0.01
    # the paper trains on the images that show people (64115 of COCO train 2017)
    train_images_with_people_only: bool = True


class Codec(Section):
    """How people become fields and back (paper, section 3)."""

    radius: PositiveFloat = 32.0  # R, input pixels
    nms_radius: PositiveFloat = 10.0  # r, input pixels
    bin: PositiveFloat = 2.0  # width of a Hough accumulator bin, input pixels
    seed_threshold: PositiveFloat = 0.01
    mid_refinements: int = Field(default=2, ge=0)  # in training; the paper's 2
    long_refinements: int = Field(default=2, ge=0)
    # decoding corrects every keypoint by its short-range offset this often: a network's offsets go only part
    # of the way, and going on is nearly free
    trace_refinements: int = Field(default=4, ge=0)
    mask_distance: PositiveFloat = 0.25  # t of section 3.2


class Estimator(Section):
    """The single-person estimator used for imputation (G-RMI)."""

    backbone: BackboneKind = "resnet18"
    # channels of the first stage, as with `model`
    width: PositiveInt = 24
    # what its backbone starts from: as with `model`, but that heads are left out
    init: str | None = None
    crop_height: PositiveInt = 97
    crop_width: PositiveInt = 73
    stride: Stride = 8
    radius: PositiveFloat = 10.0
    batch: PositiveInt = 16
    steps: PositiveInt = 1200
    learning_rate: PositiveFloat = 2e-3  # at its peak: it rises, then falls to nothing
    precision: Precision = "float32"
    checkpoint_every: PositiveInt = 200
    gpu: bool = False
    max_failures: int = Field(default=2, ge=-1)
    seed: int = 0

    @model_validator(mode="after")
    def _on_the_lattice(self) -> Self:
        for name, side in (("crop_height", self.crop_height), ("crop_width", self.crop_width)):
            if (side - 1) % self.stride:
                raise ValueError(f"estimator.{name}: {side} is not a multiple of stride {self.stride} plus 1")
        return self


class Impute(Section):
    """Keypoints for small people that have none."""

    # imputed keypoints the estimator is less sure of stay unlabelled
    min_score: Fraction = 0.5
    batch: PositiveInt = 64
    gpu: bool = False


class Targets(Section):
    """Parquet shards: all that training, inference and evaluation read."""

    imputed: bool = True  # include imputed keypoints
    shard_mb: PositiveInt = 128
    row_group: PositiveInt = 64


class Model(Section):
    """The network; a checkpoint records it."""

    backbone: BackboneKind = "resnet18"
    # channels of the first stage; 64 is the standard ResNet, 32 the standard MobileNet
    width: PositiveInt = 32
    refine: bool = True  # recurrent offset refinement in training and decoding (Tables 6 and 7)
    # checkpoint (imported weights too), or torchvision ResNet state dict in safetensors, to start from
    init: str | None = None
    # take a checkpoint's heads too; if not they start fresh, as the paper's do on a classifier's backbone
    init_heads: bool = True


class Train(Section):
    """Paper section 4.1."""

    crop: PositiveInt = 801
    stride: Stride = 16
    batch: PositiveInt = 8  # over all workers
    steps: PositiveInt = 1_000_000
    optimizer: Literal["sgd", "adam"] = "sgd"
    learning_rate: PositiveFloat = 1e-3
    # from this share of the steps on, the rate falls to 0 in a straight line; 1: it stays, as in the paper
    decay_from: Fraction = 1.0
    momentum: Fraction = 0.9
    weight_decay: float = Field(default=0.0, ge=0.0)
    average_from: Fraction = 0.5  # Polyak-Ruppert: average the weights after this share of the steps
    # crops of the whole image: 1 is the square that tightly contains it
    min_scale: PositiveFloat = 0.5
    max_scale: PositiveFloat = 1.5
    # crops around people instead (all but a tenth): the least and greatest size, in input pixels, at which
    # the longer side of a person's box is shown. Where images are few and steps cheap this teaches faster.
    person_sizes: tuple[PositiveFloat, PositiveFloat] | None = None
    loss_weights: tuple[float, float, float, float, float] = (4, 2, 1, 1 / 4, 1 / 8)
    precision: Precision = "float32"
    checkpoint_every: PositiveInt = 1000
    # A curve to watch, which decides nothing: so often, in steps, the AP of the averaged weights on the first
    # so many val images, seen at one size (their longest side, in input pixels) and at `stride`. 0: never.
    validate_every: int = Field(default=0, ge=0)
    validate_images: PositiveInt = 100
    validate_side: PositiveInt = 801
    workers: PositiveInt = 1
    gpu: bool = False
    # how many times a run may lose workers or nodes and go on by itself; -1: always
    max_failures: int = Field(default=2, ge=-1)
    seed: int = 0

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.crop - 1) % self.stride:
            raise ValueError(f"train.crop: {self.crop} is not a multiple of stride {self.stride} plus 1")
        if self.batch % self.workers:
            raise ValueError(f"train.batch: {self.batch} cannot be shared by {self.workers} workers")
        return self


class Infer(Section):
    """Multi-scale inference over the validation shards."""

    sides: tuple[PositiveInt, ...] = (1401,)
    stride: Stride = 8
    scoring: Literal["expected-oks", "hough"] = "expected-oks"
    nms: Literal["soft", "hard"] = "soft"
    max_people: PositiveInt = 20
    gpu: bool = False


class Evaluate(Section):
    """Pictures of the report; the metrics themselves have no parameters but the proposals of `infer`."""

    gallery: PositiveInt = 24


class Ray(Section):
    """Where stages compute, and where training keeps what it goes on from. Decides no result: no stage
    depends on it, and nothing is made again if it changes.
    """

    # an existing cluster ("auto", or host:port), where RAY_ADDRESS is not set; none: a private one, here
    address: str | None = None
    # of checkpoints: a folder that all nodes share (relative to the project), or a URI (s3://, gs://, abfs://,
    # hdfs://); none: runs/
    storage_path: str | None = None


class Params(Section):
    acquire: Acquire = Acquire()
    ingest: Ingest = Ingest()
    codec: Codec = Codec()
    estimator: Estimator = Estimator()
    impute: Impute = Impute()
    targets: Targets = Targets()
    model: Model = Model()
    train: Train = Train()
    infer: Infer = Infer()
    evaluate: Evaluate = Evaluate()
    ray: Ray = Ray()


def load(path: Path) -> Params:
    """Read and check a params.yaml.

    Raises:
        UserError: the file is missing, is not YAML, or holds an unknown key or a bad value; the message
            names each offending key.
    """
    try:
        raw: Any = yaml.safe_load(path.read_text()) or {}
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run from the project's folder or pass --params") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {error}") from None
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"{path}: " + "; ".join(_explain(detail) for detail in error.errors())) from None


def _explain(detail: Any) -> str:
    key = ".".join(str(part) for part in detail["loc"]) or "(top level)"
    if detail["type"] == "extra_forbidden":
        return f"unknown key '{key}' (misspelt?)"
    return f"{key}: {detail['msg'][0].lower()}{detail['msg'][1:]}"
