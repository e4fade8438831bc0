"""Tensors as arrays that compiled loops can walk through, and the one way to look into a field."""

import numpy as np
import numpy.typing as npt
from numba import njit
from torch import Tensor

Array = npt.NDArray[np.floating]
Index = npt.NDArray[np.int64]
Cell = tuple[int, int, int, int, float, float]  # top, bottom, left, right; shares of the right and the bottom


def array(tensor: Tensor) -> Array:
    values: Array = tensor.detach().contiguous().numpy()
    return values


@njit(cache=True)  # type: ignore[untyped-decorator]
def cell_at(x: float, y: float, height: int, width: int) -> Cell:
    """Where a place (in cells) lies among the four cells around it; beyond the map, on its border."""
    x = min(max(0.0, x), width - 1.0)
    y = min(max(0.0, y), height - 1.0)
    left, top = int(x), int(y)
    return top, min(top + 1, height - 1), left, min(left + 1, width - 1), x - left, y - top


@njit(cache=True)  # type: ignore[untyped-decorator]
def sample(field: Array, cell: Cell) -> float:
    """The field (H x W), interpolated bilinearly."""
    top, bottom, left, right, across, down = cell
    upper = field[top, left] + across * (field[top, right] - field[top, left])
    lower = field[bottom, left] + across * (field[bottom, right] - field[bottom, left])
    return float(upper + down * (lower - upper))
