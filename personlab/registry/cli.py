"""`personlab models`: which models were promoted, and which one is champion."""

import json
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Literal

import cyclopts
from cyclopts import Parameter

from personlab.utils.files import write_atomic

if TYPE_CHECKING:  # --help must not wait for pyarrow and pycocotools
    from personlab.registry.models import Version

app = cyclopts.App(name="models", help=__doc__)


@app.command(name="list")
def list_models() -> None:
    """List every version, oldest first; an arrow marks the champion."""
    from personlab.registry.models import Registry

    registry = Registry(Path.cwd())
    champion = registry.champion()
    for version in registry.versions():
        print("->" if version == champion else "  ", _line(version))
    if not champion:
        print("no champion yet; 'personlab models promote' makes one of the model in data/train")


@app.command
def promote(
    *,
    checkout: Annotated[Path, Parameter(name="--from", help="Folder in which 'dvc repro' has run.")] = Path(),
    rule: Annotated[
        Literal["better", "not-worse", "always", "never"],
        Parameter(
            help="better: no task worse and one better, each by more than chance explains; not-worse: a "
            "higher AP is enough for the one; always; never: compare only."
        ),
    ] = "better",
    why: Annotated[str, Parameter(help="Recorded with it.")] = "",
    output: Annotated[Path | None, Parameter(name="--json", help="Also write the verdict here.")] = None,
) -> None:
    """Make the model in data/train the champion, if the rule finds it better than the one there is.

    Both models' predictions of the same validation images are compared, keypoints and masks, by a paired
    bootstrap. Exit status 1 if it is not promoted. What made the model has to be committed, or saved as a DVC
    experiment.
    """
    from personlab.registry.models import Candidate, Registry

    verdict, version = Registry(Path.cwd()).promote(Candidate(checkout.resolve()), rule, _predict_again, why)
    print(verdict)
    if version:
        print(f"champion: {_line(version)}")
    if output:
        lineage = version.lineage.model_dump(mode="json") if version else None
        found = {"outcome": verdict.outcome, **_plain(asdict(verdict)), "version": lineage}
        write_atomic(output, json.dumps(found, indent=2) + "\n")
    sys.exit(0 if verdict.promoted else 1)


@app.command
def rollback(
    version: Annotated[int | None, Parameter(help="Its number. [default: the champion before]")] = None,
    /,
    *,
    why: Annotated[str, Parameter(help="Recorded with it.")] = "",
) -> None:
    """Make an earlier version the champion again, byte for byte."""
    from personlab.registry.models import Registry

    print(f"champion: {_line(Registry(Path.cwd()).rollback(version, why))}")


def _plain(value: Any) -> Any:
    """Without NaN, which JSON does not know."""
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _line(version: "Version") -> str:
    lineage = version.lineage
    scores = "  ".join(
        f"{task} {'–' if values['AP'] is None else format(values['AP'], '.3f')}"
        for task, values in lineage.metrics.items()
    )
    return f"{version.folder.name:14} {lineage.when:%Y-%m-%d %H:%M}  {scores}  {lineage.why}"


@contextmanager
def _predict_again(version: "Version", images: Path) -> Iterator[Path]:
    """A version's predictions of other validation images than those it was judged by."""
    from personlab.stages import infer

    with TemporaryDirectory() as name:
        project = Path(name)
        for source, place in ((images, "data/ingest/val"), (version.folder, "data/train")):
            (project / place).parent.mkdir(parents=True, exist_ok=True)
            (project / place).symlink_to(source.resolve())
        infer.run(version.lineage.settings, project)
        yield project / "data/infer"
