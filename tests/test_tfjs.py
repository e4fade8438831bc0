"""Reading TensorFlow.js graph models: weights, and files that are refused."""

import json
import os
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from personlab.errors import UserError
from personlab.weights import tfjs
from tests import tfjs_models

CHANGE = Callable[[dict[str, Any]], Any]


def written(folder: Path, *, quantised: str | None = None, shards: int = 2) -> tuple[Path, tfjs_models.Model]:
    model = tfjs_models.mobilenet("mobilenet16", 16)
    model.quantised, model.shards = quantised, shards
    return model.write(folder), model


def changed(folder: Path, change: CHANGE) -> Path:
    path, _ = written(folder)
    graph = json.loads(path.read_text())
    change(graph)
    path.write_text(json.dumps(graph))
    return path


def read(path: Path | str) -> tfjs.GraphModel:
    return tfjs.read(str(path), Path("no-cache"))


@pytest.mark.parametrize("shards", [1, 2, 7])
def test_weights_are_read_across_shard_borders(tmp_path: Path, shards: int) -> None:
    path, model = written(tmp_path, shards=shards)
    graph = read(path)
    assert {f"MobilenetV1/{name}" for name in graph.arrays} == set(model.weights)
    for name, array in graph.arrays.items():
        np.testing.assert_array_equal(array, model.weights[f"MobilenetV1/{name}"])
    assert graph.quantisation == "float32"
    assert graph.convolutions["Conv2d_6_depthwise/depthwise_weights"] == (2, 1)
    assert graph.convolutions["heatmap_2/weights"] == (1, 1)


@pytest.mark.parametrize(("kind", "steps"), [("uint8", 255), ("uint16", 65535)])
def test_quantised_weights_are_within_half_a_step(tmp_path: Path, kind: str, steps: int) -> None:
    path, model = written(tmp_path, quantised=kind)
    graph = read(path)
    assert graph.quantisation == kind
    for name, array in graph.arrays.items():
        exact = model.weights[f"MobilenetV1/{name}"]
        assert array.dtype == np.float32
        assert np.abs(array - exact).max() <= 0.501 * np.ptp(exact) / steps + 1e-6


def test_float16_weights_are_read(tmp_path: Path) -> None:
    path, model = written(tmp_path, quantised="float16", shards=1)
    graph = read(path)
    assert graph.quantisation == "float16"
    assert (tmp_path / "group1-shard1of1.bin").stat().st_size == 2 * sum(map(np.size, model.weights.values()))
    for name, array in graph.arrays.items():
        assert array.dtype == np.float32
        exact = model.weights[f"MobilenetV1/{name}"]
        np.testing.assert_array_equal(array, exact.astype(np.float16).astype(np.float32))


def test_a_repeated_scope_is_removed(tmp_path: Path) -> None:
    def repeat(graph: dict[str, Any]) -> None:
        weight = graph["weightsManifest"][0]["weights"][1]
        weight["name"] = "MobilenetV1/" + weight["name"]

    assert "Conv2d_0/Conv2D_bias" in read(changed(tmp_path, repeat)).arrays


# --- refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "../x.bin",
        "/etc/passwd",
        "a/../../x.bin",
        "sub/x.bin",
        "..",
        "",
        ".",
        "a\\..\\x.bin",
        "x\0.bin",
        "x\n",
    ],
)
def test_shards_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    def climb(graph: dict[str, Any]) -> None:
        graph["weightsManifest"][0]["paths"][1] = name

    (tmp_path / "x.bin").write_bytes(b"secret")
    path = changed(tmp_path / "model", climb)
    with pytest.raises(UserError, match=r"model-stride16\.json: shard .* is not a file beside it"):
        read(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g: g.pop("modelTopology"), "modelTopology: Field required"),
        (lambda g: g.pop("weightsManifest"), "weightsManifest: Field required"),
        (lambda g: g["modelTopology"].pop("node"), r"modelTopology\.node: Field required"),
        (lambda g: g["weightsManifest"][0].pop("paths"), r"weightsManifest\.0\.paths: Field required"),
        (lambda g: g["weightsManifest"][0]["weights"][0].update(dtype="string"), "'float32' or 'int32'"),
        (lambda g: g["weightsManifest"][0]["weights"][0].update(shape=[3, -3]), r"shape\.1"),
        (
            lambda g: g["weightsManifest"][0]["weights"][0].update(
                quantization={"dtype": "uint8", "scale": float("nan"), "min": 0}
            ),
            r"scale: Input should be a finite number",
        ),
        (
            lambda g: g["weightsManifest"][0]["weights"][0].update(
                quantization={"dtype": "int4", "scale": 1, "min": 0}
            ),
            "'uint8', 'uint16', 'float16'",
        ),
        (
            lambda g: g["weightsManifest"][0]["weights"][0].update(quantization={"dtype": "uint8"}),
            r"uint8\.scale: Field required",
        ),
        (
            lambda g: g["weightsManifest"][0]["weights"][0].update(shape=[1 << 40]),
            "bytes of weights, at most",
        ),
        (
            lambda g: g["weightsManifest"].append(g["weightsManifest"][0]),
            "duplicate weights: Conv2d_0/weights",
        ),
    ],
)
def test_errors_name_the_wrong_key(tmp_path: Path, change: CHANGE, message: str) -> None:
    with pytest.raises(UserError, match=rf"model-stride16\.json: .*{message}"):
        read(changed(tmp_path, change))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[1, 2]", "not a TensorFlow.js graph model: the top level"),
        (b"null", "not a TensorFlow.js graph model: the top level"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe\x00", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
    ],
)
def test_files_that_are_not_json_objects_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "model.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read(path)


