"""PersonLab: poses and masks of people in images. One command per stage of the pipeline, and tools.

Paths are relative to the current folder, the project's. A stage reads params.yaml and data/ of earlier
stages, and writes data/STAGE/, data/metrics/STAGE.json and data/plots/STAGE/. `dvc repro` runs the stages
that are out of date; the command of a stage always runs it.
"""

import sys
from functools import partial
from importlib import import_module
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import cyclopts
from cyclopts import Parameter

from personlab import __version__, params
from personlab.ablation.cli import ablate
from personlab.errors import UserError
from personlab.inference.cli import Weights, fields, infer_batch, overlays, predict
from personlab.metrics.cli import ScoresFile, errors, score
from personlab.registry.cli import app as models
from personlab.serving.cli import serve
from personlab.utils import logs
from personlab.utils.files import write_json
from personlab.weights.cli import app as weights

app = cyclopts.App(name="personlab", help=__doc__, version=__version__)
stages = cyclopts.Group("Stages, in the order of the pipeline", sort_key=0)
tools = cyclopts.Group("Tools", sort_key=1)
for _app in (weights, models):
    _app.group = tools
    app.command(_app)
for _command in (predict, infer_batch, overlays, fields, score, errors, serve, ablate):
    app.command(_command, group=tools)


STAGES = {
    "acquire": """Get the sample, a COCO or YOLO folder, or COCO 2017.

    Renders the sample data set, locates a folder in COCO's or YOLO's format, or downloads COCO 2017. Writes
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


@app.command(group=tools)
def oracle(
    *,
    annotations: Annotated[Path, Parameter(help="COCO keypoints JSON; no images are needed.")],
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
    the tree is broken: compare with the AP of the connected keypoints, without a decoder, which is printed
    last. The decoder may exceed it: it places the other keypoints too, some of them near enough.
    """
    from personlab.codec.decode import Decoder
    from personlab.codec.extensions import EXTENSIONS
    from personlab.metrics import oracle, report
    from personlab.utils.progress import progress

    project = params.of_project()
    annotated = oracle.read(annotations, project.acquire.categories, project.skeleton)
    scores = oracle.score(
        annotated.truth,
        # targets are refined fields already
        Decoder(
            trace_refinements=0,
            long_refinements=0,
            max_people=max_people,
            extensions=EXTENSIONS if all_steps else (),
            skeleton=annotated.skeleton,
        ),
        side=side,
        stride=stride,
        complete=complete,
        progress=progress,
    )
    print(report.text(scores.keypoints), report.text(scores.segm), sep="\n\n")
    print(f"\nAP of the connected keypoints, without a decoder: {scores.connected_ap:.3f}")
    if output:
        tasks = {"keypoints": report.metrics(scores.keypoints), "segm": report.metrics(scores.segm)}
        write_json(output, tasks | {"connected_ap": scores.connected_ap})


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
    from personlab.weights import zoo
    from personlab.weights.bodypix import import_weights

    import_weights(source, out, downloads=zoo.downloads(source))


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

    Reads a checkpoint; writes --out, from images to fields (probabilities and offsets in pixels). Sides of
    images are a multiple of --stride plus 1. Inputs and outputs are described in personlab/weights/onnx.py.
    """
    from personlab.weights import onnx, zoo

    onnx.export(zoo.find(weights), out, stride=stride)
    print(out)


def main() -> None:
    """Run a command. Errors that users can fix are printed without a traceback; the exit status is 1."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # ASCII and Latin-1 terminals lack the dash of empty columns
    logs.start()
    try:
        app(sys.argv[1:])
    except UserError as error:
        _exit(str(error))
    except OSError as error:
        if error.filename is None:
            raise
        _exit(f"{error.filename}: {error.strerror}")  # a folder, no permission, a name that is too long


def _exit(reason: str) -> NoReturn:
    if not logs.for_programs():
        sys.exit(f"personlab: {reason}")
    logs.log.error("%s", reason)
    sys.exit(1)
