"""The rule of promotion: a paired bootstrap over images compares a candidate with the champion.

Both models are scored on the same resamplings of the images, so the interval is that of their difference,
without the variance between images. A task is *worse* if the interval that holds 95% of the differences of AP
lies below zero, *better* if it lies above.

The default rule requires a significant improvement: of two equally good models one nearly always has the
higher AP in one of the tasks, and promotions on that evidence would let the quality drift downwards.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from pycocotools.coco import COCO

from personlab.metrics import bootstrap
from personlab.metrics.coco import KEYPOINT_BUDGET, Task, match
from personlab.metrics.report import TITLES
from personlab.people import Detection

Rule = Literal["better", "not-worse", "always", "never"]
RULES: Final[Mapping[Rule, str]] = {
    "better": "one task significantly better, none significantly worse",
    "not-worse": "one task with a higher AP, none significantly worse",
    "always": "whatever the scores are",
    "never": "compared and reported only",
}
COVERAGE: Final = 0.95
_SAMPLES: Final = 1000
_TASKS: Final[tuple[Task, ...]] = ("keypoints", "segm")


@dataclass(frozen=True)
class Predictions:
    """The predictions of a model on the validation images, by image id."""

    people: Mapping[int, Sequence[Detection]]
    max_people: int  # masks per image that count, as in its evaluation


@dataclass(frozen=True)
class Comparison:
    """The APs of both models in one task; NaN without any annotated people."""

    task: Task
    champion: float
    candidate: float
    low: float  # 95% interval of the difference candidate - champion
    high: float

    @property
    def worse(self) -> bool:
        return self.high < 0

    @property
    def better(self) -> bool:
        return self.low > 0

    def __str__(self) -> str:
        if math.isnan(self.candidate - self.champion):
            return f"{TITLES[self.task]}: no annotated people"
        change, interval = self.candidate - self.champion, f"{self.low:+.3f} to {self.high:+.3f}"
        outcome = "better" if self.better else "worse" if self.worse else "no significant difference"
        aps = f"AP {self.champion:.3f} -> {self.candidate:.3f}"
        return f"{TITLES[self.task]}: {aps}, {change:+.3f} ({COVERAGE:.0%}: {interval}), {outcome}"


@dataclass(frozen=True)
class Verdict:
    promoted: bool
    why: str  # one line
    comparisons: tuple[Comparison, ...] = ()  # empty if nothing was compared
    unchanged: bool = False  # the candidate is the champion

    @property
    def outcome(self) -> str:
        return "promoted" if self.promoted else "unchanged" if self.unchanged else "not promoted"

    def __str__(self) -> str:
        head = f"{self.outcome}: {self.why}"
        return "\n".join((head, *(f"  {comparison}" for comparison in self.comparisons)))


def compare(truth: COCO, champion: Predictions, candidate: Predictions) -> tuple[Comparison, ...]:
    """Compare the APs of two models on the images of `truth`, task by task."""
    return tuple(_compare(truth, champion, candidate, task) for task in _TASKS)


def decide(comparisons: tuple[Comparison, ...], rule: Rule) -> Verdict:
    """Apply a rule; a task without annotated people does not count."""
    return Verdict(*_decide(comparisons, rule), comparisons)


def _compare(truth: COCO, champion: Predictions, candidate: Predictions, task: Task) -> Comparison:
    old, new = (
        match(truth, model.people, task, KEYPOINT_BUDGET if task == "keypoints" else model.max_people)
        for model in (champion, candidate)
    )
    before, after = (bootstrap.resampled_ap(model, samples=_SAMPLES) for model in (old, new))
    low, high = bootstrap.interval(after - before, COVERAGE)
    return Comparison(task, old.columns()["AP"], new.columns()["AP"], low, high)


def _decide(comparisons: Sequence[Comparison], rule: Rule) -> tuple[bool, str]:
    if rule in ("always", "never"):
        return rule == "always", f"the rule says {rule}"
    if worse := _names(each for each in comparisons if each.worse):
        return False, f"{worse} got worse"
    if better := _names(each for each in comparisons if each.better):
        return True, f"{better} got better, nothing got worse"
    if rule == "better":
        return False, "nothing got better beyond chance"
    if higher := _names(each for each in comparisons if each.candidate > each.champion):
        return True, f"nothing got worse beyond chance, AP of {higher} is higher"
    return False, "no AP is higher"


def _names(comparisons: Iterable[Comparison]) -> str:
    return " and ".join(TITLES[each.task].lower() for each in comparisons)