def test_too_large_json_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "model.json"
    with path.open("wb") as file:
        os.truncate(file.fileno(), 1 << 33)
    with pytest.raises(UserError, match="too large for the JSON"):
        read(path)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing\.json: no such file"):
        read(tmp_path / "nothing.json")
    with pytest.raises(UserError, match=r"a folder; name the model-stride\*\.json"):
        read(tmp_path)
    path, _ = written(tmp_path)
    (tmp_path / "group1-shard2of2.bin").unlink()
    with pytest.raises(UserError, match=r"missing beside it: group1-shard2of2\.bin"):
        read(path)


@pytest.mark.parametrize(("change", "kind"), [(-1, "too short"), (1, "too long")])
def test_shards_of_the_wrong_size_are_refused(tmp_path: Path, change: int, kind: str) -> None:
    path, _ = written(tmp_path)
    shard = tmp_path / "group1-shard2of2.bin"
    os.truncate(shard, shard.stat().st_size + change)
    with pytest.raises(UserError, match=rf"group1-shard2of2\.bin: \d+ bytes, {kind} for the listed weights"):
        read(path)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    model = tfjs_models.mobilenet("mobilenet16", 16)
    model.weights["MobilenetV1/Conv2d_3_pointwise/weights"][0, 0, 1, 1] = value
    with pytest.raises(UserError, match=r"NaN or infinite: Conv2d_3_pointwise/weights"):
        read(model.write(tmp_path))


# --- from the web -------------------------------------------------------------------------------------------


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """The address of tmp_path/web."""
    (tmp_path / "web").mkdir()
    handler = partial(Quiet, directory=str(tmp_path / "web"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_model_is_downloaded_once(tmp_path: Path, url: str) -> None:
    path, _ = written(tmp_path / "web/net", shards=3)
    cache = tmp_path / "cache"
    fetched = tfjs.read(f"{url}/net/{path.name}", cache)
    local = read(path)
    assert fetched.convolutions == local.convolutions
    assert all(np.array_equal(fetched.arrays[name], local.arrays[name]) for name in local.arrays)
    for file in path.parent.iterdir():
        file.unlink()
    assert tfjs.read(f"{url}/net/{path.name}", cache).arrays.keys() == local.arrays.keys()


def test_downloaded_shards_stay_in_their_folder(tmp_path: Path, url: str) -> None:
    def climb(graph: dict[str, Any]) -> None:
        graph["weightsManifest"][0]["paths"][1] = "../escaped.bin"

    path = changed(tmp_path / "web/net", climb)
    (tmp_path / "web/escaped.bin").write_bytes(b"1234")
    with pytest.raises(UserError, match="is not a file beside it"):
        tfjs.read(f"{url}/net/{path.name}", tmp_path / "cache")
    assert [p.name for p in (tmp_path / "cache").rglob("*") if p.is_file()] == []


def test_shards_may_not_be_larger_than_listed(tmp_path: Path, url: str) -> None:
    path, _ = written(tmp_path / "web", shards=2)
    (tmp_path / "web/group1-shard1of2.bin").write_bytes(bytes(1 << 22))
    with pytest.raises(UserError, match=r"group1-shard1of2\.bin: more than \d+ bytes"):
        tfjs.read(f"{url}/{path.name}", tmp_path / "cache")


def test_other_schemes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not an http\(s\) address"):
        tfjs.read("file:///etc/passwd", tmp_path)
    with pytest.raises(UserError, match=r"not an http\(s\) address"):
        tfjs.read("ftp://example.org/model.json", tmp_path)


def test_a_model_that_the_server_lacks(tmp_path: Path, url: str) -> None:
    with pytest.raises(UserError, match="404"):
        tfjs.read(f"{url}/nothing.json", tmp_path / "cache")
