"""The actor of a training run's progress, in a module that its process imports without Ray Train."""

import ray


@ray.remote(num_cpus=0)
class ProgressBoard:
    """Actor that holds the step count, the log lines and the permanent failure of a run."""

    def __init__(self) -> None:
        self.step = 0
        self.lines: list[str] = []
        self.reason: str | None = None

    def post(self, step: int, line: str | None = None) -> None:
        """Set the number of finished steps, and add a line for the driver's log."""
        self.step = step
        self.lines += [line] if line else []

    def read(self) -> tuple[int, list[str]]:
        """Finished steps, and the log lines since the last call."""
        lines, self.lines = self.lines, []
        return self.step, lines

    def fail(self, reason: str) -> None:
        """Record a permanent failure."""
        self.reason = reason

    def failure(self) -> str | None:
        """Reason of the permanent failure, if there was one."""
        return self.reason
