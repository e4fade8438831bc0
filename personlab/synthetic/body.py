"""A human body in three dimensions: a pose and a build become joints and surfaces.

The body's frame has x to the person's left, y up and z to the person's front, with the middle of the hips
at the origin; lengths are in statures. Forward kinematics walks from the pelvis outward; the 17 keypoints
are where COCO's annotators put them: joints inside the limbs, eyes, ears and nose on the head.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce

import numpy as np

from personlab.people import FloatArray
from personlab.skeleton import KEYPOINTS
from personlab.synthetic.outfit import EYE, Face, Hem, Outfit, Plain, ShirtFront
from personlab.synthetic.pose import Limb, Pose, Rng, Spine
from personlab.synthetic.quadric import Paint, Quadric, cone, ellipsoid, sphere


@dataclass(frozen=True)
class Build:
    """Proportions: factors of an average adult's."""

    girth: float = 1.0  # of the trunk
    limbs: float = 1.0  # thickness of arms and legs
    shoulders: float = 1.0
    head: float = 1.0
    legs: float = 1.0
    bust: float = 0.0  # statures


@dataclass(frozen=True)
class Body:
    keypoints: FloatArray  # K x 3, statures
    reach: FloatArray  # K: a surface at most this far in front of the keypoint does not hide it, statures
    surfaces: tuple[Quadric, ...]


def random_build(rng: Rng) -> Build:
    child = rng.random() < 0.15
    girth = float(np.exp(rng.normal(0, 0.13)))
    return Build(
        girth=girth,
        limbs=float(np.exp(0.5 * np.log(girth) + rng.normal(0, 0.08))),
        shoulders=rng.normal(1, 0.06) * (0.93 if child else 1.0),
        head=rng.normal(1.35, 0.07) if child else rng.normal(1.03, 0.04),
        legs=rng.normal(0.9, 0.03) if child else rng.normal(1, 0.03),
        bust=0.0 if child or rng.random() < 0.5 else rng.uniform(0.028, 0.04),
    )


def make_body(pose: Pose, build: Build, outfit: Outfit) -> Body:
    """Bend the body into the pose and dress it."""
    return _Maker(pose, build, outfit).body()


