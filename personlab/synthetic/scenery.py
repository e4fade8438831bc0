"""Backgrounds, and the objects in front of and behind rendered people: furniture, poles, bushes.

Positions and sizes are in canvas pixels. `size` of an object is the height of a person who stands beside it.
"""

import colorsys
from collections.abc import Callable
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from personlab.people import FloatArray
from personlab.synthetic.canvas import Canvas, to_bytes
from personlab.synthetic.pose import Rng, choose

# (hue, greatest saturation) of common surfaces: sky, leaves, wood, brick, sand, concrete.
TINTS: Final = ((0.58, 0.5), (0.28, 0.5), (0.08, 0.55), (0.02, 0.5), (0.12, 0.35), (0.6, 0.15))


def _random_colour(rng: Rng, low: float = 0.12, high: float = 0.92) -> FloatArray:
    """A colour of brightness low..high, usually of one of the TINTS."""
    hue, most = TINTS[rng.integers(len(TINTS))] if rng.random() < 0.85 else (rng.random(), 0.9)
    rgb = colorsys.hsv_to_rgb((hue + rng.normal(0, 0.03)) % 1, rng.uniform(0, most), rng.uniform(low, high))
    return np.array(rgb, np.float32)


def paint_background(canvas: Canvas, rng: Rng, horizon: float) -> None:
    """Fill the canvas: a wall or the sky, the ground, distant objects, and a texture over all.

    horizon: the row where the ground begins.
    """
    h, w = canvas.size
    row = round(horizon)
    canvas.rgb[:row] = _gradient(rng, row, w)
    canvas.rgb[row:] = _gradient(rng, h - row, w)
    _paint_ground_lines(canvas, rng, horizon)
    for _ in range(rng.integers(0, 9)):
        _window(canvas, rng, horizon)
    for _ in range(rng.integers(0, 4)):
        size = rng.uniform(0.08, 0.3) * h
        _bush(canvas, rng, rng.uniform(0, w), horizon + rng.uniform(0, 0.1) * h, size)
    for _ in range(rng.integers(0, 7)):
        _stick(canvas, rng, rng.uniform(0, w), rng.uniform(0.2, 1) * h, rng.uniform(0.05, 0.35) * h)
    _paint_texture(canvas, rng)


def _gradient(rng: Rng, h: int, w: int) -> npt.NDArray[np.uint8]:
    """h x w x 3: a smooth blend of four similar corner colours."""
    corners = _random_colour(rng) + rng.normal(0, 0.06, (4, 3)).astype(np.float32)
    blend = cv2.resize(corners.reshape(2, 2, 3), (w, max(h, 1)), interpolation=cv2.INTER_LINEAR)[:h]
    gradient: npt.NDArray[np.uint8] = (blend.clip(0, 1) * 255).astype(np.uint8)
    return gradient


