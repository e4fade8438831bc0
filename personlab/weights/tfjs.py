"""Read TensorFlow.js graph models: a JSON file (graph and list of weights) and the shards beside it.

Nothing in the file is executed. Shards are only looked for beside the JSON, sizes are checked before they are
read, and quantised weights become what TensorFlow.js makes of them. From the web, files are downloaded to a
cache first, resuming what was interrupted.
"""

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal
from urllib.parse import quote, urljoin, urlsplit

import numpy as np
from pydantic import BaseModel, FiniteFloat, PositiveInt, ValidationError

from personlab.data.download import download
from personlab.errors import UserError
from personlab.people import FloatArray

_MOST_JSON: Final = 1 << 26  # bytes; BodyPix has 120 kB
_MOST_WEIGHTS: Final = 1 << 30  # bytes; BodyPix ResNet-50 has 94 MB in float32

# The converter repeats the network's name in some of its variables.
_SCOPE: Final = re.compile(r"^(MobilenetV1/)+|^(resnet_v1_50/)+")


class _Quantisation(BaseModel):
    dtype: Literal["uint8", "uint16"]
    scale: FiniteFloat
    min: FiniteFloat


class _Weight(BaseModel):
    name: str
    shape: tuple[PositiveInt, ...]
    dtype: Literal["float32", "int32"]
    quantization: _Quantisation | None = None

    @property
    def stored(self) -> np.dtype[Any]:
        return np.dtype(self.quantization.dtype if self.quantization else self.dtype).newbyteorder("<")

    @property
    def size(self) -> int:
        """Bytes in the shards."""
        return math.prod(self.shape) * self.stored.itemsize

    def array(self, content: bytes) -> FloatArray:
        raw = np.frombuffer(content, self.stored).reshape(self.shape)
        if self.quantization:
            raw = raw * self.quantization.scale + self.quantization.min
        return raw.astype(np.float32)


class _Group(BaseModel):
    paths: tuple[str, ...]
    weights: tuple[_Weight, ...]

    @property
    def size(self) -> int:
        return sum(weight.size for weight in self.weights)


class _Numbers(BaseModel):
    class _List(BaseModel):
        i: tuple[int, ...] = ()

    list: _List = _List()


class _Attributes(BaseModel):
    strides: _Numbers = _Numbers()
    dilations: _Numbers = _Numbers()


class _Node(BaseModel):
    op: str
    input: tuple[str, ...] = ()
    attr: _Attributes = _Attributes()


class _Topology(BaseModel):
    node: tuple[_Node, ...]


class _Model(BaseModel):
    modelTopology: _Topology  # noqa: N815 (TensorFlow.js' name)
    weightsManifest: tuple[_Group, ...]  # noqa: N815

    @property
    def quantisation(self) -> str:
        kinds = {w.quantization.dtype for g in self.weightsManifest for w in g.weights if w.quantization}
        return ", ".join(sorted(kinds)) or "float32"


@dataclass(frozen=True)
class GraphModel:
    """The weights of a graph model under their names without the network's own, and how they are used.

    Convolution weights are height x width x inputs x outputs, depthwise ones height x width x channels x 1.
    """

    source: str  # for messages: file or address
    quantisation: str  # what the weights were stored as
    arrays: dict[str, FloatArray]
    convolutions: dict[str, tuple[int, int]]  # (stride, dilation) of the convolution by these weights


