"""Just enough of headless Chromium to click through pages and take pictures: its DevTools protocol."""

import base64
import json
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"),
    *("--disable-background-networking", "--remote-debugging-port=0"),
)
BLANK = "about:blank"  # Chromium's own first page uses a server of Google


@dataclass
class Page:
    connection: ClientConnection
    calls: int = 0
    asked: set[str] = field(default_factory=set)  # every address that a page fetched something from

    def call(self, method: str, **parameters: Any) -> Any:
        self.calls += 1
        self.connection.send(json.dumps({"id": self.calls, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.connection.recv(timeout=120))
            if message.get("method") == "Network.requestWillBeSent":
                self.asked.add(message["params"]["request"]["url"])
            if message.get("id") == self.calls:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']['message']}")
                return message["result"]

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        answer = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"]["exception"]["description"])
        return answer["result"].get("value")

    def open(self, url: str, until: str) -> None:
        """Open a page and wait for a text in it."""
        self.call("Page.navigate", url=url)
        self.wait_for(until)

    def wait_for(self, text: str, seconds: float = 90) -> None:
        end = time.monotonic() + seconds
        while text not in (self.run("document.body ? document.body.innerText : ''") or ""):
            if time.monotonic() > end:
                raise RuntimeError(f"'{text}' never appeared at {self.run('location.href')}")
            time.sleep(0.3)
        time.sleep(1.5)  # for what is drawn after the text

    def click(self, text: str) -> None:
        """Click the last, and so the innermost, visible element with just this text."""
        found = self.run(
            f"""(() => {{
                const all = [...document.querySelectorAll('body *')];
                const text = {json.dumps(text)};
                const one = all.filter(e => (e.innerText || '').trim() === text && e.offsetParent).pop();
                if (one) one.click();
                return Boolean(one);
            }})()"""
        )
        if not found:
            raise RuntimeError(f"nothing to click says '{text}' at {self.run('location.href')}")
        time.sleep(1)

    def type(self, text: str) -> None:
        """Type into what has the focus."""
        self.call("Input.insertText", text=text)
        time.sleep(1.5)  # forms take it over with a delay

    def fill(self, label: str, text: str) -> None:
        """Type into the field with just this label."""
        label = json.dumps(label)
        self.run(
            f"""[...document.querySelectorAll('label')].find(e => e.innerText.trim() === {label})
            .closest('.p-label').querySelector('textarea, input').focus()"""
        )
        self.type(text)

    def drop(self, file: Path, where: str) -> None:
        """Drop a file on the element with this id."""
        content = base64.b64encode(file.read_bytes()).decode()
        self.run(
            f"""(() => {{
                const bytes = Uint8Array.from(atob("{content}"), c => c.charCodeAt(0));
                const dataTransfer = new DataTransfer();
                dataTransfer.items.add(new File([bytes], {json.dumps(file.name)}));
                document.getElementById("{where}").dispatchEvent(new DragEvent("drop", {{dataTransfer}}));
            }})()"""
        )

    def picture(self, path: Path) -> None:
        shot = self.call("Page.captureScreenshot", format="jpeg", quality=80)
        path.write_bytes(base64.b64decode(shot["data"]))


@contextmanager
def browser(width: int = 1400, height: int = 950) -> Iterator[Page]:
    """A new browser without a past, for the time of the block."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        raise SystemExit(f"one of {', '.join(NAMES)} is needed to look at the UI")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            (program, *FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}", BLANK),
            stderr=subprocess.DEVNULL,
        )
        try:
            with connect(_address(Path(profile)), max_size=None, ping_interval=None) as connection:
                page = Page(connection)
                for domain in ("Page", "Runtime", "Network"):
                    page.call(f"{domain}.enable")
                page.call(
                    "Emulation.setDeviceMetricsOverride",
                    width=width, height=height, deviceScaleFactor=1, mobile=False,
                )  # fmt: skip
                yield page
        finally:
            process.terminate()
            process.wait()


def _address(profile: Path) -> str:
    file, end = profile / "DevToolsActivePort", time.monotonic() + 60
    while not file.exists() or "\n" not in file.read_text():
        if time.monotonic() > end:
            raise RuntimeError("Chromium does not start")
        time.sleep(0.1)
    port = file.read_text().splitlines()[0]
    while True:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=30) as answer:
            pages = [each for each in json.load(answer) if each["type"] == "page"]
        if pages:
            return str(pages[0]["webSocketDebuggerUrl"])
        time.sleep(0.1)
