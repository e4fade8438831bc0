"""A training run on disk: what it is called, what it saves, and what it goes on from.

The checkpoints themselves are all that a run goes on from. Each is a folder with the state and its SHA-256:
one that a kill, a full disk or a bad one has damaged is known, passed over and reported. Ray keeps a list of
them as well, but here only to delete old ones: the list can be torn like any file, and Ray then refuses to
start.
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
_RAYS_LIST: Final = "checkpoint_manager_snapshot.json"
_KEPT: Final = 2  # checkpoints: a good one, should the newest be damaged


@dataclass(frozen=True)
class Run:
    """A training run that the same stage goes on with while its parameters and inputs stay the same."""

    name: str
    folder: Folder  # of its checkpoints
    scratch: Path  # in the project

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes out of the run for the time of the block, and delete it once that succeeds.

        Raises:
            UserError: another process has it open; its checkpoints could not be written.
        """
        here = Folder(str(self.scratch))
        here.create()
        self.folder.create()
        with here.locked():
            self._sweep()
            yield
            self.folder.clear()
            shutil.rmtree(self.scratch, ignore_errors=True)

    def config(self, max_failures: int) -> RunConfig:
        """The run as Ray Train knows it."""
        system, path = locate(self.folder.place)
        return RunConfig(
            name=self.name,
            storage_path=posixpath.dirname(path),
            storage_filesystem=system,
            checkpoint_config=CheckpointConfig(num_to_keep=_KEPT),
            failure_config=FailureConfig(max_failures=max_failures),
        )

    def finished(self, steps: int) -> dict[str, Any]:
        """The state after the last step.

        Raises:
            UserError: its checkpoint is damaged.
        """
        newest = self.newest(log.warning)
        state = self.load(newest) if newest else {"step": 0}
        if state["step"] != steps:
            raise UserError(f"{self.folder.place}: the last checkpoint is damaged; the same command goes on")
        return state

    def newest(self, say: Callable[[str], None]) -> str | None:
        """The newest checkpoint that is whole, if there is one; `say` is told of those that are not."""
        return next(self._whole(say), None)

    def load(self, checkpoint: str, device: torch.device | str = "cpu") -> dict[str, Any]:
        """What `keep` was given; what was on another device is on `device`."""
        content = io.BytesIO(self.folder.read(f"{checkpoint}/{_STATE}"))
        state: dict[str, Any] = torch.load(content, map_location=device, weights_only=True)
        return state

    def _whole(self, say: Callable[[str], None]) -> Iterator[str]:
        """Newest first."""
        for name in sorted(self._checkpoints(), reverse=True):
            if self._is_whole(name):
                yield name
            else:
                say(f"checkpoint {name} is damaged or was never finished; it is passed over")

    def _checkpoints(self) -> set[str]:
        files = self.folder.files(recursive=True)
        return {name.partition("/")[0] for name in files if name.startswith(_PREFIX)}

    def _is_whole(self, name: str) -> bool:
        try:
            content = self.folder.read(f"{name}/{_STATE}")
            stated = self.folder.read(f"{name}/{_DIGEST}")
        except FileNotFoundError:
            return False
        return hashlib.sha256(content).hexdigest().encode() == stated

    def _sweep(self) -> None:
        """Leave the newest whole checkpoints only. Ray, which begins anew, has no list of them any more."""
        self.folder.delete(_RAYS_LIST)
        whole = list(self._whole(log.warning))[:_KEPT]
        for name in self._checkpoints() - set(whole):
            self.folder.clear(name)


def run_of(
    root: Path,
    stage: str,
    params: Iterable[Section],
    inputs: Iterable[Path],
    storage_path: str | None = None,
) -> Run:
    """The run of a stage, named by a hash of its parameters, but for those that change nothing, and of the
    contents of `inputs` (files, or folders of files; what does not exist is left out): it is never resumed
    with others.

    It is kept outside DVC's outputs, since DVC deletes those before a stage runs.

    storage_path: path (relative to `root`) or URI to keep checkpoints in, instead of root/runs.
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
    """One worker writes for all."""
    return int(ray_train.get_context().get_world_rank()) == 0


def resumed(run: Run, device: torch.device, say: Callable[[str], None]) -> dict[str, Any] | None:
    """The state to go on from, the same for every worker; none at the beginning. All have to call this."""
    checkpoint = broadcast_from_rank_zero(run.newest(say) if is_rank_zero() else None)
    return run.load(checkpoint, device) if checkpoint else None


def save(run: Run, step: int, state: Callable[[], dict[str, Any]]) -> None:
    """Have Ray keep a checkpoint. All workers have to call this; it is one of them that saves its state."""
    name = f"{_PREFIX}{step:09}-{uuid.uuid4().hex[:8]}"
    with tempfile.TemporaryDirectory() as folder:
        if is_rank_zero():
            _write(state(), Path(folder))
        kept = Checkpoint.from_directory(folder) if is_rank_zero() else None
        try:
            ray_train.report({"step": step}, checkpoint=kept, checkpoint_dir_name=name)
        except OSError:
            run.folder.clear(name)  # half of it would fill the disk for nothing
            raise


def _write(state: dict[str, Any], folder: Path) -> None:
    content = io.BytesIO()  # torch would not say of a full disk that it is full
    torch.save(state, content)
    (folder / _STATE).write_bytes(content.getbuffer())
    (folder / _DIGEST).write_text(hashlib.sha256(content.getbuffer()).hexdigest())