def rotation(axis: int, degrees: float) -> FloatArray:
    """3 x 3, a right-handed turn about axis 0 (x), 1 (y) or 2 (z)."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = np.eye(3, dtype=np.float32)
    i, j = (axis + 1) % 3, (axis + 2) % 3
    turn[i, i], turn[i, j], turn[j, i], turn[j, j] = c, -s, s, c
    return turn


# Lengths, in statures, of an average adult.
HIP_WIDTH, SHOULDER_WIDTH = 0.053, 0.112  # from the middle
WAIST, SHOULDER_HEIGHT, NECK = 0.09, 0.205, 0.265  # hips to waist; waist to shoulders; waist to skull base
UPPER_ARM, FOREARM, THIGH, SHANK = 0.163, 0.142, 0.24, 0.235
SKULL = (0.049, 0.068, 0.058)  # half axes: across, up, front
SHOULDER_R, ELBOW_R, WRIST_R, HIP_R, KNEE_R, ANKLE_R = 0.035, 0.026, 0.018, 0.054, 0.037, 0.023


ORIGIN = np.zeros(3, np.float32)


def compose(*turns: FloatArray) -> FloatArray:
    """The product of 3 x 3 turns; the last is applied first."""
    product: FloatArray = reduce(np.matmul, turns)
    return product


def _spine(spine: Spine) -> FloatArray:
    return compose(rotation(2, -spine.lean), rotation(0, spine.bend), rotation(1, spine.twist))


def _socket(limb: Limb, side: int) -> FloatArray:
    """Turn of a shoulder or hip; side is +1 on the left, -1 on the right."""
    return compose(rotation(2, side * limb.abduct), rotation(0, -limb.flex), rotation(1, side * limb.twist))


def _from(start: FloatArray, frame: FloatArray, x: float, y: float, z: float) -> FloatArray:
    """The point that lies (x, y, z) from `start`, along the columns of a frame."""
    at: FloatArray = start + frame @ np.array((x, y, z), np.float32)
    return at


def _down(frame: FloatArray) -> FloatArray:
    """Axes (rows u, t, w) of a limb that hangs in the frame: t from its root to its tip."""
    return np.stack([frame[:, 0], -frame[:, 1], frame[:, 2]])


class _Maker:
    """The frames (columns x, y, z) and joints of one body while it is being assembled."""

    def __init__(self, pose: Pose, build: Build, outfit: Outfit) -> None:
        self.pose, self.build, self.outfit = pose, build, outfit
        self.pelvis = compose(rotation(0, pose.tilt), rotation(1, pose.roll))
        self.chest = compose(self.pelvis, _spine(pose.back))
        self.waist = _from(ORIGIN, self.pelvis, 0, WAIST, 0)
        self.skull = compose(self.chest, _spine(pose.head))
        self.half = (build.head * SKULL[0], build.head * SKULL[1], build.head * SKULL[2])
        self.head = _from(self._on_chest(0, NECK, 0.004), self.skull, 0, 0.8 * self.half[1], 0.014)
        self.joints: dict[str, tuple[FloatArray, float]] = {}  # keypoint: position, reach

    def body(self) -> Body:
        surfaces = (*self._trunk(), *self._head(), *self._limbs())
        return Body(
            np.stack([self.joints[name][0] for name in KEYPOINTS]),
            np.array([self.joints[name][1] for name in KEYPOINTS], np.float32),
            surfaces,
        )

    def _trunk(self) -> Iterator[Quadric]:
        outfit, g = self.outfit, self.build.girth
        up, wide = self.chest.T, SHOULDER_WIDTH * self.build.shoulders
        front = ShirtFront(
            *(outfit.shirt, outfit.skin, outfit.trim, outfit.neckline, 0.225),
            *(outfit.placket, outfit.printed, outfit.back_number),
        )
        yield ellipsoid(
            _from(ORIGIN, self.pelvis, 0, 0.02, -0.004),
            self.pelvis.T,
            (0.1 * g, 0.075, 0.066 * g),
            outfit.trousers,
        )
        yield ellipsoid(self.waist, up, (0.083 * g, 0.085, 0.06 * g), front)
        yield cone(self.waist, up, 0.19, (0.08 * g, 0.056 * g), 0.82 * wide / 0.08 / g, front)
        yield ellipsoid(
            self._on_chest(0, 0.175, -0.004), up, (wide + 0.008, 0.052, 0.056 * g), _Lifted(front, 0.175)
        )
        if self.build.bust:
            for side in (1, -1):
                at = self._on_chest(side * 0.043, 0.125, 0.033 * g)
                yield sphere(at, up, self.build.bust, outfit.shirt)
        yield cone(self._on_chest(0, 0.185, -0.006), up, 0.1, (0.034, 0.034), 0.85, Plain(outfit.skin))
        if outfit.backpack:
            at = self._on_chest(0, 0.1, -0.06 * g - 0.035)
            yield ellipsoid(at, up, (0.075, 0.12, 0.05), Plain(outfit.trim))
        if outfit.skirt and self.pose.upright:
            bottom = 0.1 + 0.5 * (THIGH + SHANK)
            axes = _down(self.pelvis)
            at = _from(ORIGIN, self.pelvis, 0, 0.05, 0)
            yield cone(at, axes, bottom, (0.088 * g, 0.062 * g), 1.75, outfit.trousers)

    def _on_chest(self, x: float, y: float, z: float) -> FloatArray:
        """A point of the chest's frame, whose origin is the waist."""
        return _from(self.waist, self.chest, x, y, z)

    def _head(self) -> Iterator[Quadric]:
        outfit, (a, c, b) = self.outfit, self.half
        axes = self.skull.T
        face = Face(
            outfit.skin, outfit.hair, (a, c, b), outfit.hairline, outfit.bald, outfit.beard, outfit.glasses
        )
        yield ellipsoid(self.head, axes, (a, c, b), face)
        depth = float(np.sqrt(1 - EYE[0] ** 2 - EYE[1] ** 2))
        nose = self._on_head(0, -0.16, 1.12)
        self.joints["nose"] = nose, 0.012
        yield ellipsoid(
            self._on_head(0, -0.12, 0.97), axes, (0.2 * a, 0.2 * c, 0.2 * b), Plain(0.93 * outfit.skin)
        )
        for side, name in ((1, "left"), (-1, "right")):
            self.joints[f"{name}_eye"] = self._on_head(side * EYE[0], EYE[1], depth), 0.01
            ear = self._on_head(side * 1.0, -0.03, -0.12)
            self.joints[f"{name}_ear"] = ear, 0.02
            yield ellipsoid(ear, axes, (0.2 * a, 0.25 * c, 0.22 * b), Plain(0.9 * outfit.skin))
        if not outfit.bald:
            hair = Plain(outfit.hair)
            yield ellipsoid(self._on_head(0, 0.16, -0.16), axes, (1.06 * a, 0.97 * c, 0.98 * b), hair)
            if outfit.long_hair:
                yield ellipsoid(self._on_head(0, -0.45, -0.5), axes, (1.12 * a, 1.35 * c, 0.68 * b), hair)
        if outfit.hat:
            hat = Plain(outfit.trim)
            yield ellipsoid(self._on_head(0, 0.55, -0.04), axes, (1.12 * a, 0.62 * c, 1.1 * b), hat)
            yield ellipsoid(self._on_head(0, 0.5, 0.85), axes, (0.85 * a, 0.09 * c, 0.75 * b), hat)

    def _on_head(self, x: float, y: float, z: float) -> FloatArray:
        """A point of the skull's frame, in its half axes."""
        a, c, b = self.half
        return _from(self.head, self.skull, x * a, y * c, z * b)

    def _limbs(self) -> Iterator[Quadric]:
        pose = self.pose
        for side, name, arm, leg in (
            (1, "left", pose.left_arm, pose.left_leg),
            (-1, "right", pose.right_arm, pose.right_leg),
        ):
            yield from self._arm(side, name, arm)
            yield from self._leg(side, name, leg)

    def _arm(self, side: int, name: str, limb: Limb) -> Iterator[Quadric]:
        outfit, r = self.outfit, self.build.limbs
        skin, cover = Plain(outfit.skin), outfit.sleeve * (UPPER_ARM + FOREARM)
        upper = compose(self.chest, _socket(limb, side))
        lower = compose(upper, rotation(0, -limb.bend))
        shoulder = self._on_chest(
            side * SHOULDER_WIDTH * self.build.shoulders, SHOULDER_HEIGHT - 0.012, -0.004
        )
        elbow = _from(shoulder, upper, 0, -UPPER_ARM, 0)
        wrist = _from(elbow, lower, 0, -FOREARM, 0)
        self._joint(f"{name}_shoulder", shoulder, SHOULDER_R * r + 0.015)
        self._joint(f"{name}_elbow", elbow, ELBOW_R * r)
        self._joint(f"{name}_wrist", wrist, WRIST_R * r)
        at_elbow = outfit.shirt if cover > UPPER_ARM else skin
        yield sphere(shoulder, self.chest.T, SHOULDER_R * r, outfit.shirt)
        yield cone(
            *(shoulder, _down(upper), UPPER_ARM, _round(SHOULDER_R * 0.97 * r), ELBOW_R / SHOULDER_R),
            Hem(outfit.shirt, skin, cover),
        )
        yield sphere(elbow, lower.T, ELBOW_R * r, at_elbow)
        yield cone(
            *(elbow, _down(lower), FOREARM, _round(ELBOW_R * 1.04 * r), WRIST_R / ELBOW_R),
            Hem(outfit.shirt, skin, cover - UPPER_ARM),
        )
        yield sphere(wrist, lower.T, WRIST_R * r, skin)
        yield ellipsoid(_from(wrist, lower, 0, -0.04, 0), lower.T, (0.014 * r, 0.045, 0.024 * r), skin)

    def _leg(self, side: int, name: str, limb: Limb) -> Iterator[Quadric]:
        outfit, r, long = self.outfit, self.build.limbs, self.build.legs
        skin, cover = Plain(outfit.skin), outfit.leg * long * (THIGH + SHANK)
        upper = compose(self.pelvis, _socket(limb, side))
        lower = compose(upper, rotation(0, limb.bend))
        hip = _from(ORIGIN, self.pelvis, side * HIP_WIDTH, 0, 0)
        knee = _from(hip, upper, 0, -THIGH * long, 0)
        ankle = _from(knee, lower, 0, -SHANK * long, 0)
        self._joint(f"{name}_hip", hip, 0.075 * self.build.girth)
        self._joint(f"{name}_knee", knee, KNEE_R * r)
        self._joint(f"{name}_ankle", ankle, ANKLE_R * r)
        trousers = outfit.trousers
        at_knee = trousers if cover > THIGH * long else skin
        yield sphere(hip, upper.T, HIP_R * r, trousers)
        yield cone(
            hip, _down(upper), THIGH * long, _round(HIP_R * r), KNEE_R / HIP_R, Hem(trousers, skin, cover)
        )
        yield sphere(knee, lower.T, KNEE_R * r, at_knee)
        yield cone(
            *(knee, _down(lower), SHANK * long, _round(KNEE_R * 1.03 * r), ANKLE_R / KNEE_R),
            Hem(trousers, skin, cover - THIGH * long),
        )
        calf = _from(knee, lower, 0, -0.075, -0.01 * r)
        yield ellipsoid(calf, lower.T, (0.03 * r, 0.075, 0.031 * r), trousers if outfit.leg > 0.8 else skin)
        shoe = Plain(outfit.shoes)
        yield sphere(ankle, lower.T, ANKLE_R * r, shoe)
        sole = _from(ankle, lower, 0, -0.024, 0.04)
        yield ellipsoid(sole, lower.T, (0.027 * r, 0.022, 0.07), shoe)

    def _joint(self, name: str, at: FloatArray, radius: float) -> None:
        self.joints[name] = at, 1.4 * radius + 0.008


@dataclass(frozen=True)
class _Lifted:
    """A paint of the chest's frame, used on a surface whose own origin lies higher by `by`."""

    paint: Paint
    by: float

    def __call__(self, u: FloatArray, t: FloatArray, w: FloatArray) -> FloatArray:
        return self.paint(u, t + np.float32(self.by), w)


def _round(radius: float) -> tuple[float, float]:
    return radius, radius
