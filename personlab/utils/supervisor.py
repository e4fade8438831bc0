"""Run a command that does not outlive whoever started it: `python leash.py COMMAND...`.

The starter holds a pipe to our standard input. When the command ends, or the pipe does (closed, or its holder
interrupted, killed, gone), the command's whole process group is ended, and we with its status. A Prefect
runner kills its flows outright when it stops, so a flow cannot be relied on to end its stage itself; a runner
that is killed ends no flow at all.

Needs nothing but the standard library: it is run as a file, before each stage, the server and the runner.
"""

import os
import signal
import subprocess
import sys
import threading
import time

# seconds a group gets to end by itself after SIGINT, and again after SIGTERM
PATIENCE = 10.0


def main() -> None:
    command = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, start_new_session=True)
    held = threading.Thread(target=sys.stdin.buffer.read, daemon=True)
    held.start()
    while held.is_alive() and command.poll() is None:
        time.sleep(0.05)
    end_group(command)
    status = command.returncode
    # what is still waiting for input must not hold up the exit
    os._exit(status if status >= 0 else 128 - status)  # as shells say that a signal ended it


def end_group(leader: subprocess.Popen[bytes]) -> None:
    """Interrupt the group as Ctrl-C would, which lets a stage clean up; insist if it does not end."""
    try:
        for request in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            os.killpg(leader.pid, request)
            deadline = time.monotonic() + PATIENCE
            while time.monotonic() < deadline:
                leader.poll()  # a leader nobody has waited for counts as alive
                os.killpg(leader.pid, 0)
                time.sleep(0.05)
    except ProcessLookupError:
        leader.wait()


if __name__ == "__main__":
    # a shell's background job starts with SIGINT ignored, and would hand that down to the command
    signal.signal(signal.SIGINT, signal.default_int_handler)
    main()
