"""PersonLab: poses and masks of people in images. One command per stage of the pipeline, and tools.

Paths are relative to the current folder, the project's. A stage reads params.yaml and data/ of earlier
stages, and writes data/STAGE/, data/metrics/STAGE.json and data/plots/STAGE/. `dvc repro` runs the stages
that are out of date; the command of a stage always runs it.
"""

import os
import sys
from functools import partial
from importlib import import_module
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Literal

import cyclopts
from cyclopts import Parameter
from cyclopts.types import PositiveInt
from cyclopts.validators import MutuallyExclusive

from personlab import __version__, params
from personlab.ablation.cli import ablate
from personlab.errors import UserError
from personlab.registry.cli import app as models
from personlab.utils import logs
from personlab.utils.files import write_atomic, write_json

app = cyclopts.App(name="personlab", help=__doc__, version=__version__)
stages = cyclopts.Group("Stages, in the order of the pipeline", sort_key=0)
tools = cyclopts.Group("Tools", sort_key=1)
_scales = cyclopts.Group(validator=MutuallyExclusive())
models.group = tools
app.command(models)
app.command(ablate, group=tools)

DEFAULTS = params.Infer()  # of prediction, as in Predictor.from_checkpoint
Weights = Annotated[Path, Parameter(help="Checkpoint (*.safetensors, its card beside it).")]
_side = f"Longest side of the network's input, in pixels. [default: {DEFAULTS.sides[0]}]"
Side = Annotated[PositiveInt | None, Parameter(group=_scales, help=_side)]
_several = Parameter(group=_scales, consume_multiple=True, negative="")
Pyramid = Annotated[
    list[PositiveInt] | None, _several, Parameter(help="Several such sides instead: slower, finds more.")
]
OutputStride = Annotated[params.Stride, Parameter(help="Output stride: 8 is slower and finds more.")]
MaxPeople = Annotated[
    PositiveInt | None, Parameter(help="Proposals per image. [default: as the model was evaluated with]")
]
ScoresFile = Annotated[Path | None, Parameter(name="--json", help="Also write the scores here.")]
Device = Annotated[Literal["cpu", "cuda"], Parameter(help="Where the network runs.")]

STAGES = {
    "acquire": """Get images and annotations: the sample, a folder or COCO 2017.

    Renders the sample data set, locates a COCO folder, or downloads COCO 2017. Writes
    data/acquire/source.json: the path of the data set, and the hash and counts of its annotations.""",
    "ingest": """Validate records and images; pack images into shards.

    Reads data/acquire and the files that it names; writes data/ingest: people.parquet, rejects.parquet with
    reasons, and the image shards `{train,val}/part-*.parquet`. Later stages read no other images.""",
    "estimator": """Train the single-person estimator for imputation.

    Reads data/ingest; writes data/estimator/estimator.safetensors, metrics and plots. Runs on Ray Train;
    after a kill it resumes from the last checkpoint.""",
    "impute": """Estimate keypoints of small training people without any.

    Reads data/ingest and data/estimator; writes data/impute: people.parquet and imputed.png. Runs on Ray
    Data.""",
    "targets": """Write the people to train and evaluate on.

    Reads data/ingest and data/impute; writes `data/targets/{train,val}/part-*.parquet`, row for row as the
    image shards.""",
    "train": """Train the network.

    Reads data/ingest and data/targets; writes data/train/model.safetensors, metrics and learning curves. Runs
    on Ray Train; after a kill it resumes from the last checkpoint.""",
    "infer": """Predict the people of the validation images.

    Reads data/ingest and data/train; writes data/infer: `part-*.parquet`, one row per image with poses, masks
    and scores, and model.safetensors, whose card holds the decoding parameters. Runs on Ray Data.""",
    "evaluate": """Score keypoints and masks; draw curves and a gallery.

    Reads data/ingest, data/targets and data/infer; writes data/metrics/evaluate.json, data/plots/evaluate and
    data/evaluate: gallery.jpg, gallery/ and report.md. Scores are pycocotools'.""",
}


