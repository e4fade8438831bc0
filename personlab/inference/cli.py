"""The commands that predict people, and the options that they share."""

from pathlib import Path
from typing import Annotated, Literal

import cyclopts
from cyclopts import Parameter
from cyclopts.types import PositiveInt
from cyclopts.validators import MutuallyExclusive, Number

from personlab import params
from personlab.errors import UserError
from personlab.inference.weights import DEFAULT_NETWORK, find_and_log
from personlab.utils.files import write_atomic

_scales = cyclopts.Group(validator=MutuallyExclusive())

DEFAULTS = params.Infer()  # of prediction, as in Predictor.from_checkpoint
_weights = "Checkpoint (*.safetensors, its card beside it), or a name of 'personlab weights list'."
Weights = Annotated[Path, Parameter(help=_weights)]
AnyWeights = Annotated[
    str | None, Parameter(help=f"{_weights} May be a URI. [default: models/champion, else {DEFAULT_NETWORK}]")
]
_side = f"Longest side of the network's input, in pixels. [default: {DEFAULTS.sides[0]}]"
_size = Parameter(validator=Number(gt=0, lte=params.LARGEST_SIDE))
Side = Annotated[int | None, _size, Parameter(group=_scales, help=_side)]
_several = Parameter(group=_scales, consume_multiple=True, negative="")
Pyramid = Annotated[
    list[int] | None, _size, _several, Parameter(help="Several such sides instead: slower, finds more.")
]
OutputStride = Annotated[params.Stride, Parameter(help="Output stride: 8 is slower and finds more.")]
Precision = Annotated[
    params.InferPrecision,
    Parameter(help="Of the network. 16 bits are meant for GPUs; float16 is the more exact."),
]
MaxPeople = Annotated[
    PositiveInt | None, Parameter(help="Proposals per image. [default: as the model was evaluated with]")
]
Device = Annotated[Literal["cpu", "cuda"], Parameter(help="Where the network runs.")]


def _infer(
    side: int | None,
    pyramid: list[int] | None,
    stride: params.Stride,
    precision: params.InferPrecision = DEFAULTS.precision,
) -> params.Infer:
    sides = tuple(pyramid or [side or DEFAULTS.sides[0]])
    return params.Infer(sides=sides, stride=stride, precision=precision)


