"""Any output stride from one set of weights: layers stop striding and the ones after them dilate instead."""

from collections.abc import Iterator, Sequence


def atrous(strides: Sequence[int], output_stride: int) -> Iterator[tuple[int, int]]:
    """(stride, dilation) of each layer of a network whose layers stride by `strides` in turn.

    A layer that would pass `output_stride` no longer strides. It keeps the dilation of the layers before it,
    since it still reads the same grid, only at more positions; those after it dilate by its stride.
    """
    reached, dilation = 1, 1
    for stride in strides:
        if reached * stride > output_stride:
            yield 1, dilation
            dilation *= stride
        else:
            yield stride, dilation
            reached *= stride
