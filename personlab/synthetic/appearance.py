"""How rendered people look: skin, hair, face and clothes, as textures of the surfaces in `raycast`.

Textures are functions of the part's own coordinates, so that front differs from back, and left from right.
"""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from personlab.people import FloatArray
from personlab.synthetic.pose import Rng, choose
from personlab.synthetic.raycast import Texture

Colour = FloatArray  # 3, RGB in 0..1

EYE: Final = (0.4, 0.08)  # u, t of an eye, in radii of the skull; it lies on the surface
COLLAR: Final = 0.225  # t of the shirt's upper edge, statures above the waist

# From light to dark.
SKIN_TONES: Final = (
    (0.96, 0.80, 0.69),
    (0.91, 0.72, 0.58),
    (0.80, 0.60, 0.45),
    (0.65, 0.46, 0.33),
    (0.45, 0.30, 0.21),
    (0.31, 0.21, 0.16),
)
# Black, browns, blonds, grey, red.
HAIR_COLOURS: Final = (
    (0.07, 0.06, 0.06),
    (0.17, 0.11, 0.07),
    (0.33, 0.21, 0.12),
    (0.62, 0.45, 0.22),
    (0.83, 0.70, 0.44),
    (0.62, 0.61, 0.60),
    (0.48, 0.20, 0.08),
)


@dataclass(frozen=True)
class Appearance:
    skin: Colour
    hair: Colour
    shirt: Texture
    trousers: Texture
    shoes: Colour
    trim: Colour  # of the shirt; also the hat and the backpack
    sleeve_length: float  # fraction of the arm, from the shoulder, that the shirt covers
    trouser_length: float  # fraction of the leg, from the hip, that the trousers cover
    skirt: bool
    hairline: float  # t above which the forehead has hair, in radii of the skull
    bald: bool
    long_hair: bool
    beard: bool
    glasses: bool
    hat: bool
    backpack: bool
    neckline: float  # depth, statures
    placket: bool
    chest_print: bool
    back_number: bool


def random_appearance(rng: Rng) -> Appearance:
    bald = rng.random() < 0.07
    shorts = rng.random() < 0.35
    return Appearance(
        skin=_tone(rng, SKIN_TONES),
        hair=_tone(rng, HAIR_COLOURS),
        shirt=_random_fabric(rng),
        trousers=_random_fabric(rng, muted=True),
        shoes=_dye(rng),
        trim=_dye(rng),
        sleeve_length=float(rng.choice([0.0, rng.uniform(0.25, 0.45), 1.0], p=[0.12, 0.45, 0.43])),
        trouser_length=rng.uniform(0.22, 0.5) if shorts else 1.0,
        skirt=rng.random() < 0.14,
        hairline=rng.uniform(0.42, 0.68),
        bald=bald,
        long_hair=not bald and rng.random() < 0.3,
        beard=rng.random() < 0.15,
        glasses=rng.random() < 0.15,
        hat=rng.random() < 0.15,
        backpack=rng.random() < 0.1,
        neckline=rng.uniform(0.03, 0.09),
        placket=rng.random() < 0.35,
        chest_print=rng.random() < 0.35,
        back_number=rng.random() < 0.15,
    )


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


def _tone(rng: Rng, tones: Sequence[tuple[float, float, float]]) -> Colour:
    """A random variation of one of the tones."""
    tone = np.array(tones[int(rng.integers(len(tones)))], np.float32) * np.float32(rng.normal(1, 0.07))
    varied: Colour = np.clip(tone + rng.normal(0, 0.015, 3).astype(np.float32), 0.03, 1)
    return varied


# --- textures ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fabric:
    """Cloth of one colour or a pattern of two, with folds."""

    first: Colour
    second: Colour
    pattern: str  # plain, hoops (around the part), stripes (along it) or checks
    period: float  # of the pattern, statures
    phase: float  # of the folds, radians

    def __call__(self, u: FloatArray, t: FloatArray, w: FloatArray) -> FloatArray:
        folds = (1 + 0.07 * np.sin(70 * t + 40 * u + self.phase) * np.sin(55 * u - 30 * w))[:, None]
        if self.pattern == "plain":
            plain: FloatArray = self.first * folds
            return plain
        hoop = (t / self.period) % 1 < 0.5
        stripe = (u / self.period) % 1 < 0.5
        second = {"hoops": hoop, "stripes": stripe, "checks": hoop ^ stripe}[self.pattern]
        colour: FloatArray = np.where(second[:, None], self.second, self.first) * folds
        return colour


def solid(colour: Colour) -> Texture:
    return lambda u, t, w: np.broadcast_to(colour, (len(u), 3))


def split(inner: Texture, outer: Texture, at: float) -> Texture:
    """`inner` up to t = `at` and `outer` beyond: a sleeve and the arm, a trouser leg and the shin."""
    return lambda u, t, w: np.where((t < at)[:, None], inner(u, t, w), outer(u, t, w))


@dataclass(frozen=True)
class Shirt:
    """The shirt on the chest, with its neckline, placket, print and number; t is measured from the waist."""

    appearance: Appearance

    def __call__(self, u: FloatArray, t: FloatArray, w: FloatArray) -> FloatArray:
        look = self.appearance
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


@dataclass(frozen=True)
class Face:
    """The head: hair behind and above, a face in front. radii: of the skull, along u, t, w."""

    appearance: Appearance
    radii: tuple[float, float, float]

    def __call__(self, u: FloatArray, t: FloatArray, w: FloatArray) -> FloatArray:
        look = self.appearance
        u, t, w = (np.divide(x, radius) for x, radius in zip((np.abs(u), t, w), self.radii, strict=True))
        front, beside, above = w > 0, np.abs(u - EYE[0]), t - EYE[1]
        colour = np.empty((len(u), 3), np.float32)
        colour[:] = look.skin
        if look.beard:
            colour[(w > -0.1) & (t < -0.3)] = 0.8 * look.hair + 0.2 * look.skin
        colour[front & (u < 0.33) & (np.abs(t + 0.52) < 0.07)] = look.skin * np.array(
            [0.85, 0.5, 0.5], np.float32
        )
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
