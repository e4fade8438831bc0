"""Networks by name: those that Google published for TensorFlow.js, and the repository's own.

A published network is downloaded once, to a folder of the cache, and converted to a checkpoint beside it:

    ~/.cache/personlab/bodypix-mobilenet-075/          model-stride16.json, group1-shard1of2.bin, ...
    ~/.cache/personlab/bodypix-mobilenet-075.safetensors, .json

Files that were put into the folder by other means are used as if they had been downloaded. XDG_CACHE_HOME
replaces ~/.cache. `sample`, trained on rendered people (docs/training.md), is part of the repository.
"""

import hashlib
import logging
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

from personlab.errors import UserError
from personlab.model import checkpoint
from personlab.utils.files import cache, file_lock
from personlab.weights import bodypix, tfjs

log = logging.getLogger("personlab")

GOOGLE: Final = "https://storage.googleapis.com/tfjs-models/savedmodel"


@dataclass(frozen=True)
class Network:
    """A published network.

    Attributes:
        path: of its folder, below GOOGLE.
        size: bytes of its float32 weights, which follow from its architecture.
        keypoint_ap: see MEASURED; None if not measured.
        mask_ap: likewise.
    """

    name: str
    path: str
    size: int
    keypoint_ap: float | None = None
    mask_ap: float | None = None

    @property
    def url(self) -> str:
        """The file of stride 16, which all networks have; the weights are the same at every stride."""
        return f"{GOOGLE}/{self.path}/model-stride16.json"

    @property
    def masks(self) -> bool:
        """Whether it finds masks; otherwise poses only."""
        return self.name.startswith("bodypix")

    @property
    def downloads(self) -> Path:
        return cache() / self.name

    @property
    def checkpoint(self) -> Path:
        return cache() / f"{self.name}.safetensors"


# How the APs were measured: docs/notes/coco-mini.md.
MEASURED: Final = "79 images of COCO val2017, longest side 801 pixels, output stride 16"

NETWORKS: Final = (
    Network("bodypix-mobilenet-050", "bodypix/mobilenet/float/050", 2_419_840),
    Network("bodypix-mobilenet-075", "bodypix/mobilenet/float/075", 5_197_568, 0.279, 0.164),
    Network("bodypix-mobilenet-100", "bodypix/mobilenet/float/100", 13_694_336),
    Network("bodypix-resnet50", "bodypix/resnet50/float", 95_745_472),
    Network("posenet-mobilenet-050", "posenet/mobilenet/float/050", 2_309_836),
    Network("posenet-mobilenet-075", "posenet/mobilenet/float/075", 5_032_780),
    Network("posenet-mobilenet-100", "posenet/mobilenet/float/100", 13_255_628),
    Network("posenet-resnet50", "posenet/resnet50/float", 94_868_492),
)
BY_NAME: Final = {network.name: network for network in NETWORKS}

SAMPLE: Final = "sample"
SAMPLE_CHECKPOINT: Final = Path(__file__).parents[2] / "models/pretrained/sample.safetensors"
NAMES: Final = (*BY_NAME, SAMPLE)


def downloads(url: str) -> Path:
    """The folder of the cache for the files of an address."""
    known = (network.downloads for network in NETWORKS if network.url == url)
    return next(known, cache() / hashlib.sha256(url.encode()).hexdigest()[:16])


def find(weights: Path) -> Path:
    """The checkpoint that a path or the name of a network stands for; see `get`.

    Raises:
        UserError: as `get`; or there is no such file, and no network of that name.
    """
    if weights.is_file() or weights.suffix:
        return weights
    if str(weights) in NAMES:
        return get(str(weights))
    raise UserError(f"{weights}: no such file, and no network has that name; there are {', '.join(NAMES)}")


def get(name: str) -> Path:
    """The checkpoint of the network of that name; published ones are downloaded and converted once.

    Raises:
        UserError: there is no such network; it is not in this installation; it cannot be downloaded, which
            names the files that are needed and their place; it is not what it should be; or the cache cannot
            be written to.
    """
    if name == SAMPLE:
        return _of_repository()
    if name not in BY_NAME:
        raise UserError(f"no network is named {name}; there are {', '.join(NAMES)}")
    network = BY_NAME[name]
    path = network.checkpoint
    try:
        if not _is_intact(path):
            with file_lock(cache() / f".{network.name}.lock"):
                if not _is_intact(path):  # another process may have made it meanwhile
                    _download(network)
                    bodypix.import_weights(network.url, path, downloads=network.downloads)
    except OSError as error:
        raise UserError(
            f"{error.filename or cache()}: cannot be written ({error.strerror}); set XDG_CACHE_HOME to a "
            "folder that can"
        ) from None
    return path


def _of_repository() -> Path:
    if not SAMPLE_CHECKPOINT.exists():
        raise UserError(
            f"{SAMPLE_CHECKPOINT}: no such file; only a clone of the repository has the network {SAMPLE}"
        )
    return SAMPLE_CHECKPOINT


def _is_intact(path: Path) -> bool:
    return path.exists() and _can_be_loaded(path, path.stat().st_mtime_ns)


@lru_cache
def _can_be_loaded(path: Path, modified: int) -> bool:
    """Whether the file as it was modified last can be loaded: a server asks for it again and again."""
    try:
        checkpoint.load(path)
    except UserError:
        return False
    return True


def _download(network: Network) -> None:
    log.info(
        "%s: %.1f MB from %s, %s; kept in %s",
        *(network.name, network.size / 1e6, network.url, bodypix.LICENCE, network.downloads),
    )
    try:
        tfjs.download(network.url, network.downloads)
    except UserError as error:
        raise UserError(
            f"{error}\n  If this machine cannot reach it: on another one, get {network.url} and the .bin "
            f"files beside it that it lists, put them into {network.downloads}, and run again"
        ) from None
