"""Ray-casting shaded quadrics into a colour and depth window: what the rendered people are made of.

One primitive serves every body part: a surface with an elliptic cross-section whose size changes along
its axis,

    (u / a)^2 + (w / b)^2 = c0 + c1 t + c2 t^2,    first <= t <= last,

in the part's own frame (u across, t along, w to the front). An ellipsoid has c = (1, 0, -1 / half^2); a
tapered limb has c = (1 + slope t)^2. Under parallel projection every pixel solves one quadratic, so depth
(and with it who hides whom) is exact.

Lengths are in statures (a body is 1 tall). View space is x right, y down, z away from the camera.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from personlab.people import FloatArray

# Colours (N x 3, RGB in 0..1) of N surface points, given their u, t, w in statures.
Paint = Callable[[FloatArray, FloatArray, FloatArray], FloatArray]


@dataclass(frozen=True)
class Quadric:
    origin: FloatArray  # 3, in the body's frame
    axes: FloatArray  # 3 x 3, rows are the unit vectors of u, t, w in the body's frame
    half: tuple[float, float]  # a, b: half widths along u and w where the profile is 1
    profile: tuple[float, float, float]  # c0, c1, c2
    span: tuple[float, float]  # first, last t
    paint: Paint

    def corners(self) -> FloatArray:
        """The 8 corners (8 x 3, body frame) of a box that holds the surface."""
        c0, c1, c2 = self.profile
        turning = [-c1 / (2 * c2)] if c2 and self.span[0] < -c1 / (2 * c2) < self.span[1] else []
        widest = max(c0 + c1 * t + c2 * t * t for t in (*self.span, *turning)) ** 0.5
        a, b = self.half[0] * widest, self.half[1] * widest
        box = [(u, t, w) for u in (-a, a) for t in self.span for w in (-b, b)]
        return self.origin + np.array(box, np.float32) @ self.axes


def ellipsoid(
    centre: FloatArray, axes: FloatArray, half: tuple[float, float, float], paint: Paint
) -> Quadric:
    """An ellipsoid with half axes (u, t, w)."""
    u, t, w = half
    return Quadric(centre, axes, (u, w), (1.0, 0.0, -1.0 / t**2), (-t, t), paint)


def sphere(centre: FloatArray, axes: FloatArray, radius: float, paint: Paint) -> Quadric:
    return ellipsoid(centre, axes, (radius, radius, radius), paint)


def cone(
    start: FloatArray,
    axes: FloatArray,
    length: float,
    half: tuple[float, float],
    taper: float,
    paint: Paint,
) -> Quadric:
    """A tapered tube of the given length along t; its cross-section shrinks from `half` by `taper`."""
    slope = (taper - 1.0) / length
    return Quadric(start, axes, half, (1.0, 2 * slope, slope * slope), (0.0, length), paint)


@dataclass(frozen=True)
class View:
    """Where a body stands before the camera: rotate, scale (pixels per stature), shift (pixels)."""

    rotation: FloatArray  # 3 x 3, body frame to view space
    scale: float
    shift: tuple[float, float]

    def project(self, points: FloatArray) -> FloatArray:
        """Pixels and depth (N x 3: x, y, z; z in statures) of N points of the body's frame."""
        seen = points @ self.rotation.T
        seen[:, :2] = seen[:, :2] * np.float32(self.scale) + np.array(self.shift, np.float32)
        return seen


@dataclass(frozen=True)
class Window:
    """A rendered rectangle of the image; nothing was hit where `depth` is infinite."""

    top: int
    left: int
    colour: FloatArray  # h x w x 3, RGB in 0..1
    depth: FloatArray  # h x w, statures

    @property
    def slices(self) -> tuple[slice, slice]:
        h, w = self.depth.shape
        return slice(self.top, self.top + h), slice(self.left, self.left + w)


Bounds = tuple[int, int, int, int]  # top, bottom, left, right; bottom and right exclusive


