"""A row of a table as an experiment: its name, its command, its run, and the record of what it found."""

import hashlib
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from statistics import median_low
from typing import Any, Final, Self

import numpy as np
import yaml
from pydantic import ValidationError

from personlab import params as parameters
from personlab.ablation.clone import Clone
from personlab.ablation.tables import Row, Value
from personlab.errors import UserError
from personlab.metrics import bootstrap
from personlab.metrics.coco import KEYPOINT_BUDGET, Task, ground_truth, match
from personlab.params import Params, Section
from personlab.registry import provenance
from personlab.report.differences import changed, flatten
from personlab.tables import shards
from personlab.utils.files import write_atomic
from personlab.utils.git import git
from personlab.utils.process import OnLine

RECORDS: Final = Path("runs/ablations")
SAMPLES: Final = 1000
_SIZES: Final = {"AP": "all", "APS": "small", "APM": "medium", "APL": "large"}  # columns that are resampled
_DIGITS: Final = 7  # of a hash in a name

Scores = dict[Task, dict[str, float | None]]
Resampled = dict[Task, dict[str, tuple[float | None, ...]]]


class Record(Section):
    """What an experiment found."""

    commit: str  # holds its parameters and its dvc.lock
    baseline: str  # the commit of the project that it started from
    params: str  # hash of the parameters that the pipeline depends on
    images: int
    people: int  # crowds not counted
    posed: int  # those of them with keypoints
    metrics: Scores
    resampled: (
        Resampled  # by column: its value on each resampling of the images, for all experiments the same
    )

    def column(self, task: Task, name: str) -> float:
        """NaN where there is nobody to find."""
        value = self.metrics[task].get(name)
        return float("nan") if value is None else value

    def on_resamplings(self, task: Task, name: str) -> list[float]:
        return [float("nan") if value is None else value for value in self.resampled[task][name]]


@dataclass(frozen=True)
class Experiment:
    """One configuration of the pipeline. Two rows may be the same one: then they have the same name."""

    name: str
    params: Params
    digest: str  # of the parameters that the pipeline depends on
    overrides: tuple[str, ...]  # as `dvc exp run -S` takes them

    @property
    def arguments(self) -> tuple[str, ...]:
        settings = (part for override in self.overrides for part in ("-S", override))
        return ("exp", "run", *settings, "--name", self.name)

    @property
    def command(self) -> str:
        return shlex.join(("dvc", *self.arguments))


@dataclass(frozen=True)
class Project:
    """A project whose pipeline has run, at a commit."""

    folder: Path
    params: Params
    commit: str
    watched: tuple[str, ...]  # the parameters that the pipeline depends on
    inputs: str  # hash of everything else that decides a result: pipeline, code, data

    @classmethod
    def open(cls, folder: Path) -> Self:
        """The project in a folder.

        Raises:
            UserError: it is in no Git repository, has changes that are not committed, or has not run.
        """
        settings = parameters.load(folder / "params.yaml")
        stages = _stages(folder / "dvc.yaml")
        code = ("dvc.yaml", *_named(stages, "deps"))
        commit = git(folder, "rev-parse", "--verify", "HEAD^{commit}")
        if changes := git(folder, "status", "--porcelain", "--no-renames", "--", "params.yaml", *code):
            names = ", ".join(line.split(maxsplit=1)[1] for line in changes.splitlines())
            raise UserError(
                f"{folder.resolve()}: not committed: {names}; experiments start "
                "from a commit, so commit or undo ('git stash') first"
            )
        inputs = (git(folder, "ls-tree", "HEAD", "--", *code), provenance.acquired(folder))
        return cls(folder, settings, commit, _named(stages, "params"), _hash(inputs))

    @property
    def side(self) -> int:
        """The image side that stands for the paper's 1401 pixels: the middle one of those in params.yaml."""
        return median_low(self.params.infer.sides)

    def experiment(self, row: Row) -> Experiment:
        """What a row of a table is here.

        Raises:
            UserError: the row's values do not go with these parameters.
        """
        overrides = row.overrides(self.side)
        settings = overridden(self.params, overrides)
        before, now = (flatten(each.model_dump(mode="json")) for each in (self.params, settings))
        digest = _hash(_lookup(settings, name) for name in self.watched)
        words = [f"{each.name.rpartition('.')[2]}-{_spelled(each.now)}" for each in changed(before, now)]
        plain = re.sub(r"[^a-z0-9]+", "-", "-".join(["ablate", *words]))
        return Experiment(
            name=f"{plain.strip('-')}-{_hash((self.inputs, digest))[:_DIGITS]}",
            params=settings,
            digest=digest,
            overrides=tuple(f"{name}={_spelled(value)}" for name, value in overrides.items()),
        )

    def record(self, experiment: Experiment) -> Record | None:
        """What the experiment found; None if it has not run."""
        path = self._path(experiment)
        try:
            return Record.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError:
            raise UserError(
                f"{path}: no record of an experiment; delete it and run the table again"
            ) from None

    def run(self, experiment: Experiment, clone: Clone, say: OnLine) -> Record:
        """Run an experiment, or have DVC fetch it from its cache, and keep a record of it.

        Raises:
            CommandError: DVC or a stage failed.
            UserError: what came out is not what was asked for.
        """
        clone.clear()
        clone.dvc(*experiment.arguments, say=say)
        found = _read(clone.folder, experiment, clone.publish(experiment.name), self.commit)
        write_atomic(self._path(experiment), found.model_dump_json(indent=1) + "\n")
        return found

    def _path(self, experiment: Experiment) -> Path:
        return self.folder / RECORDS / f"{experiment.name}.json"


