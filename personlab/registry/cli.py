"""List, promote and roll back models."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Literal

import cyclopts
from cyclopts import Parameter
from pydantic import TypeAdapter

from personlab.params import Compute
from personlab.utils.files import write_json

if TYPE_CHECKING:  # --help must not wait for pyarrow and pycocotools
    from personlab.registry.models import Version

app = cyclopts.App(name="models", help=__doc__)


@app.command(name="list")
def list_models() -> None:
    """List the versions.

    Reads models/versions/*/lineage.json; prints a line for each, oldest first, with an arrow at the champion.
    """
    from personlab.registry.models import Registry

    registry = Registry(Path.cwd())
    champion = registry.champion()
    for version in registry.versions():
        print("->" if version == champion else "  ", _line(version))
    if not champion:
        print("no champion yet; 'personlab models promote' promotes the model in data/infer")


@app.command
def promote(
    *,
    checkout: Annotated[Path, Parameter(name="--from", help="Folder in which 'dvc repro' has run.")] = Path(),
    rule: Annotated[
        Literal["better", "not-worse", "always", "never"],
        Parameter(
            help="better: one task significantly better and none worse; not-worse: one AP higher and no task "
            "significantly worse; always; never: compare only."
        ),
    ] = "better",
    why: Annotated[str, Parameter(help="A reason to record.")] = "",
    output: Annotated[Path | None, Parameter(name="--json", help="Also write the verdict here.")] = None,
) -> None:
    """Make the model in data/infer the champion, if it is better.

    Reads data/ and dvc.lock, which has to be committed or saved as a DVC experiment; writes
    models/versions/N-*, models/champion and a Git tag. The keypoints and masks of both models on the same
    validation images are compared by a paired bootstrap. The exit status is 1 if the model is not promoted.
    """
    from personlab.registry.models import Candidate, Registry
    from personlab.registry.promotion import Verdict

    candidate = Candidate(checkout.resolve())
    predict = partial(_predict_again, candidate.params.compute)
    verdict, version = Registry(Path.cwd()).promote(candidate, rule, predict, why)
    print(verdict)
    if version:
        print(f"champion: {_line(version)}")
    if output:
        lineage = version.lineage.model_dump(mode="json") if version else None
        judged = json.loads(TypeAdapter(Verdict).dump_json(verdict))  # NaN, which JSON lacks, becomes null
        write_json(output, {"outcome": verdict.outcome, **judged, "version": lineage})
    sys.exit(0 if verdict.promoted else 1)


@app.command
def rollback(
    version: Annotated[
        int | None, Parameter(help="Number of the version. [default: the last champion]")
    ] = None,
    /,
    *,
    why: Annotated[str, Parameter(help="A reason to record.")] = "",
) -> None:
    """Make an earlier version the champion again.

    Reads models/versions; writes models/champion and a Git tag.
    """
    from personlab.registry.models import Registry

    print(f"champion: {_line(Registry(Path.cwd()).rollback(version, why))}")


def _line(version: "Version") -> str:
    lineage = version.lineage
    scores = "  ".join(
        f"{task} {'–' if values['AP'] is None else format(values['AP'], '.3f')}"
        for task, values in lineage.metrics.items()
    )
    return f"{version.folder.name:14} {lineage.when:%Y-%m-%d %H:%M}  {scores}  {lineage.why}"


@contextmanager
def _predict_again(compute: Compute, version: "Version", images: Path) -> Iterator[Path]:
    """Predictions of a version on validation images other than those it was evaluated on."""
    from personlab.stages import infer

    with TemporaryDirectory() as name:
        project = Path(name)
        for source, place in ((images, "data/ingest/val"), (version.folder, "data/train")):
            (project / place).parent.mkdir(parents=True, exist_ok=True)
            (project / place).symlink_to(source.resolve())
        infer.run(version.settings.model_copy(update={"compute": compute}), project)
        yield project / "data/infer"
