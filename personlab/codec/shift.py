"""Mean shift: each traced keypoint moves towards the votes around it.

Tracing follows the offsets of one place after the other; the score maps hold the votes of all places.
"""

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor

from personlab.codec.hough import HoughMap, bins_between
from personlab.codec.loops import Array, array, compiled, dot, total

# Deviation of the kernel: this share of lambda_j kappa_k, the tolerance of OKS, but at least this share of R.
OF_TOLERANCE: Final = 1 / 2
OF_RADIUS: Final = 1 / 8


def mean_shift(
    hough: HoughMap,
    keypoints: Tensor,
    extents: Tensor,
    *,
    radius: float,
    kappas: Sequence[float],
) -> Tensor:
    """One step of mean shift on the score maps: N x K x 2, frame pixels.

        y <- sum_x h_k(x) g(x) x / sum_x h_k(x) g(x),    g(x) = exp(-|x - y|^2 / (2 sigma^2))

    The sums run over the bins within `radius`; sigma is half of lambda_j kappa_k, at least radius / 8. A
    keypoint without votes there stays where it is.

    Args:
        keypoints: N x K x 2, frame pixels.
        extents: lambda_j: N, frame pixels.
    """
    sigma = (OF_TOLERANCE * extents[:, None] * keypoints.new_tensor(kappas)).clamp(min=OF_RADIUS * radius)
    return torch.from_numpy(
        _mean_shift(array(hough.score), hough.bin, array(keypoints), array(sigma), radius)
    )


@compiled
def _mean_shift(score: Array, bin: float, keypoints: Array, sigma: Array, radius: float) -> Array:
    shifted = keypoints.copy()
    rows, columns = score.shape[1:]
    weights, moments = np.empty(columns, score.dtype), np.empty(columns, score.dtype)
    for k in range(score.shape[0]):  # one map after the other: memory bounds the speed
        for n in range(len(keypoints)):
            x, y = keypoints[n, k]
            spread = 2 * sigma[n, k] ** 2
            left, right = bins_between(x - radius, x + radius, bin, columns)
            for j in range(left, right):  # the exponential of a sum of squares is a product
                dx = bin * j - x
                weights[j] = math.exp(-(dx**2) / spread)
                moments[j] = weights[j] * dx
            mass = to_right = down = 0.0
            for i in range(*bins_between(y - radius, y + radius, bin, rows)):
                if total(score[k, i, left:right]) == 0:
                    continue
                dy = bin * i - y
                half = math.sqrt(max(radius**2 - dy**2, 0.0))
                first, last = bins_between(x - half, x + half, bin, columns)
                row, vertical = score[k, i, first:last], math.exp(-(dy**2) / spread)
                in_row = vertical * dot(row, weights[first:last])
                mass += in_row
                down += in_row * dy
                to_right += vertical * dot(row, moments[first:last])
            if mass > 0:
                shifted[n, k] = x + to_right / mass, y + down / mass
    return shifted
