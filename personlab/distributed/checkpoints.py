"""Training runs on disk: their names, their checkpoints, and how they resume.

A checkpoint is a folder with the state and its SHA-256, so that one damaged by a kill or a full disk is
recognised, skipped and reported. A run resumes from these folders alone. Ray knows nothing of them: it does
not start if its own list is damaged, and does not wait for an object store that is away.
"""

import hashlib
import io
import logging
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from ray import train as ray_train
from ray.train import FailureConfig, RunConfig
from ray.train.collective import broadcast_from_rank_zero

from personlab.errors import UserError
from personlab.params import Section
from personlab.utils.storage import Folder, is_uri, join

log = logging.getLogger("personlab")

_STATE: Final = "state.pt"
_DIGEST: Final = "state.sha256"
_PREFIX: Final = "step-"
_RAY_LIST: Final = "checkpoint_manager_snapshot.json"  # of runs that older versions began
_KEPT: Final = 2  # checkpoints; the second in case the newest is damaged


@dataclass(frozen=True)
class Run:
    """A training run, resumed as long as its stage's parameters and inputs stay the same."""

    name: str
    folder: Folder  # checkpoints
    scratch: Path  # lock, in the project

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the run for the block, and delete its files when the block succeeds.

        Raises:
            UserError: another process holds the lock, or checkpoints cannot be written to the folder.
        """
        scratch = Folder(str(self.scratch))
        scratch.create()
        self.folder.create()
        with scratch.locked():
            self._sweep()
            yield
            self.folder.clear()
            shutil.rmtree(self.scratch, ignore_errors=True)

    def config(self, max_failures: int) -> RunConfig:
        """Ray Train's configuration of the run."""
        return RunConfig(
            name=self.name,
            storage_path=str(self.scratch.parent),  # of its own files
            failure_config=FailureConfig(max_failures=max_failures),
        )

    def finished(self, steps: int) -> dict[str, Any]:
        """Load the state after the last step, `steps`.

        Raises:
            UserError: the checkpoint of that step is damaged.
        """
        newest = self.newest(log.warning)
        state = self.load(newest) if newest else {"step": 0}
        if state["step"] != steps:
            raise UserError(
                f"{self.folder.place}: the last checkpoint is damaged; run the same command to resume"
            )
        return state

    def newest(self, warn: Callable[[str], None]) -> str | None:
        """Name of the newest intact checkpoint, if there is one; `warn` is called for every damaged one."""
        return next(self._intact(warn), None)

    def load(self, checkpoint: str, device: torch.device | str = "cpu") -> dict[str, Any]:
        """Load the state of a checkpoint, its tensors to `device`."""
        content = io.BytesIO(self.folder.read(f"{checkpoint}/{_STATE}"))
        state: dict[str, Any] = torch.load(content, map_location=device, weights_only=True)
        return state

    def write(self, name: str, state: dict[str, Any]) -> None:
        """Write a checkpoint, and delete the older ones but one.

        Raises:
            OSError, UserError: it cannot be written; nothing of it is left.
        """
        try:
            _write(state, Folder(join(self.folder.place, name)))
        except OSError:
            self.folder.clear(name)  # an incomplete checkpoint would only take space on a full disk
            raise
        complete = sorted(path.partition("/")[0] for path in self._files() if path.endswith(_DIGEST))
        for old in self._checkpoints():
            if old < complete[-_KEPT:][0]:
                self.folder.clear(old)

    def _intact(self, warn: Callable[[str], None]) -> Iterator[str]:
        """Names of the intact checkpoints, newest first."""
        for name in sorted(self._checkpoints(), reverse=True):
            if self._is_intact(name):
                yield name
            else:
                warn(f"checkpoint {name} is damaged or incomplete and is skipped")

    def _checkpoints(self) -> set[str]:
        return {path.partition("/")[0] for path in self._files()}

    def _files(self) -> list[str]:
        return [path for path in self.folder.files(recursive=True) if path.startswith(_PREFIX)]

    def _is_intact(self, name: str) -> bool:
        try:
            content = self.folder.read(f"{name}/{_STATE}")
            digest = self.folder.read(f"{name}/{_DIGEST}")
        except FileNotFoundError:
            return False
        return hashlib.sha256(content).hexdigest().encode() == digest

    def _sweep(self) -> None:
        """Delete all but the newest intact checkpoints, and Ray's list, which may name others."""
        self.folder.delete(_RAY_LIST)
        kept = list(self._intact(log.warning))[:_KEPT]
        for name in self._checkpoints() - set(kept):
            self.folder.clear(name)


def run_of(
    root: Path, stage: str, params: Iterable[Section], inputs: Iterable[Path], storage_path: str | None = None
) -> Run:
    """The run of a stage, named by a hash of everything that decides its result.

    Its files are outside DVC's outputs, which DVC deletes before a stage runs.

    Args:
        params: sections that decide the result.
        inputs: files, and folders of files, that decide the result; missing ones are ignored.
        storage_path: where checkpoints are kept instead of root/runs: a path (relative to `root`) or URI.
    """
    digest = hashlib.sha256()
    for section in params:
        digest.update(section.model_dump_json().encode())
    for path in inputs:
        files = sorted(f for f in path.rglob("*") if f.suffix != ".pyc") if path.is_dir() else [path]
        for file in files:
            if file.is_file():
                digest.update(file.name.encode())
                with file.open("rb") as stream:
                    digest.update(hashlib.file_digest(stream, "sha256").digest())
    name = f"{stage}-{digest.hexdigest()[:16]}"
    scratch = root.resolve() / "runs"
    place = storage_path or "runs"
    if not is_uri(place):
        place = str(root.resolve() / place)
    return Run(name, Folder(join(place, name)), scratch / name)


# --- in the workers ---------------------------------------------------------------------------------------


def is_rank_zero() -> bool:
    """Whether this worker has rank 0, the one that writes."""
    return int(ray_train.get_context().get_world_rank()) == 0


def resumed(run: Run, device: torch.device, warn: Callable[[str], None]) -> dict[str, Any] | None:
    """Load the state to resume from, the same on every worker; None for a new run.

    A collective operation: every worker must call it.
    """
    checkpoint = broadcast_from_rank_zero(run.newest(warn) if is_rank_zero() else None)
    return run.load(checkpoint, device) if checkpoint else None


def save(run: Run, step: int, state: Callable[[], dict[str, Any]]) -> None:
    """Save a checkpoint of the state of rank 0; the others wait for it at the next step's gradients."""
    if is_rank_zero():
        run.write(f"{_PREFIX}{step:09}-{uuid.uuid4().hex[:8]}", state())


def _write(state: dict[str, Any], folder: Folder) -> None:
    content = io.BytesIO()  # torch.save to a file hides that a disk is full
    torch.save(state, content)
    folder.write(_STATE, content.getvalue())
    folder.write(_DIGEST, hashlib.sha256(content.getbuffer()).hexdigest().encode())
