"""What the compiled loops of the decoder share: the decorator, host arrays, and the bilinear sampler.

Decoding looks only at what it needs: bins that votes have reached, seeds that are not claimed yet, cells that
show people, pixels on the rims of masks. Such loops are fast on a CPU core once they are compiled, which
numba does when a loop is first called (about ten seconds in all); the machine code is cached beside these
files. `python -m personlab.codec.warmup` compiles them beforehand.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
from numba import njit
from torch import Tensor

Array = npt.NDArray[np.floating]
Index = npt.NDArray[np.int64]
Function = TypeVar("Function", bound=Callable[..., Any])

# Rows above and below, columns left and right, and the shares of the right column and the lower row.
Cell = tuple[int, int, int, int, float, float]


def compiled(function: Function) -> Function:
    """Compile a loop with numba when it is first called. Other threads run beside it."""
    return _compiled(function)


def summed(function: Function) -> Function:
    """Compile a loop that may add in any order, so that several values are added at a time."""
    return _compiled(function, fastmath={"reassoc", "contract"})


def _compiled(function: Function, **options: Any) -> Function:
    try:
        return cast(Function, njit(cache=True, nogil=True, **options)(function))
    except RuntimeError:  # neither this folder nor the user's cache can be written to
        return cast(Function, njit(nogil=True, **options)(function))


def array(tensor: Tensor) -> npt.NDArray[Any]:
    """A tensor as a contiguous array on the host; no copy if it is one already."""
    values: npt.NDArray[Any] = tensor.detach().cpu().contiguous().numpy()
    return values


@compiled
def cell_at(x: float, y: float, height: int, width: int) -> Cell:
    """The four cells around the position (x, y), in cells; outside the map, those at its border."""
    x = min(max(0.0, x), width - 1.0)
    y = min(max(0.0, y), height - 1.0)
    left, top = int(x), int(y)
    return top, min(top + 1, height - 1), left, min(left + 1, width - 1), x - left, y - top


@compiled
def sample(field: Array, cell: Cell) -> float:
    """The field (H x W), interpolated bilinearly."""
    top, bottom, left, right, across, down = cell
    upper = field[top, left] + across * (field[top, right] - field[top, left])
    lower = field[bottom, left] + across * (field[bottom, right] - field[bottom, left])
    return float(upper + down * (lower - upper))


@summed
def total(row: Array) -> float:
    """The sum of a row."""
    result = row.dtype.type(0)
    for value in row:
        result += value
    return float(result)


@summed
def dot(row: Array, weights: Array) -> float:
    """The sum of a row, weighted."""
    result = row.dtype.type(0)
    for index in range(len(row)):
        result += row[index] * weights[index]
    return float(result)
