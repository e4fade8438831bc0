"""Rows of the tables as DVC experiments: their names, their runs and their results."""

import hashlib
import json
import logging
import re
import shlex
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median_low
from tempfile import TemporaryDirectory
from typing import Any, Final, Literal, Self

import numpy as np
import yaml
from dvc.api import DVCFileSystem
from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc_data.index import DataIndexError

from personlab import params as parameters
from personlab.ablation.tables import Row
from personlab.errors import UserError
from personlab.metrics import bootstrap
from personlab.metrics.coco import KEYPOINT_BUDGET, Matches, Task, ground_truth, match
from personlab.params import Params
from personlab.registry import provenance
from personlab.tables import read_dataset, shards
from personlab.utils import process
from personlab.utils.files import write_atomic
from personlab.utils.git import git

log = logging.getLogger("personlab")

SAMPLES: Final = 1000  # resamplings of the validation images
_SIZES: Final = {"AP": "all", "APS": "small", "APL": "large"}  # of people, by the columns that tables compare

# `dvc` that writes the settings of an experiment's folder (the cache's path, Git's user) as UTF-8. DVC 3.67
# writes ASCII there and fails with a UnicodeEncodeError if the project's path is not ASCII.
_DVC: Final = """
import functools, sys
from dvc.cli import main
from dvc.repo.experiments.executor import local
local.ConfigObj = functools.partial(local.ConfigObj, default_encoding="utf-8")
sys.exit(main())
"""


@dataclass(frozen=True)
class Experiment:
    """A configuration of the pipeline. Rows with equal configurations are one experiment."""

    name: str
    arguments: tuple[str, ...]  # of `dvc exp run`

    @property
    def command(self) -> str:
        return shlex.join(("dvc", "exp", "run", *self.arguments))


@dataclass(frozen=True, eq=False)
class Project:
    """A project. While its pipeline is out of date, rows can be listed, but not run."""

    folder: Path  # absolute
    params: Params
    inputs: str  # hash of what decides a result besides the parameters: commands, code, weights, images
    copies: tuple[str, ...] = ()  # options that copy those of these that Git ignores
    cache: str = ""  # DVC's
    queued: frozenset[str] = frozenset()  # names of the experiments in DVC's queue, waiting or running
    stale: tuple[str, ...] = ()  # stages that are not up to date; with any, `inputs` is ""

    @classmethod
    def open(cls, folder: Path) -> Self:
        """The project in a folder.

        Raises:
            UserError: there is no DVC repository, or the pipeline is up to date and code is not in Git.
        """
        settings = parameters.load(folder / "params.yaml")
        try:
            with Repo(str(folder)) as repo:
                stale, cache = repo.status(), str(repo.cache.local_cache_dir)
                tasks = repo.experiments.celery_queue.status()
        except DvcException as error:
            raise UserError(f"{folder}: {error}") from None
        if stale:
            return cls(folder, settings, inputs="", stale=tuple(stale))
        stages = yaml.safe_load((folder / provenance.LOCK).read_bytes())["stages"].values()
        deps = {dep["path"]: dep for stage in stages for dep in stage.get("deps", ())}
        sources = {path: dep for path, dep in deps.items() if not path.startswith("data/")}
        inputs = _hash([[stage["cmd"] for stage in stages], sources, provenance.acquired(folder)])
        queued = frozenset(task["name"] for task in tasks if task["status"] in ("Queued", "Running"))
        return cls(folder, settings, inputs, copy_options(folder, sources), cache, queued)

    @property
    def side(self) -> int:
        """The input side that stands for the paper's 1401 pixels: the median of those in params.yaml."""
        return median_low(self.params.infer.sides)

    def experiment(self, row: Row | None = None) -> Experiment:
        """A row of a table as an experiment; None: the workspace's own configuration."""
        tree, words = self.params.model_dump(mode="json", exclude={"compute"}), "ablate"
        arguments: list[str] = []
        for name, value in row.overrides(self.side).items() if row else ():
            section, key = name.split(".")
            spelled = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
            arguments += ["-S", f"{name}={spelled}"]
            if tree[section][key] != value:
                tree[section][key] = value
                words += f" {key} {spelled}"
        if self.stale:  # without a name, which would not be that of the experiment after 'dvc repro'
            return Experiment("", tuple(arguments))
        name = "-".join([*re.findall("[a-z0-9]+", words), _hash([self.inputs, tree])[:7]])
        return Experiment(name, (*arguments, "--name", name))

    def run(self, experiment: Experiment, how: Literal["--temp", "--queue"], label: str) -> None:
        """Run an experiment in a temporary folder, or add it to DVC's queue; log the output under a label.

        Checkpoints of trainings are kept in the project, where the experiment's next run finds them.

        Raises:
            CommandError: DVC or a stage failed.
        """
        written = (self.cache, git(self.folder, "config", "--local", "--list"))
        if how == "--queue" and not "".join(written).isascii():
            reason = "DVC's queue fails if the path of its cache or Git's local settings are not ASCII"
            raise UserError(f"{self.folder}: {reason}; leave out --queue")
        command = (sys.executable, "-c", _DVC, "exp", "run", how, *self.copies, *experiment.arguments)
        storage = self.params.compute.storage_path or "runs"
        if "://" not in storage:
            path = json.dumps(str(self.folder / storage), ensure_ascii=False)
            command += ("-S", f"compute.storage_path={path}")
        process.run(command, self.folder, lambda line: log.log(line.level, "%s: %s", label, line.text))

    def results(self) -> dict[str, "Result"]:
        """Results by name, of DVC's experiments and of the workspace."""
        fields = "--format=%(objectname) %(refname:lstrip=4)"
        listed = git(self.folder, "for-each-ref", "--sort=creatordate", fields, "refs/exps/*/*/ablate-*")
        commits = {name: commit for commit, name in map(str.split, listed.splitlines())}
        return {name: Result(self, commit) for name, commit in commits.items()} | {
            self.experiment().name: Result(self, None)
        }

    @cached_property
    def images(self) -> dict[int, shards.Row]:
        """The validation images and their people by id, the same for every experiment."""
        return shards.annotated(self.folder / "data/ingest/val", self.folder / "data/targets/val")


