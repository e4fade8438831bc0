"""A Ray cluster whose nodes are in network namespaces of their own, on a bridge of a namespace for the head.

Needs root and Linux. Nothing leaves the namespaces.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psutil

from tests.cables import Cable, Carrier

_NET: Final = "10.77.0"
_PREFIX: Final = f"pl{os.getpid() % 100_000}"  # of namespaces; names of links have at most 15 characters
_START: Final = (*("--disable-usage-stats", "--object-store-memory=100000000", "--block"),)


class NotPermittedError(Exception):
    """Namespaces cannot be made here."""


@dataclass
class Host:
    name: str
    address: str
    process: subprocess.Popen[bytes] | None = field(default=None)
    cable: Cable = field(init=False, repr=False)  # to the bridge, which is on the head, if it is a bad one

    def command(self, *command: str) -> list[str]:
        return ["ip", "netns", "exec", self.name, *command]

    def unplug(self) -> None:
        _ip("-n", self.name, "link", "set", "eth0", "down")

    def plug(self) -> None:
        _ip("-n", self.name, "link", "set", "eth0", "up")

    def stop(self) -> None:
        """Kill the node with its processes."""
        if self.process:
            for process in self.processes():
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            self.process.kill()
            self.process.wait()

    def processes(self) -> list[psutil.Process]:
        """Ray's processes on the host."""
        if not self.process or self.process.poll() is not None:
            return []
        return psutil.Process(self.process.pid).children(recursive=True)


@dataclass
class Cluster:
    head: Host
    workers: list[Host]
    folder: Path  # for logs

    def start(self, host: Host) -> None:
        """Start a node of one processor."""
        _start(host, self.folder, f"--address={self.address}", "--num-cpus=1")
        _wait(host, self.folder)

    def restart(self, host: Host) -> None:
        """Start the node of a host again, which is plugged in."""
        host.stop()
        host.plug()
        self.start(host)

    @property
    def address(self) -> str:
        return f"{self.head.address}:6379"


@contextmanager
def cluster(workers: int, folder: Path, *, bad_cables: bool = False) -> Iterator[Cluster]:
    """A head without processors, on which drivers run, and `workers` nodes of one processor each.

    Args:
        folder: for logs. Its path must be short.
        bad_cables: that can delay and lose frames (`Host.cable`), and are slower.

    Raises:
        NotPermittedError: namespaces cannot be made.
    """
    hosts = [Host(f"{_PREFIX}-{number}", f"{_NET}.{number + 1}") for number in range(workers + 1)]
    head, *others = hosts
    carrier = None
    try:
        carrier = _connect(hosts, bad_cables=bad_cables)
        _start(head, folder, "--head", "--port=6379", "--include-dashboard=false", "--num-cpus=0")
        _wait(head, folder)
        made = Cluster(head, others, folder)
        for host in others:  # one by one: Ray gives up on a node that takes longer than 30 s
            made.start(host)
        yield made
    finally:
        for host in hosts:
            left = subprocess.run(["ip", "netns", "pids", host.name], capture_output=True, text=True)
            for process_id in map(int, left.stdout.split()):
                with suppress(ProcessLookupError):
                    os.kill(process_id, signal.SIGKILL)
            if host.process:
                host.process.wait()
            subprocess.run(["ip", "netns", "del", host.name], capture_output=True)  # with its links
        if carrier:
            carrier.stop()


def _connect(hosts: list[Host], *, bad_cables: bool) -> Carrier | None:
    """Make the namespaces: a bridge in the first, and a cable to it from each other."""
    head = hosts[0]
    try:
        for host in hosts:
            _ip("netns", "add", host.name)
            _ip("-n", host.name, "link", "set", "lo", "up")
        _ip("-n", head.name, "link", "add", "br0", "type", "bridge")
        _ip("-n", head.name, "addr", "add", f"{head.address}/24", "dev", "br0")
        _ip("-n", head.name, "link", "set", "br0", "up")
        for host in hosts[1:]:
            port, plug = f"{host.name}p", f"{host.name}h"
            if bad_cables:
                host.cable = Cable.between(port, plug)
            else:
                _ip("link", "add", port, "type", "veth", "peer", "name", plug)
            _ip("link", "set", port, "netns", head.name)
            _ip("link", "set", plug, "netns", host.name, "name", "eth0")
            _ip("-n", head.name, "link", "set", port, "master", "br0", "up")
            _ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", "eth0")
            host.plug()
    except subprocess.CalledProcessError as error:
        raise NotPermittedError(error.stderr.decode().strip()) from None
    except OSError as error:  # no command `ip`, no /dev/net/tun, or no right to use it
        raise NotPermittedError(str(error)) from None
    return Carrier([host.cable for host in hosts[1:]]) if bad_cables else None


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def _start(host: Host, folder: Path, *options: str) -> None:
    ray = str(Path(sys.executable).with_name("ray"))
    temporary = f"--temp-dir={folder / host.address.rpartition('.')[2]}"
    command = host.command(ray, "start", f"--node-ip-address={host.address}", temporary, *options, *_START)
    with (folder / f"{host.name}.log").open("wb") as output:
        # the name of this machine, which all hosts share, resolves to loopback
        environment = os.environ | {"GLOO_SOCKET_IFNAME": "eth0"}
        host.process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)


def _wait(host: Host, folder: Path, seconds: float = 300) -> None:
    log, end = folder / f"{host.name}.log", time.monotonic() + seconds
    while b"Ray runtime started" not in log.read_bytes():
        assert host.process, host
        assert host.process.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.2)