def _run_stage(
    stage: str,
    /,
    *,
    file: Annotated[Path, Parameter(name="--params", help="Parameter file.")] = Path("params.yaml"),
) -> None:
    settings = params.load(file)
    # imported here, so that --help does not wait for torch and Ray
    module = import_module(f"personlab.stages.{stage}")
    experiment = settings.model_copy(update={"compute": params.Compute()})  # where it runs does not matter
    logs.set_context(stage, import_module("personlab.tables").params_hash(experiment))
    module.run(settings, Path.cwd())


for _order, (_stage, _text) in enumerate(STAGES.items()):
    app.command(partial(_run_stage, _stage), name=_stage, help=_text, group=stages, sort_key=_order)


def _infer(side: int | None, pyramid: list[int] | None, stride: params.Stride) -> params.Infer:
    return params.Infer(sides=tuple(pyramid or [side or DEFAULTS.sides[0]]), stride=stride)


@app.command(group=tools)
def oracle(
    *,
    annotations: Annotated[Path, Parameter(help="COCO person keypoints JSON; no images are needed.")],
    side: Annotated[int, Parameter(help="Longest side of the network's input, in pixels.")] = 801,
    stride: Annotated[params.Stride, Parameter(help="Output stride.")] = 8,
    complete: Annotated[bool, Parameter(help="Fill unlabelled keypoints first.")] = False,
    max_people: Annotated[int, Parameter(help="Proposals per image.")] = 20,
    all_steps: Annotated[
        bool, Parameter(negative="", help="Decode with the steps beyond the paper's too.")
    ] = False,
    output: ScoresFile = None,
) -> None:
    """Score the codec alone, as with a perfect network.

    Reads COCO annotations, encodes the people and decodes the fields as the paper does; prints AP and AR. The
    loss is that of the representation. Without --complete most of it comes from unlabelled keypoints, where
    the tree is broken: the bound printed last is the AP of the connected keypoints.
    """
    from personlab.codec.decode import Decoder
    from personlab.codec.extensions import EXTENSIONS
    from personlab.metrics import oracle, report
    from personlab.utils.progress import progress

    scores = oracle.score(
        oracle.read(annotations),
        # targets are refined fields already
        Decoder(
            trace_refinements=0,
            long_refinements=0,
            max_people=max_people,
            extensions=EXTENSIONS if all_steps else (),
        ),
        side=side,
        stride=stride,
        complete=complete,
        progress=progress,
    )
    print(report.text(scores.keypoints), report.text(scores.segm), sep="\n\n")
    print(f"\nkeypoints AP of the defined edges, without any decoder: {scores.bound:.3f}")
    if output:
        tasks = {"keypoints": report.metrics(scores.keypoints), "segm": report.metrics(scores.segm)}
        write_json(output, tasks | {"bound": scores.bound})


@app.command(group=tools)
def predict(
    images: Annotated[
        list[str],
        Parameter(
            help="Image files, folders, patterns ('photos/**/*.jpg'), Parquet files, lists of paths; or URIs."
        ),
    ],
    /,
    *,
    weights: Weights,
    out: Annotated[Path, Parameter(help="Folder to write to.")],
    annotations: Annotated[
        Path | None,
        Parameter(help="COCO JSON that lists these images: results get its image ids, by file name."),
    ] = None,
    side: Side = None,
    pyramid: Pyramid = None,
    stride: OutputStride = DEFAULTS.stride,
    max_people: MaxPeople = None,
    form: Annotated[
        Literal["json", "coco", "coco-dataset", "parquet"],
        Parameter(
            name="--format",
            help="A JSON file per image; COCO results; a COCO dataset for annotation tools, of people with a "
            "score of at least 0.15; or a Parquet table.",
        ),
    ] = "json",
    device: Device = "cpu",
) -> None:
    """Find people in images.

    Reads images and weights. Writes poses, masks and scores of all proposals, and `overlays/*.jpg` of those
    with a score of at least 0.15. Images that cannot be read are listed with reasons; the exit status is 1.
    """
    from personlab import tables
    from personlab.inference.image_ids import AnnotatedImages
    from personlab.inference.listing import list_all
    from personlab.inference.predict import Output, predict
    from personlab.metrics.coco import PERSON
    from personlab.predictor import Predictor, decoding
    from personlab.utils import malloc
    from personlab.utils.progress import progress

    infer = _infer(side, pyramid, stride)
    annotated = AnnotatedImages.read(annotations) if annotations else None
    malloc.disable_trim()
    predictor = Predictor.from_checkpoint(weights, infer, max_people=max_people, gpu=device == "cuda")
    digest = tables.params_hash(infer, decoding(predictor.network, max_people))
    output = Output(out, form, digest, annotated.person if annotated else PERSON)
    listings, failures = list_all(images, leave_out=output.left_out)
    total = len(failures) + sum(len(listing.entries) for listing in listings)
    failures += predict(predictor, listings, output, annotated=annotated, progress=progress)
    if failures:
        raise UserError("\n  ".join([f"{len(failures)} of {total} images could not be read:", *failures]))


