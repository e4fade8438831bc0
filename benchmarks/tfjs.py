"""tfjs body-pix 2.2.1 under Node: install it into a cache folder, decode our fields and time its calls."""

import json
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from personlab.codec.fields import Fields
from personlab.codec.score import Poses
from personlab.skeleton import COCO_PERSON

PACKAGES = (
    "@tensorflow-models/body-pix@2.2.1",
    "@tensorflow/tfjs-core@4.22.0",
    "@tensorflow/tfjs-backend-cpu@4.22.0",
    "@tensorflow/tfjs-converter@4.22.0",
)


class TfjsError(Exception):
    """tfjs is not available."""


def install(folder: Path) -> Path:
    """Install body-pix with npm, unless it is installed; return the folder of node modules.

    Raises:
        TfjsError: there is no Node, or npm cannot install.
    """
    modules = folder / "node_modules"
    if not (shutil.which("node") and shutil.which("npm")):
        raise TfjsError("node and npm are not installed")
    if not (modules / "@tensorflow-models" / "body-pix" / "dist").is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        # without its peer, the WebGL backend; scripts of packages are not run
        options = ["--legacy-peer-deps", "--ignore-scripts", "--no-package-lock", "--no-audit", "--no-fund"]
        done = subprocess.run(
            ["npm", "install", *options, *PACKAGES], cwd=folder, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise TfjsError(f"npm could not install body-pix: {done.stderr.strip()[-300:]}")
    return modules


@dataclass(frozen=True)
class Scene:
    """The fields of one image and the parameters to decode them with; the defaults are the library's."""

    fields: Fields
    height: int  # of the image
    width: int
    scale: float  # input pixels per image pixel
    people: int  # at most
    score_threshold: float = 0.4  # least heatmap value of a seed
    person: float = 0.7  # least p_S of a person's pixel


class Tfjs:
    """A Node process that decodes; a context manager."""

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

    def load(self, scene: Scene, folder: Path) -> Poses:
        """Load a scene, through files in a folder, and decode it: poses in image pixels."""
        _write(scene, folder)
        self._ask(f"load {folder}")
        return _poses(json.loads((folder / "poses.json").read_text()))

    def poses(self) -> float:
        """Milliseconds of one pose decode."""
        return float(self._ask("poses"))

    def masks(self, keypoints: int) -> float:
        """Milliseconds of all masks; pixels are assigned by the first `keypoints` keypoints (default: 5)."""
        return float(self._ask(f"masks {keypoints}"))

    def instances(self, scene: Scene, folder: Path, *, keypoints: int, min_score: float) -> Tensor:
        """Masks of the loaded scene, N x height x width, of the poses with at least `min_score`."""
        self._ask(f"instances {keypoints} {min_score}")
        masks = np.fromfile(folder / "masks.u8", dtype=np.uint8).astype(bool)
        return torch.from_numpy(masks.reshape(-1, scene.height, scene.width))

    def _ask(self, line: str) -> str:
        assert self._node.stdin is not None
        assert self._node.stdout is not None
        self._node.stdin.write(line + "\n")
        self._node.stdin.flush()
        answer = self._node.stdout.readline()
        if not answer:
            raise TfjsError("node ended; its message is above")
        return answer


def _poses(found: list[dict[str, Any]]) -> Poses:
    points, count = [person["keypoints"] for person in found], len(COCO_PERSON.keypoints)
    places = [[(p["position"]["x"], p["position"]["y"]) for p in person] for person in points]
    scores = torch.tensor([[p["score"] for p in person] for person in points]).view(-1, count)
    poses = Poses.of(torch.tensor(places).view(-1, count, 2), scores, scores)
    own = torch.tensor([person["score"] for person in found], dtype=torch.float64)
    return replace(poses, scores=own)


def _write(scene: Scene, folder: Path) -> None:
    """Write the fields in the library's layout: H x W x C, offset channels all y, then all x."""
    fields, edges = scene.fields, len(COCO_PERSON.tree)
    size = {"height": scene.height, "width": scene.width}
    arrays = {
        "heatmap": fields.heatmap[0].permute(1, 2, 0),
        "short": _y_then_x(fields.short[0]),
        "forward": _y_then_x(fields.mid[0, :edges]),
        "backward": _y_then_x(fields.mid[0, edges:]),
        # the library adds these to image pixels
        "long": _y_then_x(fields.long[0]) / scene.scale,
        # the library thresholds p_S at full resolution, which is not timed
        "seg": at_pixels(
            fields.seg, step=scene.scale / fields.stride, height=scene.height, width=scene.width
        ),
    }
    for name, tensor in arrays.items():
        np.ascontiguousarray(tensor.numpy(), dtype="<f4").tofile(folder / f"{name}.f32")
    rows, columns = fields.seg.shape[1:]
    about = {
        "stride": fields.stride,
        "rows": rows,
        "columns": columns,
        **size,
        "scale": scene.scale,
        "people": scene.people,
        "scoreThreshold": scene.score_threshold,
        "person": scene.person,
    }
    (folder / "fields.json").write_text(json.dumps(about))


def _y_then_x(offsets: Tensor) -> Tensor:
    return offsets.flip(1).transpose(0, 1).flatten(0, 1).permute(1, 2, 0)


def at_pixels(cells: Tensor, *, step: float, height: int, width: int) -> Tensor:
    """N x H x W values of cells at every pixel, `step` cells apart: N x height x width."""
    rows, columns = cells.shape[1:]
    y = torch.arange(height) * (2 * step / (rows - 1)) - 1
    x = torch.arange(width) * (2 * step / (columns - 1)) - 1
    grid = torch.stack((x.expand(height, width), y[:, None].expand(height, width)), -1)
    return grid_sample(cells[None], grid[None], padding_mode="border", align_corners=True)[0]