@dataclass(frozen=True, eq=False)
class Result:
    """What an experiment found, read through DVC from its commit or, if that is None, from the workspace."""

    project: Project
    commit: str | None

    @cached_property
    def _files(self) -> Any:
        return DVCFileSystem(str(self.project.folder), rev=self.commit)

    def scores(self, task: Task) -> dict[str, float]:
        """The columns of a task; NaN where there is nothing to find."""
        scores = json.loads(self._files.read_text("data/metrics/evaluate.json"))[task]
        return {column: float("nan") if value is None else value for column, value in scores.items()}

    def resampled(self, task: Task, column: str) -> bootstrap.Array:
        """A column that tables compare, on each of the resamplings of the validation images.

        Kept in runs/bootstrap: it takes seconds for 100 images and a minute for 5000.
        """
        lock = yaml.safe_load(self._files.read_text(provenance.LOCK))
        evaluated = _hash(lock["stages"]["evaluate"]["deps"])
        path = self.project.folder / "runs/bootstrap" / f"{evaluated}-{task}-{column}"
        if not path.is_file():
            values = bootstrap.resampled_ap(self._matches(task), size=_SIZES[column], samples=SAMPLES)
            write_atomic(path, values.tobytes())
        return np.fromfile(path)

    def _matches(self, task: Task) -> Matches:
        images, val = self.project.images, self.project.folder / "data/ingest/val"
        skeleton = read_dataset(self.project.folder / "data").skeleton
        with TemporaryDirectory() as name:
            try:
                for part in self._files.glob("data/infer/part-*.parquet"):
                    self._files.get_file(part, str(Path(name, Path(part).name)))
            except (OSError, DataIndexError):
                raise UserError(
                    f"experiment {self.commit}: DVC's cache lacks it; 'dvc exp remove' it"
                ) from None
            found = shards.detections(Path(name), images, val)
        budgets = {"keypoints": KEYPOINT_BUDGET, "segm": self.project.params.decode.max_people}
        return match(ground_truth(images.values(), skeleton), found, task, budgets[task])


def copy_options(folder: Path, sources: Iterable[str]) -> tuple[str, ...]:
    """--copy-paths=FILE ... for the sources that Git ignores, and their cards.

    Raises:
        UserError: files are neither in Git nor ignored, so that DVC would leave them out of experiments.
    """
    inside = [path for path in sources if not path.startswith(("/", ".."))]
    others = git(folder, "ls-files", "--others", "--exclude-standard", "--", "dvc.yaml", *inside)
    if others:
        raise UserError(f"{folder}: not in Git: {', '.join(others.splitlines())}; 'git add' first")
    found: dict[str, None] = {}
    for source in (path for path in inside if not git(folder, "ls-files", "--", path)):
        for path in (Path(source), Path(source).with_suffix(".json")):
            # DVC copies a file only into a folder that is there; of one without files in Git, the whole
            while path.parent != Path() and not git(folder, "ls-files", "--", str(path.parent)):
                path = path.parent
            if (folder / path).exists():
                found[f"--copy-paths={path}"] = None
    return tuple(found)


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