def _paint_texture(canvas: Canvas, rng: Rng) -> None:
    """Multiply by noise of several scales, as of plaster, grass or gravel."""
    h, w = canvas.size
    strength = rng.uniform(0.01, 0.09)
    field = np.ones((h, w), np.float32)
    for cell in (160, 40, 10, 4):
        coarse = rng.standard_normal((h // cell + 2, w // cell + 2), dtype=np.float32) * np.float32(strength)
        field += cv2.resize(coarse, (w, h), interpolation=cv2.INTER_LINEAR)
    canvas.rgb[:] = cv2.multiply(canvas.rgb, cv2.merge([field] * 3), dtype=cv2.CV_8U)


def _paint_ground_lines(canvas: Canvas, rng: Rng, horizon: float) -> None:
    """Planks, tiles or lanes that run to a vanishing point, on a third of the canvases."""
    h, w = canvas.size
    if rng.random() < 0.65:
        return
    vanishing = rng.uniform(0.2, 0.8) * w
    ground = canvas.rgb[-1].mean(0).astype(np.float32) / 255
    colour = to_bytes(ground + rng.choice((-1, 1)) * rng.uniform(0.05, 0.3))
    thickness = int(rng.integers(1, 6))
    for foot in np.arange(-2 * w, 3 * w, rng.uniform(0.2, 0.7) * w):
        cv2.line(canvas.rgb, (round(vanishing), round(horizon)), (round(float(foot)), h), colour, thickness)
    if rng.random() < 0.6:
        for distance in np.cumsum(np.geomspace(4, 0.5 * h, 9)):
            row = round(horizon + distance)
            cv2.line(canvas.rgb, (0, row), (w, row), colour, thickness)


def _window(canvas: Canvas, rng: Rng, horizon: float) -> None:
    """A framed rectangle: a window, picture, door or distant building."""
    h, w = canvas.size
    width, height = rng.uniform(0.03, 0.3) * w, rng.uniform(0.05, 0.5) * h
    left = rng.uniform(-0.1, 1) * w
    bottom = horizon if rng.random() < 0.5 else rng.uniform(0.1, 1) * horizon
    corners = np.array([(0, -1), (1, -1), (1, 0), (0, 0)], np.float32) * (width, height) + (left, bottom)
    middle = corners.mean(0)
    canvas.polygon(corners, _random_colour(rng))
    canvas.polygon((corners - middle) * rng.uniform(0.6, 0.93) + middle, _random_colour(rng))


def _box(canvas: Canvas, rng: Rng, x: float, ground: float, size: float) -> None:
    """A crate, cupboard, counter or car: a block with a front, a top and a side."""
    width, height = size * rng.uniform(0.4, 1.6), size * rng.uniform(0.25, 0.7)
    depth, slant = size * rng.uniform(0.05, 0.25), size * rng.uniform(-0.3, 0.3)
    colour = _random_colour(rng)
    foot = np.array((x, ground), np.float32)
    front = foot + np.array([(-0.5, -1), (0.5, -1), (0.5, 0), (-0.5, 0)], np.float32) * (width, height)
    back = front + np.array((slant, -depth), np.float32)
    side = [1, 2] if slant > 0 else [0, 3]
    canvas.polygon(np.concatenate([front[side], back[side[::-1]]]), 0.7 * colour)
    canvas.polygon(np.concatenate([front[:2], back[1::-1]]), 1.2 * colour)
    canvas.polygon(front, colour)
    for _ in range(rng.integers(0, 4)):  # drawers, doors, labels
        a, b = rng.uniform(0.05, 0.6, 2)
        panel = np.array([(a, b), (a + 0.3, b), (a + 0.3, b + 0.3), (a, b + 0.3)], np.float32)
        canvas.polygon(front[0] + panel * (width, height), colour * rng.uniform(0.6, 1.3))


def _table(canvas: Canvas, rng: Rng, x: float, ground: float, size: float) -> None:
    width, height = size * rng.uniform(0.6, 1.4), 0.42 * size
    colour = _random_colour(rng)
    for leg in (-0.46, 0.42):
        canvas.rectangle(x + leg * width, ground - height, 0.04 * width, height, 0.7 * colour)
    top = np.array([(-0.5, 0), (0.5, 0), (0.42, -0.14), (-0.42, -0.14)], np.float32) * (width, size)
    canvas.polygon(top + np.array((x, ground - height), np.float32), 1.15 * colour)
    canvas.rectangle(x - width / 2, ground - height, width, 0.04 * size, colour)


def _pole(canvas: Canvas, rng: Rng, x: float, ground: float, size: float) -> None:
    """A lamp post, tree trunk or column, in bands of different brightness."""
    width, height = size * rng.uniform(0.05, 0.16), size * rng.uniform(1.2, 3)
    colour, lean = _random_colour(rng, 0.1, 0.7), rng.normal(0, 0.03) * height
    for band, shade in enumerate((0.65, 0.9, 1.1, 1.0, 0.75)):
        left, right = x + width * (band / 5 - 0.5), x + width * ((band + 1) / 5 - 0.5)
        top = ground - height
        corners = [(left + lean, top), (right + lean, top), (right, ground), (left, ground)]
        canvas.polygon(np.array(corners, np.float32), shade * colour)


def _bush(canvas: Canvas, rng: Rng, x: float, ground: float, size: float) -> None:
    """Many leaves of similar greens and browns."""
    green = np.array([0.25, 0.4, 0.15], np.float32) * np.float32(rng.uniform(0.5, 1.4))
    colour = green + rng.normal(0, 0.05, 3)
    spread = size * rng.uniform(0.3, 0.7)
    for _ in range(rng.integers(40, 130)):
        at = (x + rng.normal(0, 0.4) * spread, ground - abs(rng.normal(0, 0.4)) * size * 0.8)
        leaf = size * rng.uniform(0.02, 0.07)
        shade = (colour * rng.uniform(0.55, 1.5)).astype(np.float32)
        canvas.ellipse(at, (leaf, leaf * rng.uniform(0.3, 1)), rng.uniform(0, 180), shade)


def _stick(canvas: Canvas, rng: Rng, x: float, ground: float, size: float) -> None:
    """A branch, rail, bottle or bat: shaped and shaded like an arm or leg, in 1 to 3 segments."""
    angle, colour = rng.uniform(0, 2 * np.pi), _random_colour(rng)
    start, thick = np.array((x, ground), np.float32), size * rng.uniform(0.06, 0.2)
    for _ in range(rng.integers(1, 4)):
        along = np.array((np.cos(angle), np.sin(angle)), np.float32)
        across = np.array((-along[1], along[0]), np.float32)
        end, thin = start + along * np.float32(0.5 * size), thick * rng.uniform(0.6, 1)
        for shift, shade in ((-0.25, 0.75), (0.25, 0.9), (0.0, 1.05)):
            a, b = start + shift * thick * across, end + shift * thin * across
            wide, narrow = thick / 4 * across, thin / 4 * across
            canvas.polygon(np.stack([a - wide, b - narrow, b + narrow, a + wide]), shade * colour)
        canvas.ellipse((float(end[0]), float(end[1])), (thin / 2, thin / 2), 0, 0.95 * colour)
        start, thick, angle = end, thin, angle + rng.normal(0, 0.7)


def draw_object(canvas: Canvas, rng: Rng, x: float, ground: float, size: float) -> None:
    """Draw a random object that stands at (x, ground)."""
    kinds: tuple[Callable[[Canvas, Rng, float, float, float], None], ...]
    kinds = (_box, _table, _pole, _bush, _stick)
    choose(rng, kinds, (0.3, 0.18, 0.2, 0.2, 0.12))(canvas, rng, x, ground, size)


def draw_seat(canvas: Canvas, rng: Rng, x: float, seat: float, ground: float, size: float) -> None:
    """Draw a stool or block from row `seat`, its top, to row `ground`."""
    width, colour = size * rng.uniform(0.22, 0.4), _random_colour(rng)
    top = np.array([(-0.5, 0), (0.5, 0), (0.4, -0.12), (-0.4, -0.12)], np.float32) * (width, size) + (x, seat)
    if rng.random() < 0.5:
        for leg in (-0.5, 0.4):
            canvas.rectangle(x + leg * width, seat, 0.1 * width, ground - seat, 0.6 * colour)
        canvas.rectangle(x - width / 2, seat, width, 0.05 * size, 0.8 * colour)
    else:
        canvas.rectangle(x - width / 2, seat, width, ground - seat, 0.8 * colour)
    canvas.polygon(top, colour)


def draw_backrest(canvas: Canvas, rng: Rng, x: float, seat: float, size: float) -> None:
    """Draw the back of a chair above row `seat`."""
    width, height = size * rng.uniform(0.24, 0.36), size * rng.uniform(0.15, 0.3)
    colour = _random_colour(rng)
    canvas.rectangle(x - width / 2, seat - height, width, height + 0.04 * size, colour)
    canvas.rectangle(x - 0.4 * width, seat - 0.9 * height, 0.8 * width, 0.3 * height, 0.8 * colour)
