"""Time to start and stop Ray in a `dvc repro` with params.yaml's settings.

    python -m benchmarks.ray_startup [--rounds 1] [--json FILE]

All stages run in a temporary project, with 20 training steps instead of thousands, which start and stop do
not depend on. For each stage that uses Ray:

- import: of Ray's packages, after everything else that a stage imports;
- start: from `ray.init` until a worker begins its work: Ray's processes, placement of the workers, and their
import of
  torch and personlab;
- end: from the end of the work until `ray.shutdown` has returned. This includes the driver's work on the
result of a
  training (reading a checkpoint, exporting weights), so it is an upper bound.

The overhead of Ray between start and end is measured by benchmarks/batch.py (inference).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from benchmarks import trial

STAGES = ("estimator", "impute", "train", "infer")
_EVENTS = "PERSONLAB_BENCHMARK_EVENTS"  # file that all processes of a stage write to
_IMPORTED = """
import time, cv2, numpy, pandas, pyarrow.parquet, torch.utils.data, torch.nn.parallel
import personlab.predictor, personlab.training.engine, personlab.data.loader, personlab.tables.schema
start = time.monotonic()
import ray, ray.data{also}
print(time.monotonic() - start)
"""


@dataclass(frozen=True)
class Cost:
    """Seconds that Ray takes in a stage."""

    stage: str
    imported: float
    start: float
    end: float

    @property
    def whole(self) -> float:
        return self.imported + self.start + self.end


def main() -> None:
    options = _options()
    rounds = [measure() for _ in range(options.rounds)]
    costs = [_median([cost for costs in rounds for cost in costs if cost.stage == stage]) for stage in STAGES]
    Console().print(table(costs))
    print("rounds:", *(f"{sum(cost.whole for cost in costs):.1f} s" for costs in rounds))
    if options.json:
        options.json.write_text(
            json.dumps([[asdict(cost) for cost in costs] for costs in rounds], indent=1) + "\n"
        )


def measure() -> list[Cost]:
    """The costs of every stage, once."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        params = yaml.safe_load((trial.ROOT / "params.yaml").read_text())
        params["estimator"]["steps"] = params["train"]["steps"] = 20
        (root / "params.yaml").write_text(yaml.safe_dump(params))
        for stage in ("acquire", "ingest"):
            trial.run(root, stage)
        costs = [_cost("estimator", root), _cost("impute", root)]
        trial.run(root, "targets")
        return [*costs, _cost("train", root), _cost("infer", root)]


def _cost(stage: str, root: Path) -> Cost:
    events = root / f"{stage}.events"
    own = os.environ | {"PYTHONPATH": str(trial.ROOT), _EVENTS: str(events)}
    also = ", ray.train.torch" if stage in ("estimator", "train") else ""
    imported = subprocess.run(
        [sys.executable, "-c", _IMPORTED.format(also=also)], env=own, check=True, capture_output=True
    )
    command = [sys.executable, "-c", f"from benchmarks import ray_startup; ray_startup.observe('{stage}')"]
    subprocess.run(command, cwd=root, env=own, check=True)
    seen = [json.loads(line) for line in events.read_text().splitlines()]
    at = {name: [time for event, time in seen if event == name] for name in ("init", "begin", "end", "down")}
    start, end = min(at["begin"]) - min(at["init"]), max(at["down"]) - max(at["end"])
    return Cost(stage, float(imported.stdout), start, end)


def _median(costs: list[Cost]) -> Cost:
    imported, start, end = (
        statistics.median(getattr(cost, name) for cost in costs) for name in ("imported", "start", "end")
    )
    return Cost(costs[0].stage, imported, start, end)


def table(costs: list[Cost]) -> Table:
    """A row for each stage, and their sum."""
    shown = Table("stage", "import s", "start s", "end s", "sum s", title="Ray's start and end")
    for cost in costs:
        seconds = (cost.imported, cost.start, cost.end, cost.whole)
        shown.add_row(cost.stage, *(f"{each:.1f}" for each in seconds))
    shown.add_section()
    shown.add_row("all", "", "", "", f"{sum(cost.whole for cost in costs):.1f}")
    return shown


# --- in the stage's processes -------------------------------------------------------------------------------


def observe(stage: str) -> None:
    """Run a stage in the current folder and note when Ray and the work begin and end."""
    import ray

    from personlab import params
    from personlab.distributed import batch
    from personlab.stages import estimator, impute, infer, train

    # workers import the stages anew and find the original functions
    ray.init = _noted(ray.init, before="init")
    ray.shutdown = _noted(ray.shutdown, after="down")
    estimator._train_worker = _estimator_work
    train._work = _train_work
    impute._Actor = _observed(impute._Actor)  # type: ignore[misc]
    batch._Actor = _observed(batch._Actor)  # type: ignore[misc]
    modules = {"estimator": estimator, "impute": impute, "train": train, "infer": infer}
    modules[stage].run(params.load(Path("params.yaml")), Path.cwd())


def _note(event: str) -> None:
    with Path(os.environ[_EVENTS]).open("a") as file:
        file.write(json.dumps([event, time.time()]) + "\n")


def _noted(work: Callable[..., Any], *, before: str = "", after: str = "") -> Callable[..., Any]:
    def noted(*args: Any, **named: Any) -> Any:
        if before:
            _note(before)
        result = work(*args, **named)
        if after:
            _note(after)
        return result

    return noted


def _estimator_work(config: dict[str, Any]) -> None:
    from personlab.stages import estimator

    _noted(estimator._train_worker, before="begin", after="end")(config)


def _train_work(config: dict[str, Any]) -> None:
    from personlab.stages import train

    _noted(train._work, before="begin", after="end")(config)


def _observed(actor: Any) -> Any:
    """An actor class that records when its objects are created and when they return a result."""

    class Observed(actor):  # type: ignore[misc]
        def __init__(self, *args: Any) -> None:
            _note("begin")
            super().__init__(*args)

        def __call__(self, *args: Any) -> Any:
            result = super().__call__(*args)
            _note("end")
            return result

    return Observed


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ray_startup", description="Measure what starting Ray costs."
    )
    parser.add_argument("--rounds", type=int, default=1, metavar="N")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    return parser.parse_args()


if __name__ == "__main__":
    main()
