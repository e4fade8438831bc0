"""An S3 store of two processes: moto's server, and before it a proxy that can be busy, or away."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Timer

from tests.s3_proxy import KEY

_ROOT = Path(__file__).parent.parent


class ObjectStore:
    """Its URIs hold endpoint and key, so that processes need no environment."""

    def __init__(self) -> None:
        import boto3

        self._backend, self._port = _free_port(), _free_port()
        self._server = _start("tests.s3_server", self._backend)
        self._proxy: subprocess.Popen[bytes] | None = None
        self.open()
        self.client = boto3.client(  # to look behind the proxy
            "s3",
            endpoint_url=f"http://127.0.0.1:{self._backend}",
            aws_access_key_id=KEY,
            aws_secret_access_key="secret",
            region_name="us-east-1",
        )

    def open(self, busy: float = 0.0) -> None:
        """From now on, a share of the requests is answered 503."""
        self.close()
        self._proxy = _start("tests.s3_proxy", self._port, self._backend, busy)

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

    def uri(self, path: str | Path, *, bucket: str = "work", key: str = f"{KEY}:secret@") -> str:
        """key: empty for none, as if the environment held the credentials."""
        query = f"scheme=http&endpoint_override=127.0.0.1:{self._port}&region=us-east-1"
        return f"s3://{key}{bucket}/{path}?{query}"

    def upload(self, folder: Path, prefix: str) -> None:
        for path in filter(Path.is_file, folder.iterdir()):
            self.client.put_object(Bucket="work", Key=f"{prefix}/{path.name}", Body=path.read_bytes())

    def download(self, prefix: str, folder: Path) -> Path:
        folder.mkdir()
        for key in self.keys(prefix):
            content = self.client.get_object(Bucket="work", Key=key)["Body"].read()
            (folder / key.removeprefix(f"{prefix}/")).write_bytes(content)
        return folder

    def keys(self, prefix: str) -> list[str]:
        """Keys of files below a prefix; pyarrow also writes an empty object for each folder."""
        found = self.client.list_objects_v2(Bucket="work", Prefix=f"{prefix}/").get("Contents", [])
        return [each["Key"] for each in found if not each["Key"].endswith("/")]

    def stop(self) -> None:
        self.close()
        self._server.kill()
        self._server.wait()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _start(module: str, port: int, *arguments: object, seconds: float = 120) -> "subprocess.Popen[bytes]":
    """Start a server and wait until it accepts connections."""
    command = [sys.executable, "-m", module, str(port), *map(str, arguments)]
    process = subprocess.Popen(command, cwd=_ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert process.poll() is None, f"{module} has ended"
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return process
        except OSError:
            time.sleep(0.05)
    process.kill()
    raise AssertionError(f"{module} does not answer")
