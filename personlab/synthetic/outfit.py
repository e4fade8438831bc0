"""What rendered people look like: skin, hair, faces and clothes, as paints of the surfaces in `quadric`.

A paint is given surface points in the part's own frame, so fronts differ from backs and a person's left
can be told from the right whenever the front or the back shows.
"""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from personlab.people import FloatArray
from personlab.synthetic.pose import Rng, pick
from personlab.synthetic.quadric import Paint

Colour = FloatArray  # 3, RGB in 0..1


@dataclass(frozen=True)
class Fabric:
    """Cloth: one colour, or two in a pattern whose period is in statures; slightly mottled by folds."""

    first: Colour
    second: Colour
    pattern: str  # plain, hoops (around), bars (along) or checks
    period: float
    folds: float  # phase of the folds

    def __call__(self, u: FloatArray, t: FloatArray, w: FloatArray) -> FloatArray:
        fold = 1 + 0.07 * np.sin(70 * t + 40 * u + self.folds) * np.sin(55 * u - 30 * w)
        if self.pattern == "plain":
            plain: FloatArray = self.first * fold[:, None]
            return plain
        hoop = (t / self.period) % 1 < 0.5
        bar = (u / self.period) % 1 < 0.5
        odd = {"hoops": hoop, "bars": bar, "checks": hoop ^ bar}[self.pattern]
        colour: FloatArray = np.where(odd[:, None], self.second, self.first) * fold[:, None]
        return colour


@dataclass(frozen=True)
class Plain:
    colour: Colour

    def __call__(self, u: FloatArray, t: FloatArray, w: FloatArray) -> FloatArray:
        return np.broadcast_to(self.colour, (len(u), 3))


@dataclass(frozen=True)
class Hem:
    """One paint up to t = `at`, another beyond: a sleeve, a trouser leg, a sock."""

    before: Paint
    beyond: Paint
    at: float

    def __call__(self, u: FloatArray, t: FloatArray, w: FloatArray) -> FloatArray:
        return np.where((t < self.at)[:, None], self.before(u, t, w), self.beyond(u, t, w))


@dataclass(frozen=True)
class ShirtFront:
    """A shirt around the chest (t upwards): neckline, and perhaps a placket or a print, on the front only."""

    shirt: Paint
    skin: Colour
    trim: Colour
    neckline: float  # depth, statures
    top: float  # t where the neckline begins
    placket: bool
    printed: bool
    back_number: bool

    def __call__(self, u: FloatArray, t: FloatArray, w: FloatArray) -> FloatArray:
        colour: FloatArray = np.array(self.shirt(u, t, w), np.float32)
        front = w > 0
        if self.placket:
            colour[front & (np.abs(u) < 0.007)] = self.trim
        if self.printed:
            colour[front & (np.abs(u) < 0.04) & (np.abs(t - self.top + 0.085) < 0.026)] = self.trim
        if self.back_number:
            colour[~front & (np.abs(np.abs(u) - 0.022) < 0.012) & (np.abs(t - self.top + 0.085) < 0.04)] = (
                self.trim
            )
        colour[front & (t > self.top - self.neckline + 1.1 * np.abs(u))] = self.skin
        return colour


@dataclass(frozen=True)
class Face:
    """The head (u, t, w in half axes of the skull `half`): hair behind and above, a face in front."""

    skin: Colour
    hair: Colour
    half: tuple[float, float, float]
    hairline: float
    bald: bool
    beard: bool
    glasses: bool

    def __call__(self, u: FloatArray, t: FloatArray, w: FloatArray) -> FloatArray:
        u, t, w = (np.divide(axis, half) for axis, half in zip((np.abs(u), t, w), self.half, strict=True))
        colour = np.empty((len(u), 3), np.float32)
        colour[:] = self.skin
        front = w > 0
        lips = front & (u < 0.33) & (np.abs(t + 0.52) < 0.07)
        if self.beard:
            colour[(w > -0.1) & (t < -0.3)] = 0.8 * self.hair + 0.2 * self.skin
        colour[lips] = self.skin * np.array([0.85, 0.5, 0.5], np.float32)
        brow = front & (np.abs(u - EYE[0]) < 0.24) & (np.abs(t - EYE[1] - 0.24) < 0.05)
        colour[brow] = 0.6 * self.hair
        eye = np.hypot(u - EYE[0], 1.4 * (t - EYE[1]))
        colour[front & (eye < 0.16)] = 0.93
        colour[front & (eye < 0.11)] = (0.12, 0.08, 0.06)
        if self.glasses:
            colour[front & (np.maximum(np.abs(u - EYE[0]) / 1.2, np.abs(t - EYE[1])) < 0.2)] = 0.08
        if not self.bald:
            side = np.where(t > 0.2, 0.25, -0.15)  # temples reach further forward than the nape
            colour[((w < side) & (t > -0.65)) | (t > self.hairline)] = self.hair
        return colour


