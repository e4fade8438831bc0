"""What rendered people stand in front of and behind: backgrounds, furniture, poles, foliage, clutter.

Everything is drawn at twice the final resolution, so that scaling down smooths the edges of the picture
while the map of who owns which pixel stays sharp.
"""

import colorsys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from personlab.people import BoolArray, FloatArray
from personlab.synthetic.pose import Rng, pick
from personlab.synthetic.quadric import Window

SUPERSAMPLING: Final = 2
NOBODY: Final = 0


@dataclass(frozen=True)
class Canvas:
    """The picture being drawn, nearest things last. Owners are numbers from 1; NOBODY is scenery."""

    rgb: npt.NDArray[np.uint8]  # h x w x 3
    owner: npt.NDArray[np.uint8]  # h x w
    depth: FloatArray  # h x w, of the owner's surface

    @classmethod
    def blank(cls, width: int, height: int) -> "Canvas":
        """For an image of width x height pixels; the canvas has SUPERSAMPLING times as many each way."""
        h, w = SUPERSAMPLING * height, SUPERSAMPLING * width
        return cls(
            np.zeros((h, w, 3), np.uint8),
            np.full((h, w), NOBODY, np.uint8),
            np.zeros((h, w), np.float32),
        )

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.owner.shape[0], self.owner.shape[1]

    def polygon(self, points: FloatArray, colour: FloatArray) -> None:
        """Fill a polygon (N x 2, canvas pixels) of scenery."""
        corners = np.round(points).astype(np.int32)
        cv2.fillPoly(self.rgb, [corners], _bytes(colour))
        cv2.fillPoly(self.owner, [corners], NOBODY)

    def ellipse(
        self, centre: tuple[float, float], half: tuple[float, float], angle: float, colour: FloatArray
    ) -> None:
        """Fill an ellipse of scenery; half axes in canvas pixels, angle in degrees."""
        at = round(centre[0]), round(centre[1])
        axes = max(round(half[0]), 1), max(round(half[1]), 1)
        cv2.ellipse(self.rgb, at, axes, angle, 0, 360, _bytes(colour), -1)
        cv2.ellipse(self.owner, at, axes, angle, 0, 360, NOBODY, -1)

    def paste(self, window: Window, owner: int) -> None:
        """Put a rendered window in front of all that has been drawn."""
        drawn: BoolArray = np.isfinite(window.depth)
        self.rgb[window.slices][drawn] = (window.colour[drawn].clip(0, 1) * 255).astype(np.uint8)
        self.owner[window.slices][drawn] = owner
        self.depth[window.slices][drawn] = window.depth[drawn]

    def shadow(self, centre: tuple[float, float], half: tuple[float, float], strength: float) -> None:
        """Darken the ground (and whoever lies on it) in an ellipse, softly."""
        h, w = self.size
        left, right = max(int(centre[0] - half[0]), 0), min(int(centre[0] + half[0]) + 1, w)
        top, bottom = max(int(centre[1] - half[1]), 0), min(int(centre[1] + half[1]) + 1, h)
        if left >= right or top >= bottom:
            return
        x = (np.arange(left, right, dtype=np.float32) - centre[0]) / half[0]
        y = (np.arange(top, bottom, dtype=np.float32) - centre[1]) / half[1]
        dark = 1 - strength * np.maximum(1 - x[None, :] ** 2 - y[:, None] ** 2, 0)
        patch = self.rgb[top:bottom, left:right]
        patch[:] = (patch * dark[..., None]).astype(np.uint8)


def _bytes(colour: FloatArray) -> tuple[int, int, int]:
    red, green, blue = (int(channel) for channel in np.clip(colour * 255, 0, 255))
    return red, green, blue


# Hue and greatest saturation of what places are made of: sky, leaves, wood, brick, sand, anything.
TINTS: Final = ((0.58, 0.5), (0.28, 0.5), (0.08, 0.55), (0.02, 0.5), (0.12, 0.35), (0.6, 0.15))


