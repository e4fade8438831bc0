"""A proxy before an object store: `python -m tests.store_proxy PORT BACKEND_PORT SHARE [KEY]`.

It answers 503 to a share of the requests, and, before moto's S3 server, which takes any key, 403 to those
that are not signed with KEY. Killed and started again, it is a store that was away and kept its objects.
"""

import http.client
import random
import sys
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

_HOP_BY_HOP: Final = {"connection", "content-length", "expect", "keep-alive", "transfer-encoding"}


def _error(code: str) -> bytes:
    """As S3 and Azure word it, with an id for their support: longer than a small image."""
    details = f"<Code>{code}</Code><Message>{code}</Message><HostId>{'x' * 200}</HostId>"
    return f'<?xml version="1.0"?><Error>{details}</Error>'.encode()


class Proxy(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    backend = 0
    share = 0.0
    key = ""
    chance = random.Random(0)

    def forward(self) -> None:
        body = self._body()
        if self.key and f"Credential={self.key}/" not in self.headers.get("Authorization", ""):
            signed = "Authorization" in self.headers
            self._answer(403, [], _error("InvalidAccessKeyId" if signed else "AccessDenied"))
        elif self.chance.random() < self.share:
            self._answer(503, [], _error("SlowDown"))
        else:
            connection = http.client.HTTPConnection("127.0.0.1", self.backend)
            headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_BY_HOP}
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            self._answer(answer.status, answer.getheaders(), answer.read())
            connection.close()

    do_DELETE = do_GET = do_HEAD = do_POST = do_PUT = forward  # noqa: N815

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = list[bytes]()
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _answer(self, status: int, headers: Iterable[tuple[str, str]], body: bytes) -> None:
        lengths = {name.lower(): value for name, value in headers if self.command == "HEAD"}
        length = lengths.get("content-length")
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in _HOP_BY_HOP:
                self.send_header(name, value)
        self.send_header("Content-Length", length or str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


if __name__ == "__main__":
    port, Proxy.backend, Proxy.share = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    Proxy.key = sys.argv[4] if sys.argv[4:] else ""
    Server(("127.0.0.1", port), Proxy).serve_forever()
