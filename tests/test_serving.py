"""Predictions over HTTP: answers, refusals, the queue, a page in a browser."""

import base64
import io
import itertools
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from PIL import Image
from pycocotools import mask as rle_tools

from personlab.data.transform import ImageArray
from personlab.errors import UserError
from personlab.people import Detection
from personlab.serving import app as application
from personlab.serving.app import make_app
from personlab.serving.cli import check_address
from personlab.serving.model import Served
from personlab.skeleton import COCO_PERSON
from tests.conftest import ROOT


class OnePerson:
    """Finds the same person in every image, after a while."""

    skeleton = COCO_PERSON

    def __init__(self, score: float = 0.9, seconds: float = 0.0) -> None:
        self.score, self.seconds = score, seconds

    def __call__(self, image: ImageArray) -> list[Detection]:
        time.sleep(self.seconds)
        height, width = image.shape[:2]
        points = np.linspace((0.2, 0.2), (0.8, 0.8), 17) * (width, height)
        mask = rle_tools.encode(np.ones((height, width), np.uint8, order="F"))["counts"]
        scores = np.full(17, 0.9, np.float32)
        return [Detection(points.astype(np.float32), scores, self.score, mask)]


@contextmanager
def serving(served: Served) -> Iterator[httpx.Client]:
    """A real server for the time of the block."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(make_app(served), port=port, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture
def client(tmp_path: Path) -> Iterator[httpx.Client]:
    with serving(Served(lambda: tmp_path, lambda path: OnePerson())) as client:  # type: ignore[arg-type, return-value]
        yield client


def picture(width: int = 60, height: int = 40, kind: str = "PNG") -> bytes:
    content = io.BytesIO()
    Image.effect_noise((width, height), 64).convert("RGB").save(content, kind)
    return content.getvalue()


def test_people_are_found_and_drawn(client: httpx.Client) -> None:
    answer = client.post("/predict", content=picture())
    assert answer.status_code == 200
    found = answer.json()
    assert (found["height"], found["width"], found["shown"]) == (40, 60, 1)
    assert found["people"][0]["keypoints"]["nose"] == {"x": 12, "y": 8, "score": pytest.approx(0.9)}
    assert found["people"][0]["segmentation"]["size"] == [40, 60]
    assert "picture" not in found
    drawn = client.post("/predict", params={"picture": True}, content=picture()).json()["picture"]
    assert Image.open(io.BytesIO(base64.b64decode(drawn))).size == (60, 40)


def bomb() -> bytes:
    """A small file that says it is an image of 100 million pixels."""
    content = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(content, "PNG")
    return content.getvalue()


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        (b"hello, I am a text file", 400, "not an image"),
        (b"", 400, "the body is empty"),
        (picture()[:200], 400, "the body cannot be read"),
        (bomb(), 400, "has more than 40 million pixels"),
        (b"\0" * (application.LARGEST_BODY + 1), 413, "the body has more than 20000000 bytes"),
    ],
    ids=["text", "empty", "cut", "bomb", "large"],
)
def test_other_bodies_are_refused_and_the_next_is_answered(
    client: httpx.Client, body: bytes, status: int, reason: str
) -> None:
    answer = client.post("/predict", content=body)
    assert answer.status_code == status
    assert reason in answer.json()["detail"]
    assert client.post("/predict", content=picture()).status_code == 200


def test_a_client_that_sends_all_before_it_reads_sees_why_it_is_refused(client: httpx.Client) -> None:
    upload = urllib.request.Request(str(client.base_url.join("/predict")), b"\0" * 100_000_000)
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(upload, timeout=60)
    with refused.value as answer:
        assert (answer.code, b"more than 20000000 bytes" in answer.read()) == (413, True)


def test_an_endless_body_is_cut_off(client: httpx.Client) -> None:
    sent = itertools.count()
    endless = (b"\0" * 1_000_000 for _ in sent)
    with suppress(httpx.TransportError):
        assert client.post("/predict", content=endless).status_code == 413
    assert next(sent) < 500
    assert client.post("/predict", content=picture()).status_code == 200


def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"127\.0\.0\.1:{port}: Address already in use; choose another"):
            check_address("127.0.0.1", port)
    check_address("127.0.0.1", port)


def test_a_form_is_refused_with_what_to_send(client: httpx.Client) -> None:
    answer = client.post("/predict", files={"file": picture()})
    assert answer.status_code == 415
    assert "send the file itself: curl --data-binary @photo.jpg" in answer.json()["detail"]


def test_a_full_queue_is_answered_at_once(tmp_path: Path) -> None:
    served = Served(lambda: tmp_path, lambda path: OnePerson(seconds=0.3), queue=2)  # type: ignore[arg-type, return-value]
    with serving(served) as client, ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: client.post("/predict", content=picture()), range(6)))
        codes = sorted(answer.status_code for answer in answers)
        assert codes.count(200) >= 2
        assert set(codes) == {200, 429}
        assert all(answer.headers["Retry-After"] == "1" for answer in answers if answer.status_code == 429)
        assert client.post("/predict", content=picture()).status_code == 200


def test_a_new_champion_is_served_without_a_restart(tmp_path: Path) -> None:
    link = tmp_path / "champion"
    for name in ("1", "2"):
        (tmp_path / name).mkdir()
    link.symlink_to("1")
    served = Served(lambda: link, lambda path: OnePerson(score=int(path.name) / 10))  # type: ignore[arg-type, return-value]

    def score(client: httpx.Client) -> float:
        found: float = client.post("/predict", content=picture()).json()["people"][0]["score"]
        return found

    with serving(served) as client:
        assert score(client) == 0.1
        link.unlink()
        link.symlink_to("2")
        assert score(client) == 0.2


def test_the_answer_is_described_and_the_page_loads_nothing_from_elsewhere(client: httpx.Client) -> None:
    schema: Any = client.get("/openapi.json").json()
    assert set(schema["paths"]) == {"/predict"}
    assert {"200", "400", "413", "429"} <= set(schema["paths"]["/predict"]["post"]["responses"])
    page = client.get("/").text
    assert "Drop pictures here" in page
    assert "http" not in page.replace('http-equiv="', "")
    for path in ("/docs", "/redoc", "/etc/passwd", "/../pyproject.toml"):
        assert client.get(path).status_code == 404


@pytest.mark.slow
def test_replicas_on_ray_answer_as_one_server_does(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [*(sys.executable, "-m", "personlab", "serve", "--replicas", "2"), "--port", str(port)]
    small = ["--weights", str(ROOT / "models/pretrained/sample.safetensors"), "--side", "97"]
    server = subprocess.Popen([*command, *small], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout
        assert server.stdout.readline() == f"http://127.0.0.1:{port}\n"
        running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
        assert running.count("ray::ServeReplica:personlab") == 2
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            with ThreadPoolExecutor(8) as pool:
                answers = list(pool.map(lambda _: client.post("/predict", content=picture()), range(32)))
            assert {answer.status_code for answer in answers} == {200}
            assert answers[0].json()["height"] == 40
            assert client.post("/predict", content=b"no image").status_code == 400
            assert "personlab" in client.get("/").text
    finally:
        server.send_signal(signal.SIGINT)
        assert server.wait(60) == 0
