"""Read TensorFlow.js graph models: a JSON file (graph and list of weights), and the shards beside it.

Nothing in the files is executed. Shards are looked for beside the JSON only, and their sizes are checked
before they are read. Quantised weights are dequantised as TensorFlow.js does. Models on the web are
downloaded first.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Final, Literal, TypeVar
from urllib.parse import quote, urljoin, urlsplit

import numpy as np
from pydantic import AliasPath, BaseModel, Field, FiniteFloat, PositiveInt, ValidationError

from personlab.data import download as http
from personlab.errors import UserError, first
from personlab.people import FloatArray

_MAX_JSON: Final = 1 << 26  # bytes; BodyPix has 120 kB
_MAX_WEIGHTS: Final = 1 << 30  # bytes; BodyPix ResNet-50 has 94 MB in float32

T = TypeVar("T")

_JSON_NAME: Final = re.compile(r"[\w-]{1,100}\.json")
_SCOPE: Final = re.compile(r"^(MobilenetV1/)+|^(resnet_v1_50/)+")  # the converter repeats it in some names


class _Affine(BaseModel):
    """value = scale * stored + min"""

    dtype: Literal["uint8", "uint16"]
    scale: FiniteFloat
    min: FiniteFloat


class _Half(BaseModel):
    """value = stored"""

    dtype: Literal["float16"]


class _Weight(BaseModel):
    name: str
    shape: tuple[PositiveInt, ...]
    dtype: Literal["float32", "int32"]
    quantization: Annotated[_Affine | _Half, Field(discriminator="dtype")] | None = None

    @property
    def stored(self) -> np.dtype[Any]:
        """The type in the shards."""
        return np.dtype(self.quantization.dtype if self.quantization else self.dtype).newbyteorder("<")

    @property
    def size(self) -> int:
        """Bytes in the shards."""
        return math.prod(self.shape) * self.stored.itemsize

    def array(self, content: bytes) -> FloatArray:
        stored = np.frombuffer(content, self.stored).reshape(self.shape)
        if isinstance(self.quantization, _Affine):
            stored = stored * self.quantization.scale + self.quantization.min
        return stored.astype(np.float32)


class _Group(BaseModel):
    """Weights that are stored one after the other, in shards that may divide a weight."""

    paths: tuple[str, ...]
    weights: tuple[_Weight, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(weight.size for weight in self.weights)


class _Node(BaseModel):
    op: str
    input: tuple[str, ...] = ()
    strides: tuple[int, ...] = Field((), validation_alias=AliasPath("attr", "strides", "list", "i"))
    dilations: tuple[int, ...] = Field((), validation_alias=AliasPath("attr", "dilations", "list", "i"))

    @property
    def is_convolution(self) -> bool:
        is_conv = self.op in ("Conv2D", "DepthwiseConv2dNative") and len(self.input) == 2
        return is_conv and len(self.strides) == len(self.dilations) == 4


class _Topology(BaseModel):
    node: tuple[_Node, ...]


class _Model(BaseModel):
    """The JSON file."""

    modelTopology: _Topology  # noqa: N815 (TensorFlow.js' name)
    weightsManifest: tuple[_Group, ...]  # noqa: N815

    @property
    def weights(self) -> list[_Weight]:
        return [weight for group in self.weightsManifest for weight in group.weights]


@dataclass(frozen=True)
class GraphModel:
    """The weights of a graph model, and the convolutions that use them. Names lack the network's scope."""

    source: str  # file or address, for messages
    quantisation: str  # float32 or the types that weights are stored as
    arrays: dict[str, FloatArray]  # H x W x inputs x outputs; depthwise H x W x channels x 1; biases
    convolutions: dict[str, tuple[int, int]]  # name of the weights: (stride, dilation)


def read(source: str, downloads: Path) -> GraphModel:
    """Read a graph model.

    Args:
        source: path or http(s) address of its JSON file.
        downloads: folder that the files of an address are downloaded to, and kept in.

    Raises:
        UserError: the file or a shard is missing, unreadable or of the wrong size, is not a TensorFlow.js
            graph model, names files elsewhere, or contains NaN or infinity.
    """
    path = download(source, downloads) if "://" in source else Path(source)
    model = _parse(path)
    arrays = {name: array for group in model.weightsManifest for name, array in _arrays(group, path)}
    bad = [name for name, array in arrays.items() if not np.isfinite(array).all()]
    if bad:
        raise UserError(f"{path}: weights that are NaN or infinite: {first(bad)}")
    # Dilations are [d, d, 1, 1] in the published files and [1, d, d, 1] in newer ones: index 1 fits both.
    convolutions = {
        _SCOPE.sub("", node.input[1]): (node.strides[1], node.dilations[1])
        for node in model.modelTopology.node
        if node.is_convolution
    }
    quantised = {weight.quantization.dtype for weight in model.weights if weight.quantization}
    return GraphModel(source, ", ".join(sorted(quantised)) or "float32", arrays, convolutions)