def overridden(settings: Params, overrides: Mapping[str, Value]) -> Params:
    """Parameters with some values, by their dotted names, replaced.

    Raises:
        UserError: a value does not go with the others.
    """
    tree: Any = settings.model_dump()
    for name, value in overrides.items():
        *sections, key = name.split(".")
        reduce(lambda branch, section: branch[section], sections, tree)[key] = value
    try:
        return Params.model_validate(tree)
    except ValidationError as error:
        raise UserError(f"params.yaml with {dict(overrides)}: {error.errors()[0]['msg']}") from None


def _read(folder: Path, experiment: Experiment, state: provenance.State, baseline: str) -> Record:
    """The record of an experiment from the folder in which it has just run."""
    made = parameters.load(folder / "params.yaml")
    if others := changed(flatten(experiment.params.model_dump()), flatten(made.model_dump())):
        names = ", ".join(each.name for each in others)
        raise UserError(f"{folder / 'params.yaml'}: DVC ran with other values than asked for: {names}")
    val = folder / "data/ingest/val"
    images = shards.annotated(val, folder / "data/targets/val")
    detections = shards.detections(folder / "data/infer", images, val)
    truth = ground_truth(images.values())
    people = [person for row in images.values() for person in row["people"] if not person["crowd"]]
    budgets: dict[Task, int] = {"keypoints": KEYPOINT_BUDGET, "segm": experiment.params.decode.max_people}
    resampled: Resampled = {}
    for task, budget in budgets.items():
        matches = match(truth, detections, task, budget)
        resampled[task] = {
            column: _plain(bootstrap.resampled_ap(matches, size=size, samples=SAMPLES))
            for column, size in _SIZES.items()
            if column in matches.columns()
        }
    return Record(
        commit=state.commit,
        baseline=baseline,
        params=experiment.digest,
        images=len(images),
        people=len(people),
        posed=sum(any(person["visibility"]) and not person["imputed"] for person in people),
        metrics=json.loads((folder / "data/metrics/evaluate.json").read_text()),
        resampled=resampled,
    )


def _plain(values: bootstrap.Array) -> tuple[float | None, ...]:
    """For JSON, which knows no NaN."""
    return tuple(None if np.isnan(value) else round(float(value), 6) for value in values)


# --- what decides a result ----------------------------------------------------------------------------------


def _stages(pipeline: Path) -> list[Mapping[str, Any]]:
    try:
        return list(yaml.safe_load(pipeline.read_text())["stages"].values())
    except FileNotFoundError:
        raise UserError(f"{pipeline}: no such file; run this in the project's folder") from None
    except (yaml.YAMLError, KeyError, TypeError, AttributeError):
        raise UserError(f"{pipeline}: no pipeline of DVC's") from None


def _named(stages: Sequence[Mapping[str, Any]], kind: str) -> tuple[str, ...]:
    """All that the stages name as `deps` or `params`, each once."""
    return tuple(dict.fromkeys(name for stage in stages for name in stage.get(kind, ())))


def _lookup(settings: Params, name: str) -> str:
    try:
        value = reduce(lambda branch, key: branch[key], name.split("."), settings.model_dump(mode="json"))
    except (KeyError, TypeError):
        raise UserError(f"dvc.yaml: params: there is no parameter {name}") from None
    return json.dumps([name, value], sort_keys=True)


def _hash(parts: Any) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _spelled(value: Value | list[int] | None) -> str:
    """As in YAML, in a line without spaces."""
    if isinstance(value, tuple | list):
        return f"[{','.join(map(str, value))}]"
    return json.dumps(value) if isinstance(value, bool) else str(value)