def read(source: str, cache: Path) -> GraphModel:
    """The graph model whose JSON is at `source`, a path or an http(s) address.

    cache: folder that downloads are kept in.

    Raises:
        UserError: the file or one of its shards is missing, unreadable, too long or too short, is not a
            TensorFlow.js graph model, names files elsewhere, or holds weights that are NaN or infinite.
    """
    path = _downloaded(source, cache) if "://" in source else Path(source)
    model = _parse(path)
    arrays = {name: array for group in model.weightsManifest for name, array in _arrays(group, path)}
    bad = [name for name, array in arrays.items() if not np.isfinite(array).all()]
    if bad:
        raise UserError(f"{path}: weights that are NaN or infinite: {shortened(bad)}")
    # The published files have dilations as [d, d, 1, 1], newer ones as [1, d, d, 1]: the second fits both.
    convolutions = {
        _SCOPE.sub("", node.input[1]): (node.attr.strides.list.i[1], node.attr.dilations.list.i[1])
        for node in model.modelTopology.node
        if node.op in ("Conv2D", "DepthwiseConv2dNative") and _is_convolution(node)
    }
    return GraphModel(source, model.quantisation, arrays, convolutions)


def shortened(names: list[str], shown: int = 5) -> str:
    """The first names of a list that may be long."""
    rest = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + rest


def _is_convolution(node: _Node) -> bool:
    return len(node.input) == 2 and len(node.attr.strides.list.i) == len(node.attr.dilations.list.i) == 4


def _downloaded(url: str, cache: Path) -> Path:
    """Where the JSON and its shards lie once they are downloaded. One folder for each address."""
    if urlsplit(url).scheme not in ("http", "https"):
        raise UserError(f"{url}: not an http(s) address")
    folder = cache / hashlib.sha256(url.encode()).hexdigest()[:16]
    path = folder / "model.json"
    download(url, path, most=_MOST_JSON)
    for group in _parse(path).weightsManifest:
        for name in group.paths:
            alone = group.size if len(group.paths) == 1 else None
            download(urljoin(url, quote(name)), folder / name, size=alone, most=group.size)
    return path


def _parse(path: Path) -> _Model:
    try:
        if path.stat().st_size > _MOST_JSON:
            raise UserError(f"{path}: larger than any TensorFlow.js model.json; name that file")
        model = _Model.model_validate(json.loads(path.read_bytes()))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise UserError(f"{path}: a folder; name the model-stride*.json in it") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the top level"
        raise UserError(f"{path}: not a TensorFlow.js graph model: {where}: {first['msg']}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON: {error}") from None
    _check(model, path)
    return model


def _check(model: _Model, path: Path) -> None:
    for group in model.weightsManifest:
        for name in group.paths:
            if not _is_plain(name) or name == path.name:
                raise UserError(f"{path}: shard {name!r} is not a file beside it; nothing read")
    total = sum(group.size for group in model.weightsManifest)
    if total > _MOST_WEIGHTS:
        raise UserError(f"{path}: announces {total} bytes of weights; not believed, nothing read")
    names = Counter(_SCOPE.sub("", w.name) for group in model.weightsManifest for w in group.weights)
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        raise UserError(f"{path}: weights that are there twice: {shortened(twice)}")


def _is_plain(name: str) -> bool:
    """Whether it can only be a file's name, with no way to another folder."""
    return PurePosixPath(name).name == name not in ("", "..") and name.isprintable() and "\\" not in name


def _arrays(group: _Group, path: Path) -> Iterator[tuple[str, FloatArray]]:
    content = _content(group, path)
    start = 0
    for weight in group.weights:
        yield _SCOPE.sub("", weight.name), weight.array(content[start : start + weight.size])
        start += weight.size


def _content(group: _Group, path: Path) -> bytes:
    """The shards of a group, one after the other; a weight may lie across two of them."""
    shards = [path.with_name(name) for name in group.paths]
    absent = [shard.name for shard in shards if not shard.is_file()]
    if absent:
        raise UserError(f"{path}: missing beside it: {shortened(absent)}")
    held = sum(shard.stat().st_size for shard in shards)
    if held != group.size:
        kind = "too short" if held < group.size else "too long"
        raise UserError(
            f"{path}: {shortened([shard.name for shard in shards])}: {held} bytes, {kind} for the weights "
            f"listed, which have {group.size}; delete and get them again"
        )
    return b"".join(shard.read_bytes() for shard in shards)
