"""Where a model came from, and the record of what became of it: Git's commits and DVC's lock file.

DVC's lock file names everything that made a model by hash: code, parameters, data, outputs. So the commit or
DVC experiment with that very dvc.lock is the state that made the model, and checking it out brings it back.
Promotions and rollbacks are recorded as annotated tags, champion/1, champion/2, ..., on those states: they
travel with `git push --tags`, and neither branch nor working tree is touched.
"""

import hashlib
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from personlab.errors import UserError
from personlab.params import Section
from personlab.utils.git import git

LOCK = "dvc.lock"
_EXPERIMENTS = "refs/exps/"
_FALLBACK = ("-c", "user.name=personlab", "-c", "user.email=personlab@localhost")


class Data(Section):
    """DVC's hashes of the image and target shards of each split."""

    train: str
    val: str


@dataclass(frozen=True)
class State:
    """A commit, and the name of the DVC experiment that it is, if it is one."""

    commit: str
    experiment: str | None


def state_of(folder: Path) -> State:
    """The commit, or else the experiment, whose dvc.lock is the one in `folder`, a Git checkout.

    Raises:
        UserError: there is none, so that nothing could bring this model back; or no Git checkout.
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
        f"{folder / LOCK}: in no commit and no DVC experiment, so nothing could bring this model back; run "
        "'dvc exp save' (or commit params.yaml and dvc.lock), then promote again"
    )


def acquired(folder: Path) -> str:
    """DVC's hash of what the pipeline in `folder` started from: the images and annotations.

    Raises:
        UserError: the pipeline has not run, or its lock file is not of this pipeline.
    """
    try:
        return _entries(_lock(folder), "acquire", "outs")["data/acquire"]
    except (KeyError, TypeError):
        raise UserError(f"{folder / LOCK}: not this pipeline's; run 'dvc repro'") from None


def data_of(folder: Path) -> Data:
    """The shards that the model in `folder` was trained and measured on.

    Raises:
        UserError: dvc.lock is missing or not of this pipeline, or the stages' outputs are not one run's.
    """
    lock = _lock(folder)
    try:
        trained, evaluated = _entries(lock, "train", "deps"), _entries(lock, "evaluate", "deps")
        inferred, predicted = _entries(lock, "infer", "deps"), _entries(lock, "infer", "outs")["data/infer"]
        weights = inferred["data/train/model.safetensors"]
        together = evaluated["data/infer"] == predicted and all(
            deps["data/ingest/val"] == evaluated["data/ingest/val"] for deps in (trained, inferred)
        )
        data = Data(train=_shards(trained, "train"), val=_shards(evaluated, "val"))
    except (KeyError, TypeError):
        raise UserError(f"{folder / LOCK}: not this pipeline's; run 'dvc repro'") from None
    if not (together and _md5(folder / "data/train/model.safetensors") == weights):
        raise UserError(f"{folder}: weights, predictions and scores are not of one run; run 'dvc repro'")
    return data


def _shards(deps: dict[str, str], split: str) -> str:
    """Hashes of a split's images and of their people."""
    return f"{deps[f'data/ingest/{split}']} {deps[f'data/targets/{split}']}"


def record(folder: Path, commit: str, message: str) -> str:
    """Tag a commit as the champion from now on; the name of the tag."""
    taken = [int(name.rpartition("/")[2]) for name in git(folder, "tag", "-l", "champion/*").split()]
    tag = f"champion/{max(taken, default=0) + 1}"
    git(folder, *_identity(folder), "tag", "--annotate", "--file=-", tag, commit, stdin=message)
    return tag


def _identity(folder: Path) -> tuple[str, ...]:
    """Nothing where Git knows who we are; a scheduled run may be nobody."""
    known = subprocess.run(("git", "var", "GIT_COMMITTER_IDENT"), cwd=folder, capture_output=True)
    return () if known.returncode == 0 else _FALLBACK


def _lock(folder: Path) -> Any:
    try:
        return yaml.safe_load((folder / LOCK).read_text())
    except FileNotFoundError:
        raise UserError(f"{folder / LOCK}: no such file; run 'dvc repro' there first") from None


def _entries(lock: Any, stage: str, kind: str) -> dict[str, str]:
    return {entry["path"]: entry["md5"] for entry in lock["stages"][stage][kind]}


def _md5(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "md5").hexdigest()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run 'dvc repro' there first") from None
