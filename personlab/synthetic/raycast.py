"""Ray casting of shaded quadrics, the surfaces that rendered people are made of.

Every body part is a surface with an elliptic cross-section whose size changes along its axis:

    (u / a)^2 + (w / b)^2 = c0 + c1 t + c2 t^2,    first <= t <= last,

in the part's own frame (u across, t along, w to the front). An ellipsoid has c = (1, 0, -1 / radius^2), a
tapered limb has c = (1 + slope t)^2. Under parallel projection each pixel solves one quadratic equation, so
depth and occlusion are exact.

Lengths are in statures (a body is 1 tall). Camera space is x right, y down, z away from the camera.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from personlab.people import FloatArray

# Maps the u, t, w of N surface points, in statures, to colours (N x 3, RGB in 0..1).
Texture = Callable[[FloatArray, FloatArray, FloatArray], FloatArray]
Triple = tuple[float, float, float]
Window = tuple[slice, slice]  # rows and columns


@dataclass(frozen=True)
class Quadric:
    origin: FloatArray  # 3, body frame
    axes: FloatArray  # 3 x 3, rows are the unit vectors of u, t, w in the body frame
    radii: tuple[float, float]  # a, b: along u and w, where the profile is 1
    profile: Triple  # c0, c1, c2
    span: tuple[float, float]  # first, last t
    texture: Texture

    def corners(self) -> FloatArray:
        """The corners (8 x 3, body frame) of a box that contains the surface."""
        c0, c1, c2 = self.profile
        extremum = [-c1 / (2 * c2)] if c2 and self.span[0] < -c1 / (2 * c2) < self.span[1] else []
        widest = max(c0 + c1 * t + c2 * t * t for t in (*self.span, *extremum)) ** 0.5
        a, b = self.radii[0] * widest, self.radii[1] * widest
        box = [(u, t, w) for u in (-a, a) for t in self.span for w in (-b, b)]
        return self.origin + np.array(box, np.float32) @ self.axes


def ellipsoid(centre: FloatArray, axes: FloatArray, radii: Triple, texture: Texture) -> Quadric:
    """An ellipsoid with radii along (u, t, w)."""
    u, t, w = radii
    return Quadric(centre, axes, (u, w), (1.0, 0.0, -1.0 / t**2), (-t, t), texture)


def sphere(centre: FloatArray, axes: FloatArray, radius: float, texture: Texture) -> Quadric:
    return ellipsoid(centre, axes, (radius, radius, radius), texture)


def cone(
    start: FloatArray,
    axes: FloatArray,
    length: float,
    radii: tuple[float, float],
    taper: float,
    texture: Texture,
) -> Quadric:
    """A tube from t = 0 to `length`; its radii (u, w) change linearly from `radii` to `taper` times that."""
    slope = (taper - 1.0) / length
    return Quadric(start, axes, radii, (1.0, 2 * slope, slope * slope), (0.0, length), texture)


@dataclass(frozen=True)
class Camera:
    """A weak-perspective camera: rotation, scale and translation."""

    rotation: FloatArray  # 3 x 3, body frame to camera space
    scale: float  # pixels per stature
    shift: tuple[float, float]  # x, y in pixels

    def project(self, points: FloatArray) -> FloatArray:
        """Project N x 3 points of the body frame to N x 3: x, y in pixels and depth in statures."""
        projected = points @ self.rotation.T
        projected[:, :2] = projected[:, :2] * np.float32(self.scale) + np.array(self.shift, np.float32)
        return projected


def render(
    quadrics: Sequence[Quadric], camera: Camera, light: FloatArray, size: tuple[int, int]
) -> tuple[Window, FloatArray, FloatArray]:
    """Render surfaces on an image of `size` (height, width).

    light: unit vector from the surface to the light, camera space. Returns the part of the image that holds
    the surfaces, its colours (h x w x 3, RGB in 0..1) and its depths (h x w, statures), which are infinite,
    and the colours undefined, where there is no surface.
    """
    boxes = [camera.project(quadric.corners()) for quadric in quadrics]
    window = _window(np.concatenate(boxes), size)
    colour, depth = np.empty((*size, 3), np.float32), np.empty(size, np.float32)
    depth[window] = np.inf  # the rest of the image is never touched, so it takes no time
    for quadric, box in zip(quadrics, boxes, strict=True):
        part = _window(box, size)
        _cast(quadric, camera, light, part, colour[part], depth[part])
    return window, colour[window], depth[window]


def _window(points: FloatArray, size: tuple[int, int]) -> Window:
    """The bounding box of projected points, clipped to the image."""
    first = np.floor(points[:, :2].min(0)).clip(0, size[::-1]).astype(int)
    last = (np.ceil(points[:, :2].max(0)) + 1).clip(0, size[::-1]).astype(int)
    return slice(first[1], last[1]), slice(first[0], last[0])


def _cast(
    quadric: Quadric, camera: Camera, light: FloatArray, window: Window, colour: FloatArray, depth: FloatArray
) -> None:
    """Intersect a ray per pixel of the window with the surface; keep hits nearer than `depth`."""
    rows, columns = window
    origin = camera.rotation @ quadric.origin
    axes = quadric.axes @ camera.rotation.T  # rows: u, t, w in camera space
    (left, top), scale = np.array(camera.shift, np.float32), np.float32(camera.scale)
    x = (np.arange(columns.start, columns.stop, dtype=np.float32) - left) / scale
    y = (np.arange(rows.start, rows.stop, dtype=np.float32) - top) / scale
    x, y = x[None, :] - origin[0], y[:, None] - origin[1]
    u, t, w = (axis[0] * x + axis[1] * y for axis in axes)
    du, dt, dw = (float(axis[2]) for axis in axes)

    c0, c1, c2 = quadric.profile
    ia, ib = quadric.radii[0] ** -2, quadric.radii[1] ** -2
    A = du * du * ia + dw * dw * ib - c2 * dt * dt
    if A <= 1e-6:  # along the axis of a cone: only the spheres at its ends are visible
        return
    B = (du * ia) * u + (dw * ib) * w - (c2 * dt) * t - c1 * dt / 2
    C = ia * u * u + ib * w * w - c0 - c1 * t - c2 * t * t
    z = (-B - np.sqrt(np.maximum(B * B - A * C, 0))) / A
    along = t + dt * z
    hit = (B * B > A * C) & (along >= quadric.span[0]) & (along <= quadric.span[1]) & (z + origin[2] < depth)
    if not hit.any():
        return
    z, along = z[hit], along[hit]
    u, w = u[hit] + du * z, w[hit] + dw * z
    depth[hit] = z + origin[2]
    normals = np.stack([ia * u, -c1 / 2 - c2 * along, ib * w])
    shade = _shade(normals, np.matmul(axes, light))
    colour[hit] = quadric.texture(u, along, w) * shade[:, None]


def _shade(normals: FloatArray, light: FloatArray) -> FloatArray:
    """Brightness of N surface points (normals 3 x N): wrapped diffuse light over ambient light."""
    facing = (light @ normals) / np.sqrt((normals * normals).sum(0) + 1e-12)
    shade: FloatArray = 0.42 + 0.68 * np.maximum(0.5 + 0.5 * facing, 0.0) ** 1.5
    return shade