def download(url: str, folder: Path) -> Path:
    """Download the JSON file and its shards, unless the folder has them; return the path of the JSON file.

    Raises:
        UserError: see `data.download.download`; or the JSON file is not a graph model's, or its shards do not
            have the size that it lists.
    """
    if not http.is_address(url):
        raise UserError(f"{url}: not an http(s) address")
    name = PurePosixPath(urlsplit(url).path).name
    path = folder / (name if _JSON_NAME.fullmatch(name) else "model.json")
    model = _fetch({path: url}, partial(_parse, path), most=_MAX_JSON)
    for group in model.weightsManifest:
        shards = {folder / name: urljoin(url, quote(name)) for name in group.paths}
        size = group.size if len(shards) == 1 else None
        _fetch(shards, partial(_check_size, group, path), size=size, most=group.size)
    return path


def _fetch(addresses: Mapping[Path, str], check: Callable[[], T], *, size: int | None = None, most: int) -> T:
    """Download the files that are missing, then check all; what was downloaded is deleted if it is wrong."""
    missing = [file for file in addresses if not file.exists()]
    for file in missing:
        http.download(addresses[file], file, size=size, most=most)
    try:
        return check()
    except UserError as error:
        if not missing:
            raise
        for file in missing:
            file.unlink()
        raise UserError(
            f"{addresses[missing[0]]}: {error}; deleted. Run again; if that does not help, check the address"
        ) from None


def _parse(path: Path) -> _Model:
    try:
        if path.stat().st_size > _MAX_JSON:
            raise UserError(f"{path}: too large for the JSON of a TensorFlow.js model; name that file")
        model = _Model.model_validate(json.loads(path.read_bytes()))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise UserError(f"{path}: a folder; name the model-stride*.json in it") from None
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"])) or "the top level"
        raise UserError(f"{path}: not a TensorFlow.js graph model: {where}: {problem['msg']}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON: {error}") from None
    _check(model, path)
    return model


def _check(model: _Model, path: Path) -> None:
    for group in model.weightsManifest:
        for name in group.paths:
            if not _is_file_name(name) or name == path.name:
                raise UserError(f"{path}: shard {name!r} is not a file beside it; nothing was read")
    total = sum(group.size for group in model.weightsManifest)
    if total > _MAX_WEIGHTS:
        raise UserError(f"{path}: lists {total} bytes of weights, at most {_MAX_WEIGHTS} are read")
    counts = Counter(_SCOPE.sub("", weight.name) for weight in model.weights)
    duplicates = [name for name, count in counts.items() if count > 1]
    if duplicates:
        raise UserError(f"{path}: duplicate weights: {first(duplicates)}")


def _is_file_name(name: str) -> bool:
    """Whether it is a plain file name, which cannot lead to another folder."""
    return PurePosixPath(name).name == name not in ("", "..") and name.isprintable() and "\\" not in name


def _arrays(group: _Group, path: Path) -> Iterator[tuple[str, FloatArray]]:
    _check_size(group, path)
    content = b"".join(path.with_name(name).read_bytes() for name in group.paths)
    start = 0
    for weight in group.weights:
        yield _SCOPE.sub("", weight.name), weight.array(content[start : start + weight.size])
        start += weight.size


def _check_size(group: _Group, path: Path) -> None:
    shards = [path.with_name(name) for name in group.paths]
    absent = [shard.name for shard in shards if not shard.is_file()]
    if absent:
        raise UserError(f"{path}: missing beside it: {first(absent)}")
    size = sum(shard.stat().st_size for shard in shards)
    if size != group.size:
        kind = "too short" if size < group.size else "too long"
        raise UserError(
            f"{path}: {first([shard.name for shard in shards])}: {size} bytes, {kind} for the listed weights "
            f"of {group.size} bytes: incomplete, or of another model"
        )
