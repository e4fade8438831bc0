"""The provenance of models: the Git commits and DVC lock files that made them, and tags of promotions.

dvc.lock holds the hashes of the code, parameters, data and outputs of a run. The commit or DVC experiment
with the same dvc.lock is therefore the state that made a model, and checking it out restores the model.
Promotions and rollbacks are annotated tags champion/1, champion/2, ... on these states: `git push --tags`
shares them, and branches and the working tree are not touched.
"""

import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict

from personlab.errors import UserError
from personlab.utils import files
from personlab.utils.git import git

LOCK = "dvc.lock"
ARTIFACT = "person-poses"  # in dvc.yaml
_EXPERIMENTS = "refs/exps/"
_FALLBACK = ("-c", "user.name=personlab", "-c", "user.email=personlab@localhost")


class Data(BaseModel):
    """DVC's hashes of the image and target shards of each split. Unknown keys are kept."""

    model_config = ConfigDict(extra="allow", frozen=True)

    train: str
    val: str


@dataclass(frozen=True)
class State:
    """The commit that made a model."""

    commit: str
    experiment: str | None  # its name, if the commit is a DVC experiment


def state_of(folder: Path) -> State:
    """The commit or DVC experiment with the same dvc.lock as `folder`, a Git checkout; HEAD comes first.

    Raises:
        UserError: there is none, or `folder` is not a Git checkout.
    """
    path = git(folder, "rev-parse", "--show-prefix") + LOCK
    lock = git(folder, "hash-object", LOCK)
    refs = git(folder, "for-each-ref", "--sort=-creatordate", "--format=%(refname)", _EXPERIMENTS).split()
    names = ["HEAD", *(ref for ref in refs if not ref.startswith(f"{_EXPERIMENTS}exec/"))]
    found = git(
        folder, "cat-file", "--batch-check=%(objectname)", stdin="".join(f"{name}:{path}\n" for name in names)
    )
    for name, blob in zip(names, found.splitlines(), strict=True):
        if blob == lock:
            experiment = None if name == "HEAD" else name.rpartition("/")[2]
            return State(git(folder, "rev-parse", name), experiment)
    raise UserError(
        f"{folder / LOCK}: in no commit and no DVC experiment, so the model could not be restored; run "
        "'dvc exp save' (or commit params.yaml and dvc.lock), then promote again"
    )


def acquired(folder: Path) -> str:
    """DVC's hash of the images and annotations that the pipeline in `folder` began with.

    Raises:
        UserError: dvc.lock is missing or not of this pipeline.
    """
    with _locked(folder) as hashes:
        return hashes("acquire", "outs")["data/acquire"]


def data_of(folder: Path) -> Data:
    """The shards that the model in `folder` was trained and evaluated on.

    Raises:
        UserError: dvc.lock is missing or not of this pipeline, or the outputs are of different runs.
    """
    with _locked(folder) as hashes:
        trained, inferred, evaluated = (hashes(stage, "deps") for stage in ("train", "infer", "evaluate"))
        weights = inferred["data/train/model.safetensors"]
        together = evaluated["data/infer"] == hashes("infer", "outs")["data/infer"] and all(
            deps["data/ingest/val"] == evaluated["data/ingest/val"] for deps in (trained, inferred)
        )
        train, val = (  # hashes of the images and of their people
            f"{deps[f'data/ingest/{split}']} {deps[f'data/targets/{split}']}"
            for deps, split in ((trained, "train"), (evaluated, "val"))
        )
    # infer copies the weights of train
    if not (together and digest(folder / "data/infer/model.safetensors", "md5") == weights):
        raise UserError(f"{folder}: weights, predictions and scores are not of one run; run 'dvc repro'")
    return Data(train=train, val=val)


def digest(path: Path, algorithm: str) -> str:
    """The hash of a file that `dvc repro` wrote."""
    try:
        return files.digest(path, algorithm)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run 'dvc repro' there first") from None


def record(folder: Path, commit: str, version: int, message: str) -> None:
    """Tag a commit as the champion, for people (champion/N) and for GTO and DVC.

    GTO's tags are `person-poses@v2.0.0` for version 2 and `person-poses#champion#N`, so that `gto show` lists
    the versions and `dvc artifacts get URL person-poses --stage champion` gets the champion's.
    """
    prefix, taken = git(folder, "rev-parse", "--show-prefix"), git(folder, "tag", "--list")
    artifact = f"{prefix[:-1]}={ARTIFACT}" if prefix else ARTIFACT
    number = _after(rf"(?:champion/|{re.escape(artifact)}#champion#)", taken)
    tags = [f"champion/{number}"]
    if re.fullmatch(r"(\w[\w.-]*/)*", prefix, re.ASCII):  # GTO allows no other names of folders
        tags.insert(0, f"{artifact}#champion#{number}")
        if not git(folder, "tag", "--list", "--points-at", commit, f"{artifact}@v*"):
            if f"{artifact}@v{version}.0.0" in taken.split():  # another clone's version
                version = _after(rf"{re.escape(artifact)}@v", taken)
            tags.insert(0, f"{artifact}@v{version}.0.0")
    for tag in tags:
        git(folder, *_identity(folder), "tag", "--annotate", "--file=-", tag, commit, stdin=message)


def _after(prefix: str, tags: str) -> int:
    """The number after the highest one that follows a prefix (a regular expression) in a list of tags."""
    return max(map(int, re.findall(rf"^{prefix}(\d+)", tags, re.MULTILINE)), default=0) + 1


def _identity(folder: Path) -> tuple[str, ...]:
    """Options that give Git a committer if none is configured, as for scheduled runs."""
    known = subprocess.run(("git", "var", "GIT_COMMITTER_IDENT"), cwd=folder, capture_output=True)
    return () if known.returncode == 0 else _FALLBACK


@contextmanager
def _locked(folder: Path) -> Iterator[Callable[[str, str], dict[str, str]]]:
    """Yield a function of a stage and "deps" or "outs": the hashes in dvc.lock by path."""
    path = folder / LOCK
    try:
        stages = yaml.safe_load(path.read_bytes())["stages"]
        yield lambda stage, kind: {entry["path"]: entry["md5"] for entry in stages[stage][kind]}
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run 'dvc repro' there first") from None
    except (KeyError, TypeError):
        raise UserError(f"{path}: not this pipeline's; run 'dvc repro'") from None
