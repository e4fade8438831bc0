"""Published networks by name: downloaded once, from a server here in Google's place."""

import math
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from personlab import params
from personlab.data import download
from personlab.errors import UserError
from personlab.model import checkpoint
from personlab.model.network import PersonLab, from_checkpoint
from personlab.skeleton import COCO_PERSON
from personlab.weights import zoo
from tests import tfjs_models
from tests.conftest import ROOT
from tests.test_download import Server

NAME = "bodypix-mobilenet-050"
NETWORK = zoo.BY_NAME[NAME]
FILES = ["group1-shard1of2.bin", "group1-shard2of2.bin", "model-stride16.json"]


@pytest.fixture
def google(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Serves a small network under the name of a published one; the cache is tmp_path/personlab."""
    folder = tfjs_models.mobilenet("mobilenet16", 16, width=4).write(tmp_path / "published").parent
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(download, "CHUNK", 1 << 12)
    with Server() as server:
        monkeypatch.setattr(zoo, "GOOGLE", server.url)
        server.files = {f"/{NETWORK.path}/{file.name}": file.read_bytes() for file in folder.iterdir()}
        server.validators = {"ETag": '"1"'}
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def offline(server: Server) -> None:
    server.files = {}


def address(name: str) -> str:
    return f"/{NETWORK.path}/{name}"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- what goes right ----------------------------------------------------------------------------------------


def test_a_network_is_downloaded_and_converted_once(google: Server, tmp_path: Path) -> None:
    path = zoo.find(Path(NAME))
    assert path == tmp_path / f"personlab/{NAME}.safetensors"
    assert names(tmp_path / "personlab" / NAME) == FILES
    assert from_checkpoint(path, stride=16).masks
    card = checkpoint.load(path)[1]
    assert card["training"]["source"] == NETWORK.url
    assert card["training"]["licence"].startswith("Apache-2.0")
    requests = len(google.ranges)
    assert zoo.find(Path(NAME)) == path
    assert len(google.ranges) == requests == 3


def test_the_licence_and_the_source_are_logged(google: Server, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        zoo.get(NAME)
    assert f"{NAME}: 2.4 MB from {NETWORK.url}, Apache-2.0, as published by Google; kept in" in caplog.text


def test_an_interrupted_download_is_resumed(google: Server, tmp_path: Path) -> None:
    google.breaks = [None, None, 4096, *[0] * (download.ATTEMPTS)]
    with pytest.raises(UserError, match="gave up after 6 attempts with 4096 bytes"):
        zoo.get(NAME)
    assert "group1-shard2of2.bin.part" in names(tmp_path / "personlab" / NAME)
    google.breaks.clear()
    google.ranges.clear()
    zoo.get(NAME)
    assert google.ranges == ["bytes=4096-"]


def test_files_from_elsewhere_are_used(google: Server, tmp_path: Path) -> None:
    """What the error says to put there is enough."""
    folder = tmp_path / "personlab" / NAME
    folder.mkdir(parents=True)
    for name in FILES:
        (folder / name).write_bytes(google.files[address(name)])
    offline(google)
    assert from_checkpoint(zoo.get(NAME), stride=16)
    assert google.ranges == []


def test_a_checkpoint_is_enough(google: Server, tmp_path: Path) -> None:
    path = zoo.get(NAME)
    for file in (tmp_path / "personlab" / NAME).iterdir():
        file.unlink()
    offline(google)
    assert zoo.get(NAME) == path


def test_a_damaged_checkpoint_is_converted_again(google: Server) -> None:
    path = zoo.get(NAME)
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    offline(google)
    zoo.get(NAME)
    assert path.read_bytes() == content


def test_a_file_comes_before_a_network_of_that_name(
    google: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(NAME).touch()
    assert zoo.find(Path(NAME)) == Path(NAME)
    assert google.ranges == []


def test_import_weights_shares_the_download(google: Server, tmp_path: Path) -> None:
    assert zoo.downloads(NETWORK.url) == tmp_path / "personlab" / NAME
    others = zoo.downloads("https://example.org/a.json"), zoo.downloads("https://example.org/b.json")
    assert len({NETWORK.downloads, *others}) == 3


# --- what goes wrong ----------------------------------------------------------------------------------------


def test_without_a_network_the_error_says_what_to_put_where(google: Server, tmp_path: Path) -> None:
    google.shutdown()
    google.server_close()
    folder = tmp_path / "personlab" / NAME
    with pytest.raises(UserError) as caught:
        zoo.get(NAME)
    assert "cannot be reached (" in str(caught.value)
    assert f"get {NETWORK.url} and the .bin files beside it" in str(caught.value)
    assert f"put them into {folder}, and run again" in str(caught.value)


@pytest.mark.parametrize(("change", "kind"), [(-4, "too short"), (4, "too long|more than")])
def test_shards_of_the_wrong_size_are_deleted(google: Server, tmp_path: Path, change: int, kind: str) -> None:
    name = address("group1-shard2of2.bin")
    right = google.files[name]
    google.files[name] = right[:change] if change < 0 else right + bytes(change)
    with pytest.raises(UserError, match=kind):
        zoo.get(NAME)
    assert names(tmp_path / "personlab" / NAME) == ["model-stride16.json"]
    google.files[name] = right
    zoo.get(NAME)


def test_a_page_in_place_of_the_network_is_deleted(google: Server, tmp_path: Path) -> None:
    """As the log-in pages of hotels and trains."""
    right = dict(google.files)
    google.files = dict.fromkeys(right, b"<html>please log in</html>")
    with pytest.raises(UserError, match="not valid JSON"):
        zoo.get(NAME)
    assert names(tmp_path / "personlab" / NAME) == []
    google.files = right
    zoo.get(NAME)


def test_weights_that_are_not_finite_are_not_converted(google: Server, tmp_path: Path) -> None:
    name = address("group1-shard1of2.bin")
    google.files[name] = np.float32(np.nan).tobytes() + google.files[name][4:]
    with pytest.raises(UserError, match="NaN or infinite"):
        zoo.get(NAME)
    assert not NETWORK.checkpoint.exists()


def test_a_cache_that_cannot_be_written_to(google: Server, tmp_path: Path) -> None:
    (tmp_path / "personlab").write_text("a file")
    with pytest.raises(UserError, match=f"{tmp_path}/personlab.* set XDG_CACHE_HOME"):
        zoo.get(NAME)


def test_a_misspelt_name_is_answered_with_the_names(google: Server) -> None:
    with pytest.raises(UserError, match=f"bodypix-75: no such file, .* there are {NAME}, "):
        zoo.find(Path("bodypix-75"))


def test_sample_is_the_network_that_the_demo_starts_from() -> None:
    demo = params.load(ROOT / "params.yaml").model
    assert zoo.find(Path("sample")) == zoo.get("sample") == ROOT / str(demo.init)
    network = from_checkpoint(zoo.get("sample"), stride=16)
    assert (network.model.backbone, network.model.width) == (demo.backbone, demo.width)
    assert network.masks
    assert zoo.get("sample").stat().st_size < 4e6


def test_sample_is_not_in_a_wheel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(zoo, "SAMPLE_CHECKPOINT", tmp_path / "sample.safetensors")
    with pytest.raises(UserError, match=f"{tmp_path}/sample.* only a clone of the repository"):
        zoo.get("sample")


def test_a_folder_with_the_name_of_a_network_is_not_its_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sample").mkdir()
    assert zoo.find(Path("sample")) == zoo.SAMPLE_CHECKPOINT


# --- the table ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", zoo.NETWORKS, ids=lambda network: network.name)
def test_sizes_follow_from_the_architecture(network: zoo.Network) -> None:
    family, kind, *multiplier = network.name.split("-")
    backbone, width = {"050": ("mobilenet16", 16), "075": ("mobilenet16", 24), "100": ("mobilenet", 32)}.get(
        *multiplier or ["resnet"], ("slim-resnet50", 64)
    )
    with torch.device("meta"):
        model = PersonLab(
            params.Model(backbone=backbone, width=width),
            stride=16,
            masks=family == "bodypix",
            skeleton=COCO_PERSON,
        )
    parameters = [p for name, p in model.named_parameters() if not name.startswith("intermediate")]
    count = sum(math.prod(parameter.shape) for parameter in parameters)
    if network.masks:  # heads for body parts, and two constants
        count += (24 + 48) * (model.backbone.channels[1] + 1) + 2
    if kind == "resnet50":  # two tables of paddings
        count += 2 * 4 * 2
    assert network.size == 4 * count


@pytest.mark.testdata
@pytest.mark.parametrize("name", ["bodypix-mobilenet-075", "posenet-mobilenet-050"])
def test_sizes_are_those_of_the_published_files(testdata: Path, name: str) -> None:
    shards = (testdata / "weights" / name).glob("*.bin")
    assert sum(shard.stat().st_size for shard in shards) == zoo.BY_NAME[name].size


def test_aps_are_those_of_the_measurements() -> None:
    page = (Path(__file__).parent.parent / "docs/notes/coco-mini.md").read_text()
    keypoints, masks = (float(ap) for ap in re.findall(r"^\| 801 / 16 \| ([\d.]+)", page, re.MULTILINE))
    network = zoo.BY_NAME["bodypix-mobilenet-075"]
    assert (network.keypoint_ap, network.mask_ap) == pytest.approx((keypoints / 100, masks / 100))
