"""Run a command that does not outlive the process that started it: `python -P supervisor.py COMMAND...`.

The starter holds a pipe to standard input. When the command exits, or the pipe closes because the starter
closed it, was interrupted or was killed, the process group of the command is ended, and this process exits
with the status of the command. A Prefect runner kills its flows when it stops, so a flow cannot be relied on
to end its stage; a killed runner ends no flow at all.

Uses the standard library only, as it starts with every command.
"""

import os
import signal
import subprocess
import sys
import threading
import time

GRACE_SECONDS = 10.0  # between SIGINT, SIGTERM and SIGKILL


def main() -> None:
    command = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, start_new_session=True)
    pipe = threading.Thread(target=sys.stdin.buffer.read, daemon=True)
    pipe.start()
    while pipe.is_alive() and command.poll() is None:
        time.sleep(0.05)
    end_group(command)
    status = command.returncode
    # Not sys.exit: it would wait for the thread that reads the pipe.
    os._exit(status if status >= 0 else 128 - status)  # the status that shells give to a signal


def end_group(leader: subprocess.Popen[bytes]) -> None:
    """Interrupt a process group as Ctrl-C would, so that a stage cleans up; then terminate, then kill it."""
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            os.killpg(leader.pid, number)
            deadline = time.monotonic() + GRACE_SECONDS
            while time.monotonic() < deadline:
                leader.poll()  # a process that has not been waited for counts as alive
                os.killpg(leader.pid, 0)
                time.sleep(0.05)
    except ProcessLookupError:
        leader.wait()


if __name__ == "__main__":
    # A background job of a shell starts with SIGINT ignored; the command would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    main()