def _colour(rng: Rng, low: float = 0.12, high: float = 0.92) -> FloatArray:
    """A random colour of random brightness, mostly a muted one."""
    hue, most = TINTS[rng.integers(len(TINTS))] if rng.random() < 0.85 else (rng.random(), 0.9)
    rgb = colorsys.hsv_to_rgb((hue + rng.normal(0, 0.03)) % 1, rng.uniform(0, most), rng.uniform(low, high))
    return np.array(rgb, np.float32)


def paint_backdrop(canvas: Canvas, rng: Rng, horizon: float) -> None:
    """Fill the canvas with a place: wall or sky, ground, texture, and things that are not people.

    `horizon` is where wall or sky and ground meet, in canvas pixels from the top.
    """
    h, w = canvas.size
    row = round(horizon)
    canvas.rgb[:row] = _gradient(rng, row, w)
    canvas.rgb[row:] = _gradient(rng, h - row, w)
    _ground_lines(canvas, rng, horizon)
    for _ in range(rng.integers(0, 9)):
        _rectangle(canvas, rng, horizon)
    for _ in range(rng.integers(0, 4)):
        reach = rng.uniform(0.08, 0.3) * h
        _foliage(canvas, rng, rng.uniform(0, w), horizon + rng.uniform(0, 0.1) * h, reach)
    for _ in range(rng.integers(0, 7)):
        _stick(canvas, rng, rng.uniform(0, w), rng.uniform(0.2, 1) * h, rng.uniform(0.05, 0.35) * h)
    _texture(canvas, rng)


def _gradient(rng: Rng, h: int, w: int) -> npt.NDArray[np.uint8]:
    """A smooth blend of four corner colours that resemble each other."""
    corners = _colour(rng) + rng.normal(0, 0.06, (4, 3)).astype(np.float32)
    blend = cv2.resize(corners.reshape(2, 2, 3), (w, max(h, 1)), interpolation=cv2.INTER_LINEAR)[:h]
    gradient: npt.NDArray[np.uint8] = (blend.clip(0, 1) * 255).astype(np.uint8)
    return gradient


