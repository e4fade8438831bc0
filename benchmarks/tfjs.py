"""tfjs body-pix 2.2.1 under Node: installed into a cache folder, fed our fields, timed call by call."""

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from personlab.codec.fields import Fields
from personlab.skeleton import TREE

PACKAGES = (
    "@tensorflow-models/body-pix@2.2.1",
    "@tensorflow/tfjs-core@4.22.0",
    "@tensorflow/tfjs-backend-cpu@4.22.0",
    "@tensorflow/tfjs-converter@4.22.0",
)


class TfjsError(Exception):
    """Why there is no tfjs to compare with."""


def install(folder: Path) -> Path:
    """The folder of node modules, filled by npm where it is not yet.

    Raises:
        TfjsError: there is no Node, or npm cannot install.
    """
    modules = folder / "node_modules"
    if not (shutil.which("node") and shutil.which("npm")):
        raise TfjsError("node and npm are not installed")
    if not (modules / "@tensorflow-models" / "body-pix" / "dist").is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        # Its peer, the WebGL backend, is of no use here; scripts of packages are not run.
        options = ["--legacy-peer-deps", "--ignore-scripts", "--no-package-lock", "--no-audit", "--no-fund"]
        done = subprocess.run(
            ["npm", "install", *options, *PACKAGES], cwd=folder, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise TfjsError(f"npm could not install body-pix: {done.stderr.strip()[-300:]}")
    return modules


@dataclass(frozen=True)
class Scene:
    """What tfjs is asked to decode: the fields of one image, and what it may do with them.

    height, width: the image's; scale: input pixels per image pixel. score_threshold: of the heatmap where a
    pose starts; by default the library's own, 0.4. person: p_S from which on a pixel is a person's; by
    default the library's own, 0.7.
    """

    fields: Fields
    height: int
    width: int
    scale: float
    people: int
    score_threshold: float = 0.4
    person: float = 0.7


@dataclass(frozen=True)
class Pose:
    """A person that tfjs has found, in image pixels."""

    keypoints: npt.NDArray[np.float32]  # K x 2
    keypoint_scores: npt.NDArray[np.float32]  # K
    score: float


class Tfjs:
    """A running decoder; a context manager."""

    def __init__(self, modules: Path) -> None:
        script = Path(__file__).with_name("tfjs.cjs")
        self._node = subprocess.Popen(
            ["node", str(script), str(modules)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._node.communicate()

    def load(self, scene: Scene, folder: Path) -> list[Pose]:
        """Hand over a scene, through files in a folder; the people found, in the order they were found."""
        _write(scene, folder)
        self._ask(f"load {folder}")
        return [_pose(found) for found in json.loads((folder / "poses.json").read_text())]

    def poses(self) -> float:
        """Milliseconds of one pose decode."""
        return float(self._ask("poses"))

    def masks(self, keypoints: int) -> float:
        """Milliseconds of all masks, matched by the first so many keypoints (5 is the library's choice)."""
        return float(self._ask(f"masks {keypoints}"))

    def instances(
        self, scene: Scene, folder: Path, *, keypoints: int, min_score: float
    ) -> npt.NDArray[np.bool_]:
        """The masks of the scene just loaded, N x height x width, of the poses with at least that score."""
        self._ask(f"instances {keypoints} {min_score}")
        masks = np.fromfile(folder / "masks.u8", dtype=np.uint8).astype(bool)
        return masks.reshape(-1, scene.height, scene.width)

    def _ask(self, line: str) -> str:
        assert self._node.stdin is not None
        assert self._node.stdout is not None
        self._node.stdin.write(line + "\n")
        self._node.stdin.flush()
        answer = self._node.stdout.readline()
        if not answer:
            raise TfjsError("node ended; its message is above")
        return answer


def _pose(found: dict[str, Any]) -> Pose:
    places = [(point["position"]["x"], point["position"]["y"]) for point in found["keypoints"]]
    scores = [point["score"] for point in found["keypoints"]]
    return Pose(np.array(places, np.float32), np.array(scores, np.float32), float(found["score"]))


def _write(scene: Scene, folder: Path) -> None:
    """In the library's layout: H x W x C, offset channels all y, then all x."""
    fields, edges = scene.fields, len(TREE)
    arrays = {
        "heatmap": fields.heatmap[0].permute(1, 2, 0),
        "short": _y_then_x(fields.short[0]),
        "forward": _y_then_x(fields.mid[0, :edges]),
        "backward": _y_then_x(fields.mid[0, edges:]),
        # The library adds these to pixels of the image; it means input pixels only where the two agree.
        "long": _y_then_x(fields.long[0]) / scene.scale,
        # It thresholds p_S at full resolution, outside of what is timed.
        "seg": _full_size(fields, scene),
    }
    for name, tensor in arrays.items():
        np.ascontiguousarray(tensor.numpy(), dtype="<f4").tofile(folder / f"{name}.f32")
    rows, columns = fields.seg.shape[1:]
    about = {
        "stride": fields.stride,
        "rows": rows,
        "columns": columns,
        "height": scene.height,
        "width": scene.width,
        "scale": scene.scale,
        "people": scene.people,
        "scoreThreshold": scene.score_threshold,
        "person": scene.person,
    }
    (folder / "fields.json").write_text(json.dumps(about))


def _y_then_x(offsets: Tensor) -> Tensor:
    return offsets.flip(1).transpose(0, 1).flatten(0, 1).permute(1, 2, 0)


def _full_size(fields: Fields, scene: Scene) -> Tensor:
    """p_S at every pixel of the image."""
    rows, columns = fields.seg.shape[1:]
    y = torch.arange(scene.height) * (2 * scene.scale / (fields.stride * (rows - 1))) - 1
    x = torch.arange(scene.width) * (2 * scene.scale / (fields.stride * (columns - 1))) - 1
    grid = torch.stack((x.expand(len(y), -1), y[:, None].expand(-1, len(x))), -1)
    return grid_sample(fields.seg[:, None], grid[None], padding_mode="border", align_corners=True)[0, 0]
