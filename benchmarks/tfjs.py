"""tfjs body-pix 2.2.1 under Node: installed into a cache folder, fed our fields, timed call by call."""

import json
import shutil
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from torch import Tensor
from torch.nn.functional import interpolate

from benchmarks.scenes import SIDE
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

    def load(self, fields: Fields, people: int, folder: Path) -> int:
        """Hand over the fields of one image; how many people tfjs finds in them."""
        _write(fields, people, folder)
        return int(self._ask(f"load {folder}"))

    def poses(self) -> float:
        """Milliseconds of one pose decode."""
        return float(self._ask("poses"))

    def masks(self, keypoints: int) -> float:
        """Milliseconds of all masks, matched by the first so many keypoints (5 is the library's choice)."""
        return float(self._ask(f"masks {keypoints}"))

    def _ask(self, line: str) -> str:
        assert self._node.stdin is not None
        assert self._node.stdout is not None
        self._node.stdin.write(line + "\n")
        self._node.stdin.flush()
        answer = self._node.stdout.readline()
        if not answer:
            raise TfjsError("node ended; its message is above")
        return answer


def _write(fields: Fields, people: int, folder: Path) -> None:
    """In the library's layout: H x W x C, offset channels all y, then all x."""
    edges = len(TREE)
    arrays = {
        "heatmap": fields.heatmap[0].permute(1, 2, 0),
        "short": _y_then_x(fields.short[0]),
        "forward": _y_then_x(fields.mid[0, :edges]),
        "backward": _y_then_x(fields.mid[0, edges:]),
        "long": _y_then_x(fields.long[0]),
        # It thresholds p_S at full resolution, outside of what is timed.
        "seg": _full_size(fields.seg),
    }
    for name, tensor in arrays.items():
        np.ascontiguousarray(tensor.numpy(), dtype="<f4").tofile(folder / f"{name}.f32")
    about = {"stride": fields.stride, "people": people, "side": SIDE, "cells": fields.seg.shape[-1]}
    (folder / "fields.json").write_text(json.dumps(about))


def _y_then_x(offsets: Tensor) -> Tensor:
    return offsets.flip(1).transpose(0, 1).flatten(0, 1).permute(1, 2, 0)


def _full_size(seg: Tensor) -> Tensor:
    return interpolate(seg[:, None], size=(SIDE, SIDE), mode="bilinear", align_corners=True)[0, 0]
