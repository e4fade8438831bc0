"""Instance masks: which person pixels belong to which detected person (paper, section 3.2, equation 6)."""

from collections.abc import Iterator

import torch
from torch import Tensor

from personlab.codec.fields import Fields, cell_positions

# A pixel is a person's where p_S is at least this.
PERSON = 0.5


def embedding_distance(fields: Fields, keypoints: Tensor, present: Tensor, lambdas: Tensor) -> Tensor:
    """Equation 6: how far every cell's embedding is from every person, relative to the person's size.

    fields: one image, long-range offsets refined; keypoints N x K x 2 in input pixels; present N x K;
    lambdas N, input pixels. Returns N x H x W; cells outside the segmentation are infinitely far.
    """
    height, width = fields.seg.shape[-2:]
    person = fields.seg[0] >= PERSON
    position = cell_positions(height, width, fields.stride, fields.seg.device)
    embedding = (position + fields.long[0])[..., person].permute(0, 2, 1)  # K x cells x 2: G_k(x)
    weight = present / present.sum(1, keepdim=True).clamp(min=1e-6) / lambdas[:, None]
    distance = keypoints.new_full((len(keypoints), height, width), torch.inf)
    # The shortcut through inner products loses up to a pixel to cancellation, and is slower on points.
    apart = torch.cdist(
        keypoints.transpose(0, 1), embedding, compute_mode="donot_use_mm_for_euclid_dist"
    )  # K x N x cells
    distance[:, person] = torch.einsum("nk,knc->nc", weight, apart)
    distance[present.sum(1) == 0] = torch.inf  # nothing is there to belong to
    return distance


def disagreement(distance: Tensor, threshold: float) -> Tensor:
    """How far the embeddings of each person's cells are from that person on average; infinite without any.

    distance: N x H x W. A person's cells are those within the threshold. Returns N.
    """
    near = distance <= threshold
    total = torch.where(near, distance, 0.0).sum((1, 2))
    return torch.where(near.any(2).any(1), total / near.sum((1, 2)), torch.inf)


def full_resolution(
    seg: Tensor, distance: Tensor, *, step: float, height: int, width: int, threshold: float
) -> Iterator[Tensor]:
    """The mask of each person over the whole image, height x width bool, one at a time.

    seg H x W and distance N x H x W live on the output cells; image pixel (x, y) is cell (step * x,
    step * y). Both are interpolated bilinearly before they are cut at 0.5 and `threshold`; the distance is
    interpolated among the person cells alone, since elsewhere it means nothing, and counts as twice the
    threshold at most: how far away the person next to this one is does not move the border between them,
    which lies half-way between their cells. Pixels are assigned to every person close enough: the assignment
    is not exclusive.
    """
    rows, columns = (
        _interpolation(height, seg.shape[0], step, seg),
        _interpolation(width, seg.shape[1], step, seg),
    )
    person = (seg >= PERSON).float()
    for away in distance:
        mask = torch.zeros(height, width, dtype=torch.bool, device=seg.device)
        near = (away <= threshold).nonzero()
        if len(near):
            # Only cells next to a near one can bring a pixel under the threshold.
            (top, left), (bottom, right) = near.amin(0).tolist(), near.amax(0).tolist()
            cells = (slice(max(top - 1, 0), bottom + 2), slice(max(left - 1, 0), right + 2))
            y = _pixels_between(top - 1, bottom + 1, step, height)
            x = _pixels_between(left - 1, right + 1, step, width)
            down, across = rows[y, cells[0]], columns[x, cells[1]].T
            held = person[cells]
            reached = torch.where(held > 0, away[cells].clamp(max=2 * threshold), 0.0)
            total = down @ held @ across
            near_enough = (down @ reached @ across) <= threshold * total
            mask[y, x] = near_enough & (total > 0) & (down @ seg[cells] @ across >= PERSON)
        yield mask


def _interpolation(pixels: int, cells: int, step: float, like: Tensor) -> Tensor:
    """Bilinear weights of the cells for each pixel: pixels x cells; the border value holds outside."""
    position = (torch.arange(pixels, device=like.device, dtype=like.dtype) * step).clamp(max=cells - 1)
    index = torch.arange(cells, device=like.device, dtype=like.dtype)
    return (1 - (position[:, None] - index).abs()).clamp(min=0)


def _pixels_between(first: int, last: int, step: float, pixels: int) -> slice:
    """The pixels that lie between cells `first` and `last`, within the image."""
    return slice(max(int(first / step) + (first > 0), 0), min(int(last / step) + 1, pixels))
