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
) -> tuple[FloatArray, FloatArray]:
    """Render surfaces on an image of `size` (H, W).

    light: unit vector from the surface to the light, camera space. Returns colours (H x W x 3, RGB in 0..1)
    and depths (H x W, statures), which are infinite where there is no surface.
    """
    colour, depth = np.zeros((*size, 3), np.float32), np.full(size, np.inf, np.float32)
    for quadric in quadrics:
        _cast(quadric, camera, light, colour, depth)
    return colour, depth


def _cast(quadric: Quadric, camera: Camera, light: FloatArray, colour: FloatArray, depth: FloatArray) -> None:
    """Intersect a ray per pixel with the surface; keep hits nearer than `depth`."""
    box, limit = camera.project(quadric.corners())[:, :2], depth.shape[::-1]
    left, top = np.floor(box.min(0)).clip(0, limit).astype(int)
    right, bottom = (np.ceil(box.max(0)) + 1).clip(0, limit).astype(int)
    colour, depth = colour[top:bottom, left:right], depth[top:bottom, left:right]
    origin = camera.rotation @ quadric.origin
    axes = quadric.axes @ camera.rotation.T  # rows: u, t, w in camera space
    x = (np.arange(left, right, dtype=np.float32) - np.float32(camera.shift[0])) / np.float32(camera.scale)
    y = (np.arange(top, bottom, dtype=np.float32) - np.float32(camera.shift[1])) / np.float32(camera.scale)
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
