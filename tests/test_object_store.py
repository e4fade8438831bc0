"""Object stores: files, listings and batches on stores that are busy, away, or refuse credentials."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from pyarrow.fs import FileType

from personlab.errors import UserError
from personlab.inference.listing import list_images
from personlab.inference.weights import find
from personlab.utils import azure, storage
from personlab.utils.storage import Folder, UnreachableError
from tests.batches import begin, check_truth, digests, job, make_all, save_weights
from tests.object_store import S3, Azure, ObjectStore, azurite
from tests.s3_server import KEYS

pytestmark = pytest.mark.slow

IMAGES = 12


@pytest.fixture(scope="module")
def azure_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Azure]:
    if not azurite():
        pytest.skip("needs Azurite: npm install --prefix .cache/azurite azurite")
    store = Azure(tmp_path_factory.mktemp("azurite"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(azure.CONNECTION, store.connection)
        yield store
    store.stop()


@pytest.fixture(scope="module", params=["object_store", "azure_store"])
def store(request: pytest.FixtureRequest, pictures: Path) -> ObjectStore:
    """Both stores, with the pictures at `in`."""
    made: ObjectStore = request.getfixturevalue(request.param)
    made.upload(pictures, "in")
    return made


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images that are smaller than the text of a 503."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(IMAGES):
        Image.new("RGB", (48, 36), (number, 0, 0)).save(folder / f"{number:03}.png")
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
    store: ObjectStore, weights: Path, local: dict[str, str], tmp_path: Path
) -> None:
    """A third of all answers are 503; of Azure's, for whose retries pyarrow waits longer, a tenth."""
    store.open(busy=0.1 if isinstance(store, Azure) else 0.33)
    make_all(begin(job(store.uri("in"), weights, store.uri("busy"))))
    store.open()
    out = store.download("busy", tmp_path / "out")
    assert digests(out) == local
    check_truth(out)


def test_a_store_that_is_away_is_waited_for(
    store: ObjectStore, weights: Path, local: dict[str, str], tmp_path: Path
) -> None:
    """For longer than pyarrow tries, 6 s."""
    worker = begin(job(store.uri("in"), weights, store.uri("away")))
    with store.away(seconds=10):
        make_all(worker)
    assert digests(store.download("away", tmp_path / "out")) == local


def test_a_store_that_stays_away_is_no_error_of_an_image(
    store: ObjectStore,
    weights: Path,
    local: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = begin(job(store.uri("in"), weights, tmp_path / "out"))
    store.close()
    monkeypatch.setattr(storage, "_RETRY_SECONDS", 0.1)
    with pytest.raises(UnreachableError, match="does not answer"):
        worker.make_part(0)
    assert not list((tmp_path / "out").glob("*-00000.parquet"))
    store.open()
    make_all(worker)
    assert digests(tmp_path / "out") == local


@pytest.mark.parametrize("key", ["", "WRONGKEY:secret@"])
def test_credentials_that_are_missing_or_wrong(
    object_store: S3, key: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")  # a server that only machines of AWS have
    _check_refused(object_store.uri("in", key=key), tmp_path)


def test_a_wrong_key_of_azure(azure_store: Azure, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(azure.CONNECTION, azure_store.connection.replace("AccountKey=E", "AccountKey=F"))
    storage._system.cache_clear()
    _check_refused(azure_store.uri("in"), tmp_path)
    storage._system.cache_clear()


def _check_refused(place: str, folder: Path) -> None:
    for ask in (list_images, lambda place: find(place, folder), lambda place: Folder(place).create()):
        with pytest.raises(UserError, match="are its credentials set and right") as error:
            ask(place)
        assert place.partition("/")[0] in str(error.value)
        assert "\n" not in str(error.value)


ODD = ("a b.png", "a#b.png", "a%20b.png", "a+b.png", "ü.png", "back\\slash.png", "a?b.png", "e=&é'\".png")


def test_keys_with_odd_characters(store: ObjectStore) -> None:
    for name in ODD:
        store.put(f"names/{name}", name.encode())
    found = dict(list_images(store.uri("names")).read())
    written = {name.replace("\\", "/") if isinstance(store, Azure) else name: name for name in ODD}
    assert {name: fetch() for name, fetch in found.items()} == {
        name: original.encode() for name, original in written.items()
    }


def test_a_key_with_an_empty_part(object_store: S3) -> None:
    """pyarrow cannot read it, nor write it: an image's error."""
    object_store.client.put_object(Bucket="work", Key="odd/empty//part.png", Body=b"")
    found = dict(list_images(object_store.uri("odd")).read())
    with pytest.raises(UserError, match="Empty path component"):
        found["empty//part.png"]()


def test_a_file_whose_writer_died_is_none(azure_store: Azure) -> None:
    """On Azure an empty file appears when it is opened."""
    azure_store.inside.open_output_stream("work/dead/plan.json")  # never closed
    assert azure_store.keys("dead") == ["dead/plan.json"]
    folder = Folder(azure_store.uri("dead"))
    with pytest.raises(FileNotFoundError):
        folder.read("plan.json")
    folder.write("plan.json", b"whole")
    assert folder.read("plan.json") == b"whole"


def test_ten_thousand_keys_are_listed(object_store: S3) -> None:
    listing = list_images(object_store.uri("in", bucket="many"))
    names = listing.entries["file"].to_pylist()
    assert names == sorted(f"{number % 7}/{number:05}.png" for number in range(KEYS))


def test_weights_at_a_uri(
    store: ObjectStore, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    store.upload(weights.parent, "models")
    place = store.uri("models/w.safetensors")
    copies = [find(place, tmp_path) for _ in range(2)]
    assert copies[0] == copies[1]
    for suffix in (".safetensors", ".json"):
        assert copies[0].with_suffix(suffix).read_bytes() == weights.with_suffix(suffix).read_bytes()
    store.inside.delete_file("work/models/w.json")
    with pytest.raises(UserError, match=r"models/w\.json.*: no such file"):
        find(place, tmp_path)


def test_folders_below_a_uri_with_a_query(store: ObjectStore) -> None:
    place = storage.join(store.uri("runs"), "train-1")
    Folder(place).create()
    Folder(place).write("a.txt", b"one")
    assert store.keys("runs") == ["runs/train-1/a.txt"]
    Folder(store.uri("runs")).clear("train-1")
    assert storage.kind(f"{place}") == FileType.NotFound