def _texture(canvas: Canvas, rng: Rng) -> None:
    """Multiply by blotches of several sizes: plaster, grass, gravel."""
    h, w = canvas.size
    strength = rng.uniform(0.01, 0.09)
    field = np.ones((h, w), np.float32)
    for cell in (160, 40, 10, 4):
        coarse = rng.standard_normal((h // cell + 2, w // cell + 2), dtype=np.float32) * np.float32(strength)
        field += cv2.resize(coarse, (w, h), interpolation=cv2.INTER_LINEAR)
    canvas.rgb[:] = cv2.multiply(canvas.rgb, cv2.merge([field] * 3), dtype=cv2.CV_8U)


def _ground_lines(canvas: Canvas, rng: Rng, horizon: float) -> None:
    """Planks, tiles or lanes that run to a vanishing point."""
    h, w = canvas.size
    if rng.random() < 0.65:
        return
    vanishing = rng.uniform(0.2, 0.8) * w
    ground = canvas.rgb[-1].mean(0).astype(np.float32) / 255
    colour = _bytes(ground + rng.choice((-1, 1)) * rng.uniform(0.05, 0.3))
    thick = int(rng.integers(1, 6))
    for foot in np.arange(-2 * w, 3 * w, rng.uniform(0.2, 0.7) * w):
        cv2.line(canvas.rgb, (round(vanishing), round(horizon)), (round(float(foot)), h), colour, thick)
    if rng.random() < 0.6:
        for near in np.cumsum(np.geomspace(4, 0.5 * h, 9)):
            cv2.line(canvas.rgb, (0, round(horizon + near)), (w, round(horizon + near)), colour, thick)


def _rectangle(canvas: Canvas, rng: Rng, horizon: float) -> None:
    """A window, picture, door or distant building."""
    h, w = canvas.size
    wide, high = rng.uniform(0.03, 0.3) * w, rng.uniform(0.05, 0.5) * h
    left = rng.uniform(-0.1, 1) * w
    bottom = horizon if rng.random() < 0.5 else rng.uniform(0.1, 1) * horizon
    corners = np.array([(0, -1), (1, -1), (1, 0), (0, 0)], np.float32) * (wide, high) + (left, bottom)
    canvas.polygon(corners, _colour(rng))
    inner = (corners - corners.mean(0)) * rng.uniform(0.6, 0.93) + corners.mean(0)
    canvas.polygon(inner, _colour(rng))


def _box(canvas: Canvas, rng: Rng, x: float, ground: float, size: float) -> None:
    """Furniture, a crate, a counter, a car: a block with a front, a top and a side."""
    wide, high = size * rng.uniform(0.4, 1.6), size * rng.uniform(0.25, 0.7)
    deep, slant = size * rng.uniform(0.05, 0.25), size * rng.uniform(-0.3, 0.3)
    colour = _colour(rng)
    foot = np.array((x, ground), np.float32)
    front = foot + np.array([(-0.5, -1), (0.5, -1), (0.5, 0), (-0.5, 0)], np.float32) * (wide, high)
    back = front + np.array((slant, -deep), np.float32)
    side = [1, 2] if slant > 0 else [0, 3]
    canvas.polygon(np.concatenate([front[side], back[side[::-1]]]), 0.7 * colour)
    canvas.polygon(np.concatenate([front[:2], back[1::-1]]), 1.2 * colour)
    canvas.polygon(front, colour)
    for _ in range(rng.integers(0, 4)):  # drawers, doors, labels
        a, b = rng.uniform(0.05, 0.6, 2)
        panel = front[0] + np.array([(a, b), (a + 0.3, b), (a + 0.3, b + 0.3), (a, b + 0.3)], np.float32) * (
            wide,
            high,
        )
        canvas.polygon(panel, colour * rng.uniform(0.6, 1.3))


def _table(canvas: Canvas, rng: Rng, x: float, ground: float, size: float) -> None:
    wide, high, thick = size * rng.uniform(0.6, 1.4), 0.42 * size, 0.04 * size
    colour = _colour(rng)
    for leg in (-0.46, 0.42):
        _rect(canvas, x + leg * wide, ground - high, 0.04 * wide, high, 0.7 * colour)
    top = np.array([(-0.5, 0), (0.5, 0), (0.42, -0.14), (-0.42, -0.14)], np.float32) * (wide, size)
    canvas.polygon(top + np.array((x, ground - high), np.float32), 1.15 * colour)
    _rect(canvas, x - wide / 2, ground - high, wide, thick, colour)


def _rect(canvas: Canvas, x: float, y: float, wide: float, high: float, colour: FloatArray) -> None:
    unit = np.array([(0, 0), (1, 0), (1, 1), (0, 1)], np.float32)
    canvas.polygon(unit * (wide, high) + (x, y), colour)


def _pole(canvas: Canvas, rng: Rng, x: float, ground: float, size: float) -> None:
    """A lamp post, tree trunk or column, rounded by bands of shade."""
    wide, high = size * rng.uniform(0.05, 0.16), size * rng.uniform(1.2, 3)
    colour, lean = _colour(rng, 0.1, 0.7), rng.normal(0, 0.03) * high
    shades = (0.65, 0.9, 1.1, 1.0, 0.75)
    for band, shade in enumerate(shades):
        left, right = x + wide * (band / 5 - 0.5), x + wide * ((band + 1) / 5 - 0.5)
        corners = [
            (left + lean, ground - high),
            (right + lean, ground - high),
            (right, ground),
            (left, ground),
        ]
        canvas.polygon(np.array(corners, np.float32), shade * colour)


def _foliage(canvas: Canvas, rng: Rng, x: float, ground: float, size: float) -> None:
    """A bush: many leaves of similar greens and browns."""
    base = np.array([0.25, 0.4, 0.15], np.float32) * np.float32(rng.uniform(0.5, 1.4)) + rng.normal(
        0, 0.05, 3
    )
    spread = size * rng.uniform(0.3, 0.7)
    for _ in range(rng.integers(40, 130)):
        at = (x + rng.normal(0, 0.4) * spread, ground - abs(rng.normal(0, 0.4)) * size * 0.8)
        leaf = size * rng.uniform(0.02, 0.07)
        shade = (base * rng.uniform(0.55, 1.5)).astype(np.float32)
        canvas.ellipse(at, (leaf, leaf * rng.uniform(0.3, 1)), rng.uniform(0, 180), shade)


def _stick(canvas: Canvas, rng: Rng, x: float, ground: float, size: float) -> None:
    """A branch, rail, bottle or bat: as long and round as an arm or a leg, and sometimes as bent."""
    angle, colour = rng.uniform(0, 2 * np.pi), _colour(rng)
    at, thick = np.array((x, ground), np.float32), size * rng.uniform(0.06, 0.2)
    for _ in range(rng.integers(1, 4)):
        along = np.array((np.cos(angle), np.sin(angle)), np.float32)
        across = np.array((-along[1], along[0]), np.float32)
        end, thin = at + along * np.float32(0.5 * size), thick * rng.uniform(0.6, 1)
        for shift, shade in ((-0.25, 0.75), (0.25, 0.9), (0.0, 1.05)):
            a, b = at + shift * thick * across, end + shift * thin * across
            ring = [
                a - thick / 4 * across,
                b - thin / 4 * across,
                b + thin / 4 * across,
                a + thick / 4 * across,
            ]
            canvas.polygon(np.stack(ring), shade * colour)
        canvas.ellipse((float(end[0]), float(end[1])), (thin / 2, thin / 2), 0, 0.95 * colour)
        at, thick, angle = end, thin, angle + rng.normal(0, 0.7)


def draw_prop(canvas: Canvas, rng: Rng, x: float, ground: float, size: float) -> None:
    """Draw a random object on the ground at (x, ground), beside which a person would be `size` tall.

    All in canvas pixels; it hides whoever was drawn before.
    """
    kinds: tuple[Callable[[Canvas, Rng, float, float, float], None], ...] = (
        _box,
        _table,
        _pole,
        _foliage,
        _stick,
    )
    pick(rng, kinds, (0.3, 0.18, 0.2, 0.2, 0.12))(canvas, rng, x, ground, size)


def draw_seat(canvas: Canvas, rng: Rng, x: float, seat: float, ground: float, size: float) -> None:
    """Draw a stool or block whose top is at height `seat`, from there to the ground."""
    wide, colour = size * rng.uniform(0.22, 0.4), _colour(rng)
    top = np.array([(-0.5, 0), (0.5, 0), (0.4, -0.12), (-0.4, -0.12)], np.float32) * (wide, size) + (x, seat)
    if rng.random() < 0.5:
        for leg in (-0.5, 0.4):
            _rect(canvas, x + leg * wide, seat, 0.1 * wide, ground - seat, 0.6 * colour)
        _rect(canvas, x - wide / 2, seat, wide, 0.05 * size, 0.8 * colour)
    else:
        _rect(canvas, x - wide / 2, seat, wide, ground - seat, 0.8 * colour)
    canvas.polygon(top, colour)


def draw_backrest(canvas: Canvas, rng: Rng, x: float, seat: float, size: float) -> None:
    """Draw the back of a chair above its seat."""
    wide, high, colour = size * rng.uniform(0.24, 0.36), size * rng.uniform(0.15, 0.3), _colour(rng)
    _rect(canvas, x - wide / 2, seat - high, wide, high + 0.04 * size, colour)
    _rect(canvas, x - 0.4 * wide, seat - 0.9 * high, 0.8 * wide, 0.3 * high, 0.8 * colour)