@app.command(group=tools, name="infer-batch")
def infer_batch(
    images: Annotated[
        str,
        Parameter(
            help="Folder, pattern ('photos/**/*.jpg'), Parquet file with images in its rows, or file that "
            "lists paths or URIs. Local or on an object store (s3://, gs://, abfs://, hdfs://)."
        ),
    ],
    /,
    *,
    weights: Weights,
    out: Annotated[str, Parameter(help="Folder to write to, path or URI: empty, or with a run to resume.")],
    side: Side = None,
    pyramid: Pyramid = None,
    stride: OutputStride = DEFAULTS.stride,
    max_people: MaxPeople = None,
    part_size: Annotated[PositiveInt, Parameter(help="Images per part, the unit of work and of files.")] = 64,
    device: Device = "cpu",
) -> None:
    """Predict any number of images in parallel, resumably.

    Runs on all CPUs or GPUs of this machine, or of the Ray cluster at RAY_ADDRESS. Writes `part-*.parquet`,
    `errors-*.parquet` for images that cannot be read, and manifest.json at the end. After a kill the same
    command resumes and writes the same files.
    """
    from personlab.data.images import decode
    from personlab.distributed import batch
    from personlab.inference.job import Job, make_plan
    from personlab.inference.listing import list_images
    from personlab.utils.storage import Folder

    infer = _infer(side, pyramid, stride)
    listing = list_images(images, leave_out=[out])
    plan = make_plan(listing, weights, infer, max_people=max_people, part_size=part_size)
    job = Job(plan, listing.root, Folder(out), weights.absolute(), decode, gpu=device == "cuda")
    batch.run(job, listing)


@app.command(group=tools)
def overlays(
    images: Annotated[str, Parameter(help="The images of the run, named as for infer-batch.")],
    /,
    *,
    run: Annotated[str, Parameter(help="Folder or URI that infer-batch wrote to.")],
    out: Annotated[Path, Parameter(help="Folder to write to.")],
    count: Annotated[PositiveInt, Parameter(help="Number of images, spread over the run.")] = 12,
) -> None:
    """Draw the people that infer-batch found into some of its images.

    Reads the images and `part-*.parquet` of the run. Writes NN-name.jpg.
    """
    from personlab.inference.listing import list_images
    from personlab.inference.overlays import draw
    from personlab.utils.storage import Folder

    print(*draw(list_images(images, leave_out=[run]), Folder(run), out, count), sep="\n")


@app.command(group=tools)
def score(
    *,
    annotations: Annotated[Path, Parameter(help="COCO person keypoints JSON.")],
    results: Annotated[
        str,
        Parameter(help="COCO results JSON: keypoints, masks or both; or folder that infer-batch wrote to."),
    ],
    max_people: Annotated[
        PositiveInt, Parameter(help="Masks per image that count; of poses always 20.")
    ] = 20,
    output: ScoresFile = None,
) -> None:
    """Score COCO results with pycocotools and print the paper's columns.

    Reads annotations and results. Every annotated image counts, with or without results. Results of other
    images are refused: by id, and by file name where predict wrote images.json beside them.
    """
    from pyarrow.fs import FileType

    from personlab.inference.read_run import check_images, read_run
    from personlab.metrics import files, report
    from personlab.metrics.coco import KEYPOINT_BUDGET, match
    from personlab.utils import storage

    annotated = files.read_annotations(annotations)
    if storage.kind(results) == FileType.Directory:
        tasks = read_run(storage.Folder(results), annotated)
    else:
        check_images(Path(results), annotated)
        tasks = files.read_results(Path(results), annotated)
    budgets = {"keypoints": KEYPOINT_BUDGET, "segm": max_people}
    evaluations = [
        match(annotated.truth, people, task, budgets[task])
        for task, people in files.scorable(tasks, annotated).items()
    ]
    print(*map(report.text, evaluations), sep="\n\n")
    if output:
        write_json(output, {matches.task: report.metrics(matches) for matches in evaluations})