EYE = (0.4, 0.08)  # u, t in half axes of the skull; the eye lies on its surface


@dataclass(frozen=True)
class Outfit:
    skin: Colour
    hair: Colour
    shirt: Fabric
    trousers: Fabric
    shoes: Colour
    trim: Colour
    sleeve: float  # share of the arm's length, shoulder to wrist, that the shirt covers
    leg: float  # share of the leg's length, hip to ankle, that the trousers cover
    skirt: bool
    hairline: float
    bald: bool
    long_hair: bool
    beard: bool
    glasses: bool
    hat: bool
    backpack: bool
    neckline: float
    placket: bool
    printed: bool
    back_number: bool


# Skin tones from light to dark, hair from black to grey.
SKINS = (
    (0.96, 0.80, 0.69),
    (0.91, 0.72, 0.58),
    (0.80, 0.60, 0.45),
    (0.65, 0.46, 0.33),
    (0.45, 0.30, 0.21),
    (0.31, 0.21, 0.16),
)
HAIRS = (
    (0.07, 0.06, 0.06),
    (0.17, 0.11, 0.07),
    (0.33, 0.21, 0.12),
    (0.62, 0.45, 0.22),
    (0.83, 0.70, 0.44),
    (0.62, 0.61, 0.60),
    (0.48, 0.20, 0.08),
)


def random_outfit(rng: Rng) -> Outfit:
    bald = rng.random() < 0.07
    shorts = rng.random() < 0.35
    return Outfit(
        skin=_tone(rng, SKINS),
        hair=_tone(rng, HAIRS),
        shirt=random_fabric(rng),
        trousers=random_fabric(rng, muted=True),
        shoes=_dye(rng),
        trim=_dye(rng),
        sleeve=float(rng.choice([0.0, rng.uniform(0.25, 0.45), 1.0], p=[0.12, 0.45, 0.43])),
        leg=rng.uniform(0.22, 0.5) if shorts else 1.0,
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
        printed=rng.random() < 0.35,
        back_number=rng.random() < 0.15,
    )


def random_fabric(rng: Rng, muted: bool = False) -> Fabric:
    patterns = ("plain", "hoops", "bars", "checks")
    pattern = pick(rng, patterns, (0.85, 0.03, 0.06, 0.06) if muted else (0.6, 0.2, 0.08, 0.12))
    first = _dye(rng)
    if muted:
        first = (0.35 * first + 0.65 * first.mean()).astype(np.float32)
    return Fabric(first, _dye(rng), pattern, rng.uniform(0.03, 0.08), rng.uniform(0, 6))


def _dye(rng: Rng) -> Colour:
    hue, value = rng.random(), rng.beta(1.6, 1.3)
    return np.array(colorsys.hsv_to_rgb(hue, rng.beta(1.2, 1.6), 0.08 + 0.87 * value), np.float32)


def _tone(rng: Rng, tones: Sequence[tuple[float, float, float]]) -> Colour:
    tone = np.array(tones[int(rng.integers(len(tones)))], np.float32)
    varied: Colour = np.clip(
        tone * np.float32(rng.normal(1, 0.07)) + rng.normal(0, 0.015, 3).astype(np.float32), 0.03, 1
    )
    return varied
