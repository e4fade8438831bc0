"""Object stores of two processes: a server, and before it a proxy that can be busy, or away."""

import os
import shutil
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Timer
from typing import Any, Final

from pyarrow.fs import AzureFileSystem, FileSelector, FileSystem, FileType, S3FileSystem

_ROOT = Path(__file__).parent.parent
_ACCOUNT: Final = "devstoreaccount1"
# Azurite's, which its documentation publishes
AZURITE_KEY: Final = (
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)


class ObjectStore(ABC):
    """A store with a container named `work`, as tests and programs see it.

    Attributes:
        inside: its file system behind the proxy.
    """

    inside: FileSystem
    proxy_key = ""  # the only one that the proxy accepts

    def __init__(self) -> None:
        self._backend, self._port = _free_port(), _free_port()
        self._proxy: subprocess.Popen[bytes] | None = None
        self._server = self._serve(self._backend)
        self.inside = self._system(self._backend)
        self.open()

    @abstractmethod
    def _serve(self, port: int) -> "subprocess.Popen[bytes]":
        """Start the server."""

    @abstractmethod
    def _system(self, port: int) -> FileSystem:
        """The server's file system."""

    @abstractmethod
    def uri(self, path: str | Path, *, bucket: str = "work") -> str:
        """The URI of a path, as programs are given it: through the proxy."""

    def open(self, busy: float = 0.0) -> None:
        """From now on, a share of the requests is answered 503."""
        self.close()
        command = _python("tests.store_proxy", self._port, self._backend, busy, self.proxy_key)
        self._proxy = _start(command, self._port)

    def close(self) -> None:
        """From now on nothing answers."""
        if self._proxy:
            self._proxy.kill()
            self._proxy.wait()
        self._proxy = None

    @contextmanager
    def away(self, seconds: float) -> Iterator[None]:
        """Nothing answers at the beginning of the block, for so long."""
        self.close()
        timer = Timer(seconds, self.open)
        timer.start()
        try:
            yield
        finally:
            timer.join()

    def put(self, key: str, content: bytes) -> None:
        with self.inside.open_output_stream(f"work/{key}") as stream:
            stream.write(content)

    def upload(self, folder: Path, prefix: str) -> None:
        for path in filter(Path.is_file, folder.iterdir()):
            self.put(f"{prefix}/{path.name}", path.read_bytes())

    def download(self, prefix: str, folder: Path) -> Path:
        folder.mkdir()
        for key in self.keys(prefix):
            content = self.inside.open_input_file(f"work/{key}").read()
            (folder / key.removeprefix(f"{prefix}/")).write_bytes(content)
        return folder

    def keys(self, prefix: str) -> list[str]:
        """Keys of files below a prefix; pyarrow also writes an empty object for each folder."""
        selector = FileSelector(f"work/{prefix}", allow_not_found=True, recursive=True)
        files = [info for info in self.inside.get_file_info(selector) if info.type == FileType.File]
        return sorted(info.path.removeprefix("work/") for info in files)

    def stop(self) -> None:
        self.close()
        self._server.kill()
        self._server.wait()


class S3(ObjectStore):
    """Moto's server. URIs hold endpoint and key, so that processes need no environment."""

    proxy_key = "KNOWNKEY"

    def _serve(self, port: int) -> "subprocess.Popen[bytes]":
        return _start(_python("tests.s3_server", port), port)

    def _system(self, port: int) -> FileSystem:
        endpoint = {"endpoint_override": f"127.0.0.1:{port}", "scheme": "http", "region": "us-east-1"}
        return S3FileSystem(access_key=self.proxy_key, secret_key="secret", **endpoint)

    @property
    def client(self) -> Any:
        """For keys that pyarrow does not write."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{self._backend}",
            aws_access_key_id=self.proxy_key,
            aws_secret_access_key="secret",
            region_name="us-east-1",
        )

    def uri(self, path: str | Path, *, bucket: str = "work", key: str = f"{proxy_key}:secret@") -> str:
        """key: empty for none, as if the environment held the credentials."""
        query = f"scheme=http&endpoint_override=127.0.0.1:{self._port}&region=us-east-1"
        return f"s3://{key}{bucket}/{path}?{query}"


class Azure(ObjectStore):
    """Azurite, Azure's own server for tests. Processes need `connection` in the environment."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        super().__init__()
        self.inside.create_dir("work")

    @property
    def connection(self) -> str:
        """The connection string of the proxy."""
        endpoint = f"http://127.0.0.1:{self._port}/{_ACCOUNT}"
        return f"AccountName={_ACCOUNT};AccountKey={AZURITE_KEY};BlobEndpoint={endpoint}"

    def _serve(self, port: int) -> "subprocess.Popen[bytes]":
        options = ("--location", self._folder, "--blobHost", "127.0.0.1", "--blobPort", port)
        return _start([azurite(), *map(str, options), "--silent", "--skipApiVersionCheck"], port)

    def _system(self, port: int) -> FileSystem:
        at = f"127.0.0.1:{port}"
        return AzureFileSystem(
            _ACCOUNT,
            account_key=AZURITE_KEY,
            blob_storage_authority=at,
            blob_storage_scheme="http",
            dfs_storage_authority=at,
            dfs_storage_scheme="http",
        )

    def uri(self, path: str | Path, *, bucket: str = "work") -> str:
        return f"abfs://{bucket}/{path}"


def azurite() -> str:
    """The program, installed by `make test` where there is npm; empty without it."""
    local = _ROOT / ".cache/azurite/node_modules/.bin"
    return shutil.which("azurite-blob", path=f"{local}{os.pathsep}{os.environ['PATH']}") or ""


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _python(module: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", module, *map(str, arguments)]


def _start(command: Sequence[str], port: int, *, seconds: float = 120) -> "subprocess.Popen[bytes]":
    """Start a server and wait until it accepts connections."""
    process = subprocess.Popen(command, cwd=_ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert process.poll() is None, f"{command} has ended"
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return process
        except OSError:
            time.sleep(0.05)
    process.kill()
    raise AssertionError(f"{command} does not answer")