def _bounds(points: FloatArray, limit: Bounds) -> Bounds:
    """The pixels of `limit` that the projected points' box covers."""
    (left, top), (right, bottom) = np.floor(points[:, :2].min(0)), np.ceil(points[:, :2].max(0))
    return (
        max(int(top), limit[0]),
        min(int(bottom) + 1, limit[1]),
        max(int(left), limit[2]),
        min(int(right) + 1, limit[3]),
    )


def render(
    quadrics: Sequence[Quadric], view: View, light: FloatArray, size: tuple[int, int]
) -> Window | None:
    """Draw the surfaces into the part of an image of `size` (height, width) that they cover.

    `light` points from the surface to the lamp (3, unit length, view space). None if all is outside.
    """
    boxes = [view.project(quadric.corners()) for quadric in quadrics]
    top, bottom, left, right = _bounds(np.concatenate(boxes), (0, size[0], 0, size[1]))
    if top >= bottom or left >= right:
        return None
    window = Window(
        top,
        left,
        np.zeros((bottom - top, right - left, 3), np.float32),
        np.full((bottom - top, right - left), np.inf, np.float32),
    )
    for quadric, box in zip(quadrics, boxes, strict=True):
        bounds = _bounds(box, (top, bottom, left, right))
        if bounds[0] < bounds[1] and bounds[2] < bounds[3]:
            _cast(quadric, view, light, window, bounds)
    return window


def _cast(quadric: Quadric, view: View, light: FloatArray, window: Window, bounds: Bounds) -> None:
    """Intersect one ray per pixel with the surface and keep what is nearer than the window's depth."""
    top, bottom, left, right = bounds
    origin = view.rotation @ quadric.origin
    axes = quadric.axes @ view.rotation.T  # rows: u, t, w in view space
    x = (np.arange(left, right, dtype=np.float32) - np.float32(view.shift[0])) / np.float32(view.scale)
    y = (np.arange(top, bottom, dtype=np.float32) - np.float32(view.shift[1])) / np.float32(view.scale)
    x, y = x[None, :] - origin[0], y[:, None] - origin[1]
    u, t, w = (axis[0] * x + axis[1] * y for axis in axes)
    du, dt, dw = (float(axis[2]) for axis in axes)

    c0, c1, c2 = quadric.profile
    ia, ib = quadric.half[0] ** -2, quadric.half[1] ** -2
    A = du * du * ia + dw * dw * ib - c2 * dt * dt
    if A <= 1e-6:  # looking into the end of a cone: the caps at its joints are all that shows
        return
    B = (du * ia) * u + (dw * ib) * w - (c2 * dt) * t - c1 * dt / 2
    C = ia * u * u + ib * w * w - c0 - c1 * t - c2 * t * t
    z = (-B - np.sqrt(np.maximum(B * B - A * C, 0))) / A
    along = t + dt * z
    depth = window.depth[top - window.top : bottom - window.top, left - window.left : right - window.left]
    hit = (B * B > A * C) & (along >= quadric.span[0]) & (along <= quadric.span[1]) & (z + origin[2] < depth)
    if not hit.any():
        return
    rows, columns = np.nonzero(hit)
    z, along = z[rows, columns], along[rows, columns]
    u, w = u[rows, columns] + du * z, w[rows, columns] + dw * z
    depth[rows, columns] = z + origin[2]
    lamp: FloatArray = np.matmul(axes, light)
    normal = np.stack([ia * u, -c1 / 2 - c2 * along, ib * w])
    shade = _shade(normal, lamp)
    colour = quadric.paint(u, along, w) * shade[:, None]
    window.colour[rows + (top - window.top), columns + (left - window.left)] = colour


def _shade(normal: FloatArray, light: FloatArray) -> FloatArray:
    """Brightness of surface points: soft (wrapped) diffuse light over an ambient floor."""
    facing = (light @ normal) / np.sqrt((normal * normal).sum(0) + 1e-12)
    shade: FloatArray = 0.42 + 0.68 * np.maximum(0.5 + 0.5 * facing, 0.0) ** 1.5
    return shade