@app.command(group=tools)
def report(
    *,
    checkout: Annotated[Path, Parameter(name="--from", help="Folder in which 'dvc repro' has run.")] = Path(),
    out: Annotated[Path, Parameter(help="File to write.")] = Path("data/report/index.html"),
) -> None:
    """Write an HTML page of results beside the champion's.

    Reads data/ and models/champion; writes one self-contained file: scores, parameters, curves, pictures.
    """
    from personlab.registry.models import Registry
    from personlab.report import page

    page.write(page.Results(checkout, Registry(Path.cwd()).champion()), out)
    print(out)


@app.command(group=tools, name="import-weights")
def import_weights(
    source: Annotated[
        str, Parameter(help="Path or http(s) address of a model-stride*.json, its shards beside it.")
    ],
    /,
    *,
    out: Annotated[Path, Parameter(help="Checkpoint to write: FILE.safetensors, and FILE.json beside it.")],
) -> None:
    """Convert BodyPix or PoseNet to a checkpoint.

    Reads a TensorFlow.js graph model that Google published (MobileNetV1 or ResNet-50, also quantised); the
    file of any stride serves all output strides. Writes --out and its card. Downloads are kept in
    ~/.cache/personlab. PoseNet finds poses only; BodyPix' heads for body parts are dropped.
    """
    from personlab.weights.bodypix import import_weights

    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "personlab"
    import_weights(source, out, cache=cache)


@app.command(group=tools)
def export(
    weights: Weights,
    /,
    *,
    out: Annotated[Path, Parameter(help="File to write, *.onnx.")],
    form: Annotated[Literal["onnx"], Parameter(name="--format", help="Kind of file.")] = "onnx",
    stride: Annotated[params.Stride, Parameter(help="Output stride.")] = 16,
) -> None:
    """Export a network to ONNX.

    Reads a checkpoint; writes --out, from images of any size to fields (probabilities and offsets in pixels).
    Inputs and outputs are described in personlab/weights/onnx.py.
    """
    from personlab.weights import onnx

    onnx.export(weights, out, stride=stride)


@app.command(group=tools)
def fields(
    image: Annotated[Path, Parameter(help="Image file.")],
    /,
    *,
    weights: Weights,
    out: Annotated[Path, Parameter(help="Picture to write, *.jpg.")],
    side: Side = None,
    stride: OutputStride = DEFAULTS.stride,
) -> None:
    """Draw the five fields predicted for an image.

    Reads a checkpoint and an image; writes one picture: heatmaps, segmentation, and short-, mid- and
    long-range offsets over the image, with a legend of their colours.
    """
    from personlab import viz
    from personlab.data import images
    from personlab.predictor import Predictor

    if out.suffix != ".jpg":
        raise UserError(f"{out}: the picture is written as .jpg; choose such a name")
    try:
        pixels = images.read(image)
    except UserError as error:
        raise UserError(f"{image}: {error}") from None
    infer = _infer(side, None, stride)
    level = Predictor.from_checkpoint(weights, infer).level(pixels, infer.sides[0])
    write_atomic(out, viz.jpeg(viz.draw_fields(pixels, level.fields, level.scale)))


def main() -> None:
    """Run a command; a UserError is printed without a traceback, and the exit status is 1."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # ASCII and Latin-1 terminals lack the dash of empty columns
    logs.start()
    try:
        app()
    except UserError as error:
        if not logs.for_programs():
            sys.exit(f"personlab: {error}")
        logs.log.error("%s", error)
        sys.exit(1)
