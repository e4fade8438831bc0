"""Training runs on disk: their names, their checkpoints, and how they resume.

A checkpoint is a folder with the state and its SHA-256, so that one damaged by a kill or a full disk is
recognised, skipped and reported. A run resumes from these folders alone. Ray's own list of them serves only
to delete old ones, because Ray does not start if the list is damaged.
"""

import hashlib
import io
import logging
import posixpath
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from ray import train as ray_train
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig
from ray.train.collective import broadcast_from_rank_zero

from personlab.errors import UserError
from personlab.params import Section
from personlab.utils.storage import Folder, locate

log = logging.getLogger("personlab")

_STATE: Final = "state.pt"
_DIGEST: Final = "state.sha256"
_PREFIX: Final = "step-"
_RAY_LIST: Final = "checkpoint_manager_snapshot.json"
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
        system, path = locate(self.folder.place)
        return RunConfig(
            name=self.name,
            storage_path=posixpath.dirname(path),
            storage_filesystem=system,
            checkpoint_config=CheckpointConfig(num_to_keep=_KEPT),
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

    def _intact(self, warn: Callable[[str], None]) -> Iterator[str]:
        """Names of the intact checkpoints, newest first."""
        for name in sorted(self._checkpoints(), reverse=True):
            if self._is_intact(name):
                yield name
            else:
                warn(f"checkpoint {name} is damaged or incomplete and is skipped")

    def _checkpoints(self) -> set[str]:
        files = self.folder.files(recursive=True)
        return {name.partition("/")[0] for name in files if name.startswith(_PREFIX)}

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
    if "://" not in place:
        place = str(root.resolve() / place)
    return Run(name, Folder(f"{place.rstrip('/')}/{name}"), scratch / name)


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
    """Save a checkpoint of the state of rank 0.

    A collective operation: every worker must call it.
    """
    name = f"{_PREFIX}{step:09}-{uuid.uuid4().hex[:8]}"
    with tempfile.TemporaryDirectory() as folder:
        if is_rank_zero():
            _write(state(), Path(folder))
        kept = Checkpoint.from_directory(folder) if is_rank_zero() else None
        try:
            ray_train.report({"step": step}, checkpoint=kept, checkpoint_dir_name=name)
        except OSError:
            run.folder.clear(name)  # an incomplete checkpoint would only take space on a full disk
            raise


def _write(state: dict[str, Any], folder: Path) -> None:
    content = io.BytesIO()  # torch.save to a file hides that a disk is full
    torch.save(state, content)
    (folder / _STATE).write_bytes(content.getbuffer())
    (folder / _DIGEST).write_text(hashlib.sha256(content.getbuffer()).hexdigest())
