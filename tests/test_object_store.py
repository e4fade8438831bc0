"""An S3 store: files, listings and batch inference on it while it is busy, away, or refuses credentials."""

from pathlib import Path

import pytest
from PIL import Image
from pyarrow.fs import FileType

from personlab.errors import UserError
from personlab.inference.listing import list_images
from personlab.inference.weights import find
from personlab.utils import storage
from personlab.utils.storage import Folder, UnreachableError
from tests.batches import begin, check_truth, digests, job, make_all, save_weights
from tests.object_store import ObjectStore
from tests.s3_server import KEYS

pytestmark = pytest.mark.slow

IMAGES = 12


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory, object_store: ObjectStore) -> Path:
    """Images, also on the store at `in`; they are smaller than the text of a 503."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(IMAGES):
        Image.new("RGB", (48, 36), (number, 0, 0)).save(folder / f"{number:03}.png")
    object_store.upload(folder, "in")
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_weights(tmp_path_factory.mktemp("weights") / "w.safetensors")


@pytest.fixture(scope="module")
def local(pictures: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The files of a run on local folders."""
    out = tmp_path_factory.mktemp("local") / "out"
    make_all(begin(job(pictures, weights, out)))
    return digests(out)


def test_a_busy_store_loses_nothing(
    object_store: ObjectStore, pictures: Path, weights: Path, local: dict[str, str], tmp_path: Path
) -> None:
    """A third of all answers are 503."""
    object_store.open(busy=0.33)
    make_all(begin(job(object_store.uri("in"), weights, object_store.uri("busy"))))
    object_store.open()
    out = object_store.download("busy", tmp_path / "out")
    assert digests(out) == local
    check_truth(out)


def test_a_store_that_is_away_is_waited_for(
    object_store: ObjectStore, pictures: Path, weights: Path, local: dict[str, str], tmp_path: Path
) -> None:
    """For longer than pyarrow tries, 6 s."""
    worker = begin(job(object_store.uri("in"), weights, object_store.uri("away")))
    with object_store.away(seconds=10):
        make_all(worker)
    assert digests(object_store.download("away", tmp_path / "out")) == local


def test_a_store_that_stays_away_is_no_error_of_an_image(
    object_store: ObjectStore,
    pictures: Path,
    weights: Path,
    local: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = begin(job(object_store.uri("in"), weights, tmp_path / "out"))
    object_store.close()
    monkeypatch.setattr(storage, "_RETRY_SECONDS", 0.1)
    with pytest.raises(UnreachableError, match="does not answer"):
        worker.make_part(0)
    assert not list((tmp_path / "out").glob("*-00000.parquet"))
    object_store.open()
    make_all(worker)
    assert digests(tmp_path / "out") == local


@pytest.mark.parametrize("key", ["", "WRONGKEY:secret@"])
def test_credentials_that_are_missing_or_wrong(
    object_store: ObjectStore, key: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")  # a server that only machines of AWS have
    place = object_store.uri("in", key=key)
    for ask in (list_images, lambda place: find(place, tmp_path), lambda place: Folder(place).create()):
        with pytest.raises(UserError, match="are its credentials set and right") as error:
            ask(place)
        assert "s3://" in str(error.value)
        assert "\n" not in str(error.value)


ODD = ("a b.png", "a#b.png", "a%20b.png", "a+b.png", "ü.png", "back\\slash.png", "a?b.png", "e=&é'\".png")


def test_keys_with_odd_characters(object_store: ObjectStore, pictures: Path, tmp_path: Path) -> None:
    for name in (*ODD, "empty//part.png"):
        object_store.client.put_object(Bucket="work", Key=f"odd/{name}", Body=name.encode())
    listing = list_images(object_store.uri("odd"))
    found = dict(listing.read())
    assert set(found) == {*ODD, "empty//part.png"}
    assert {name: found[name]() for name in ODD} == {name: name.encode() for name in ODD}
    with pytest.raises(UserError, match="Empty path component"):  # pyarrow cannot read it: an image's error
        found["empty//part.png"]()


def test_ten_thousand_keys_are_listed(object_store: ObjectStore) -> None:
    listing = list_images(object_store.uri("in", bucket="many"))
    names = listing.entries["file"].to_pylist()
    assert names == sorted(f"{number % 7}/{number:05}.png" for number in range(KEYS))


def test_weights_at_a_uri(
    object_store: ObjectStore, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    object_store.upload(weights.parent, "models")
    place = object_store.uri("models/w.safetensors")
    copies = [find(place, tmp_path) for _ in range(2)]
    assert copies[0] == copies[1]
    for suffix in (".safetensors", ".json"):
        assert copies[0].with_suffix(suffix).read_bytes() == weights.with_suffix(suffix).read_bytes()
    object_store.client.delete_object(Bucket="work", Key="models/w.json")
    with pytest.raises(UserError, match=r"models/w\.json.*: no such file"):
        find(place, tmp_path)


def test_folders_below_a_uri_with_a_query(object_store: ObjectStore) -> None:
    place = storage.join(object_store.uri("runs"), "train-1")
    Folder(place).create()
    Folder(place).write("a.txt", b"one")
    assert object_store.keys("runs") == ["runs/train-1/a.txt"]
    Folder(object_store.uri("runs")).clear("train-1")
    assert storage.kind(f"{place}") == FileType.NotFound
