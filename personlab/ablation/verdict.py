"""Whether a difference between two rows goes the way the paper's does.

Both rows are scored on the same resamplings of the validation images (a paired bootstrap): the interval is of
their difference alone, not of how hard the images are. It says nothing of chance in training: a row that
retrains does so once.
"""

from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
import numpy.typing as npt

from personlab.metrics import bootstrap

Verdict = Literal["agrees", "disagrees", "undecided"]


@dataclass(frozen=True)
class Difference:
    """Of one column, a row's value minus the baseline's; NaN where there is nobody to find."""

    ours: float
    low: float  # where ours lies in 95% of the resamplings
    high: float
    paper: float

    @classmethod
    def between(
        cls,
        row: tuple[float, npt.ArrayLike],
        baseline: tuple[float, npt.ArrayLike],
        paper: float,
    ) -> Self:
        """row, baseline: a value, and what it is on each of the same resamplings (S)."""
        resampled = np.asarray(row[1], dtype=float) - np.asarray(baseline[1], dtype=float)
        low, high = bootstrap.interval(resampled)
        return cls(row[0] - baseline[0], low, high, paper)

    @property
    def verdict(self) -> Verdict:
        """Undecided where the interval holds 0, or where the paper's difference is 0 and has no direction."""
        decided = self.low > 0 or self.high < 0  # false for NaN
        if not decided or self.paper == 0:
            return "undecided"
        return "agrees" if (self.low > 0) == (self.paper > 0) else "disagrees"
