"""How rendered people look: skin, hair, face and clothes, as textures of the surfaces in `raycast`.

Textures are functions of the part's own coordinates, so that front differs from back, and left from right.
"""

import colorsys
from dataclasses import dataclass
from typing import Final

import numpy as np

from personlab.people import FloatArray
from personlab.synthetic.pose import Rng, choose
from personlab.synthetic.raycast import Texture, Triple

Colour = FloatArray  # 3, RGB in 0..1
Tones = tuple[Triple, ...]

EYE: Final = (0.4, 0.08)  # u, t of an eye, in radii of the skull; it lies on the surface
COLLAR: Final = 0.225  # t of the shirt's upper edge, statures above the waist
LIP: Final = np.array([0.85, 0.5, 0.5], np.float32)  # relative to the skin

SKIN_TONES: Final[Tones] = (  # from light to dark
    *((0.96, 0.80, 0.69), (0.91, 0.72, 0.58), (0.80, 0.60, 0.45)),
    *((0.65, 0.46, 0.33), (0.45, 0.30, 0.21), (0.31, 0.21, 0.16)),
)
HAIR_COLOURS: Final[Tones] = (  # black, browns, blonds, grey, red
    *((0.07, 0.06, 0.06), (0.17, 0.11, 0.07), (0.33, 0.21, 0.12), (0.62, 0.45, 0.22)),
    *((0.83, 0.70, 0.44), (0.62, 0.61, 0.60), (0.48, 0.20, 0.08)),
)


class Appearance:
    """The random look of a person."""

    def __init__(self, rng: Rng) -> None:
        self.bald = rng.random() < 0.07
        shorts = rng.random() < 0.35
        self.skin = _tone(rng, SKIN_TONES)
        self.hair = _tone(rng, HAIR_COLOURS)
        self.shirt: Texture = _random_fabric(rng)
        self.trousers: Texture = _random_fabric(rng, muted=True)
        self.shoes = _dye(rng)
        self.trim = _dye(rng)  # of the shirt; also the hat and the backpack
        # fractions of the arm from the shoulder and of the leg from the hip that are covered
        self.sleeve_length = float(rng.choice([0.0, rng.uniform(0.25, 0.45), 1.0], p=[0.12, 0.45, 0.43]))
        self.trouser_length = rng.uniform(0.22, 0.5) if shorts else 1.0
        self.skirt = rng.random() < 0.14
        self.hairline = rng.uniform(0.42, 0.68)  # t above which the forehead has hair, in radii of the skull
        self.long_hair = not self.bald and rng.random() < 0.3
        self.beard = rng.random() < 0.15
        self.glasses = rng.random() < 0.15
        self.hat = rng.random() < 0.15
        self.backpack = rng.random() < 0.1
        self.neckline = rng.uniform(0.03, 0.09)  # depth, statures
        self.placket = rng.random() < 0.35
        self.chest_print = rng.random() < 0.35
        self.back_number = rng.random() < 0.15


def _random_fabric(rng: Rng, *, muted: bool = False) -> "Fabric":
    patterns = ("plain", "hoops", "stripes", "checks")
    pattern = choose(rng, patterns, (0.85, 0.03, 0.06, 0.06) if muted else (0.6, 0.2, 0.08, 0.12))
    first = _dye(rng)
    if muted:
        first = (0.35 * first + 0.65 * first.mean()).astype(np.float32)
    return Fabric(first, _dye(rng), pattern, rng.uniform(0.03, 0.08), rng.uniform(0, 6))


def _dye(rng: Rng) -> Colour:
    """A random colour of cloth."""
    hue, value = rng.random(), rng.beta(1.6, 1.3)
    return np.array(colorsys.hsv_to_rgb(hue, rng.beta(1.2, 1.6), 0.08 + 0.87 * value), np.float32)


def _tone(rng: Rng, tones: Tones) -> Colour:
    """A random variation of one of the tones."""
    tone = np.array(tones[int(rng.integers(len(tones)))], np.float32) * np.float32(rng.normal(1, 0.07))
    varied: Colour = np.clip(tone + rng.normal(0, 0.015, 3).astype(np.float32), 0.03, 1)
    return varied


@dataclass(frozen=True)
class Fabric:
    """Cloth of one colour or a pattern of two, with folds."""

    first: Colour
    second: Colour
    pattern: str  # plain, hoops (around the part), stripes (along it) or checks
    period: float  # of the pattern, statures
    phase: float  # of the folds, radians

    def __call__(self, u: FloatArray, t: FloatArray, w: FloatArray) -> FloatArray:
        hoop, stripe = (t / self.period) % 1 < 0.5, (u / self.period) % 1 < 0.5
        plain = np.zeros_like(hoop)
        second = {"plain": plain, "hoops": hoop, "stripes": stripe, "checks": hoop ^ stripe}[self.pattern]
        folds = 1 + 0.07 * np.sin(70 * t + 40 * u + self.phase) * np.sin(55 * u - 30 * w)
        colour: FloatArray = np.where(second[:, None], self.second, self.first) * folds[:, None]
        return colour


def solid(colour: Colour) -> Texture:
    return lambda u, t, w: np.broadcast_to(colour, (len(u), 3))


def split(inner: Texture, outer: Texture, at: float) -> Texture:
    """`inner` up to t = `at` and `outer` beyond: a sleeve and the arm, a trouser leg and the shin."""
    return lambda u, t, w: np.where((t < at)[:, None], inner(u, t, w), outer(u, t, w))


def shirt(look: Appearance, u: FloatArray, t: FloatArray, w: FloatArray) -> FloatArray:
    """The shirt on the chest, with its neckline, placket, print and number; t is measured from the waist."""
    colour: FloatArray = np.array(look.shirt(u, t, w), np.float32)
    front, across = w > 0, np.abs(u)
    below = np.abs(t - COLLAR + 0.085)
    if look.placket:
        colour[front & (across < 0.007)] = look.trim
    if look.chest_print:
        colour[front & (across < 0.04) & (below < 0.026)] = look.trim
    if look.back_number:
        colour[~front & (np.abs(across - 0.022) < 0.012) & (below < 0.04)] = look.trim
    colour[front & (t > COLLAR - look.neckline + 1.1 * across)] = look.skin
    return colour


def face(look: Appearance, radii: Triple, u: FloatArray, t: FloatArray, w: FloatArray) -> FloatArray:
    """The head: hair behind and above, a face in front. radii: of the skull, along u, t, w."""
    u, t, w = (np.divide(x, radius) for x, radius in zip((np.abs(u), t, w), radii, strict=True))
    front, beside, above = w > 0, np.abs(u - EYE[0]), t - EYE[1]
    colour = np.tile(look.skin, (len(u), 1))
    if look.beard:
        colour[(w > -0.1) & (t < -0.3)] = 0.8 * look.hair + 0.2 * look.skin
    colour[front & (u < 0.33) & (np.abs(t + 0.52) < 0.07)] = look.skin * LIP
    colour[front & (beside < 0.24) & (np.abs(above - 0.24) < 0.05)] = 0.6 * look.hair
    eye = np.hypot(beside, 1.4 * above)
    colour[front & (eye < 0.16)] = 0.93
    colour[front & (eye < 0.11)] = (0.12, 0.08, 0.06)
    if look.glasses:
        colour[front & (np.maximum(beside / 1.2, np.abs(above)) < 0.2)] = 0.08
    if not look.bald:
        side = np.where(t > 0.2, 0.25, -0.15)  # the hair reaches further forward at the temples
        colour[((w < side) & (t > -0.65)) | (t > look.hairline)] = look.hair
    return colour
