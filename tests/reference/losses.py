"""The five losses, one position at a time, in plain floats."""

import math

from personlab.codec.fields import Fields, Targets
from tests.coco_person import E, K


def losses(fields: Fields, targets: Targets, *, radius: float, pos_weight: float = 1.0) -> dict[str, float]:
    batch, height, width = fields.seg.shape
    cells = [(b, i, j) for b in range(batch) for i in range(height) for j in range(width)]
    wanted = targets.fields
    return {
        "heatmap": _mean(
            _logistic(float(fields.heatmap[b, k, i, j]), float(wanted.heatmap[b, k, i, j]), pos_weight)
            for b, i, j in cells
            for k in range(K)
            if targets.heatmap_valid[b, k, i, j]
        ),
        "seg": _mean(
            _logistic(float(fields.seg[b, i, j]), float(wanted.seg[b, i, j]), pos_weight)
            for b, i, j in cells
            if targets.seg_valid[b, i, j]
        ),
        "short": _mean(
            _l1(fields.short[b, k, :, i, j], wanted.short[b, k, :, i, j]) / radius
            for b, i, j in cells
            for k in range(K)
            if wanted.heatmap[b, k, i, j] == 1
        ),
        "mid": _mean(
            _l1(fields.mid[b, e, :, i, j], wanted.mid[b, e, :, i, j]) / radius
            for b, i, j in cells
            for e in range(E)
            if targets.mid_valid[b, e, i, j]
        ),
        "long": _mean(
            _l1(fields.long[b, k, :, i, j], wanted.long[b, k, :, i, j]) / radius
            for b, i, j in cells
            for k in range(K)
            if targets.long_valid[b, k, i, j]
        ),
    }


def _mean(values) -> float:
    values = list(values)
    return math.fsum(values) / len(values) if values else 0.0


def _logistic(logit: float, wanted: float, pos_weight: float) -> float:
    probability = 1 / (1 + math.exp(-logit))
    return -pos_weight * wanted * math.log(probability) - (1 - wanted) * math.log(1 - probability)


def _l1(offset, wanted) -> float:
    return abs(float(offset[0]) - float(wanted[0])) + abs(float(offset[1]) - float(wanted[1]))