def predict(
    images: Annotated[
        list[str],
        Parameter(
            help="Image files, folders, patterns ('photos/**/*.jpg'), Parquet files, lists of paths, URIs; "
            "video files; the number of a camera."
        ),
    ],
    /,
    *,
    weights: AnyWeights = None,
    out: Annotated[Path, Parameter(help="Folder to write to.")] = Path("people"),
    annotations: Annotated[
        Path | None,
        Parameter(help="COCO JSON that lists these images: results get its image ids, by file name."),
    ] = None,
    side: Side = None,
    pyramid: Pyramid = None,
    stride: OutputStride = DEFAULTS.stride,
    precision: Precision = DEFAULTS.precision,
    max_people: MaxPeople = None,
    form: Annotated[
        Literal["json", "coco", "coco-dataset", "parquet"],
        Parameter(
            name="--format",
            help="A JSON file per image; COCO results; a COCO dataset for annotation tools, of the people "
            "shown; or a Parquet table.",
        ),
    ] = "json",
    min_score: Annotated[
        float | None,
        Parameter(
            validator=Number(gte=0, lte=1),
            help="Minimum score of people that are drawn, and in a COCO dataset. [default: 0.15]",
        ),
    ] = None,
    device: Device = "cpu",
) -> None:
    """Find people in images, videos and cameras.

    Reads images and weights. Writes poses, masks and scores of all proposals, and `overlays/*.jpg` of those
    with a score of at least 0.15; prints a line for each image. Images that cannot be read are listed with
    reasons; the exit status is 1. Of a video: `overlays/NAME.mp4`, and a row for each frame in NAME.json or
    NAME.parquet. Ctrl-C ends a camera.
    """
    from personlab import tables
    from personlab.inference import video
    from personlab.inference.image_ids import AnnotatedImages
    from personlab.inference.listing import list_all
    from personlab.inference.predict import Output, predict
    from personlab.metrics.coco import PERSON
    from personlab.people import SHOWN
    from personlab.predictor import Predictor, decoding
    from personlab.utils import malloc
    from personlab.utils.progress import print_line, progress

    infer = _infer(side, pyramid, stride, precision)
    annotated = (
        AnnotatedImages.read(annotations, params.of_project().acquire.categories) if annotations else None
    )
    malloc.disable_trim()
    predictor = Predictor.from_checkpoint(
        find_and_log(weights), infer, max_people=max_people, gpu=device == "cuda"
    )
    digest = tables.params_hash(infer, decoding(predictor.network, max_people))
    person = annotated.person if annotated else PERSON
    least = SHOWN if min_score is None else min_score
    output = Output(out, form, digest, predictor.skeleton, person, least)
    videos = [place for place in images if video.is_video(place)]
    stills = [place for place in images if place not in videos]
    listings, failures = list_all(stills, leave_out=output.left_out)
    paths = [path for listing in listings for path in listing.paths()]
    total = len(failures) + len(paths) + len(videos)
    if len(failures) == total:
        raise UserError("\n  ".join(failures))
    if stills:
        failures += predict(
            predictor, listings, output, annotated=annotated, progress=progress, report=print_line
        )
    failures += video.predict(predictor, videos, output, images=paths, progress=progress, report=print_line)
    if failures:
        what = "files" if videos else "images"
        raise UserError("\n  ".join([f"{len(failures)} of {total} {what} could not be read:", *failures]))


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
    weights: AnyWeights = None,
    out: Annotated[str, Parameter(help="Folder to write to, path or URI: empty, or with a run to resume.")],
    side: Side = None,
    pyramid: Pyramid = None,
    stride: OutputStride = DEFAULTS.stride,
    precision: Precision = DEFAULTS.precision,
    max_people: MaxPeople = None,
    part_size: Annotated[PositiveInt, Parameter(help="Images per part, the unit of work and of files.")] = 64,
    device: Device = "cpu",
    gpus_per_actor: Annotated[
        float,
        Parameter(
            validator=Number(gt=0, lte=1),
            help="GPUs per process, with --device cuda: 0.5 runs two on each GPU, with a CPU each.",
        ),
    ] = 1,
) -> None:
    """Predict any number of images in parallel, resumably.

    Runs on all CPUs or GPUs of this machine, or of the Ray cluster at RAY_ADDRESS. Writes `part-*.parquet`,
    `errors-*.parquet` for images that cannot be read, and manifest.json at the end. Other files in a folder,
    such as videos, are counted in a log line. After a kill the same command resumes and writes the same
    files.
    """
    from personlab.data.images import decode
    from personlab.distributed import batch
    from personlab.inference.job import Job, make_plan
    from personlab.inference.listing import list_images
    from personlab.utils.storage import Folder, is_uri

    infer = _infer(side, pyramid, stride, precision)
    checkpoint = find_and_log(weights)
    listing = list_images(images, leave_out=[out])
    plan = make_plan(listing, checkpoint, infer, max_people=max_people, part_size=part_size)
    place = weights if weights and is_uri(weights) else str(checkpoint.absolute())
    gpu = device == "cuda"
    job = Job(plan, listing.root, Folder(out), place, decode, gpu=gpu)
    batch.run(job, listing, gpus_per_actor=gpus_per_actor if gpu else 0)


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


def fields(
    image: Annotated[Path, Parameter(help="Image file.")],
    /,
    *,
    weights: AnyWeights = None,
    out: Annotated[Path, Parameter(help="Picture to write, *.jpg.")] = Path("fields.jpg"),
    side: Side = None,
    stride: OutputStride = DEFAULTS.stride,
) -> None:
    """Draw the five fields predicted for an image.

    Reads weights and an image; writes one picture: heatmaps, segmentation, and short-, mid- and
    long-range offsets over the image, with a legend of their colours.
    """
    from personlab import viz
    from personlab.data import images
    from personlab.predictor import Predictor
    from personlab.viz.fields import draw_fields

    if out.suffix != ".jpg":
        raise UserError(f"{out}: the picture is written as .jpg; choose such a name")
    try:
        pixels = images.read(image)
    except UserError as error:
        raise UserError(f"{image}: {error}") from None
    infer = _infer(side, None, stride)
    predictor = Predictor.from_checkpoint(find_and_log(weights), infer)
    level = predictor.level(pixels, infer.sides[0])
    write_atomic(out, viz.jpeg(draw_fields(pixels, level.fields, level.scale, skeleton=predictor.skeleton)))
    print(out)
