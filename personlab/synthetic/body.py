"""A human body in three dimensions: from a pose, a build and an appearance to keypoints and surfaces.

The body frame has x to the person's left, y up and z to the front, and its origin midway between the hips;
lengths are in statures. Forward kinematics starts at the pelvis. Keypoints are where COCO's annotators place
them, joints inside the limbs, eyes, ears and nose on the surface of the head, and where CrowdPose's place the
top of the head and the neck.
"""

from collections.abc import Iterator, Sequence
from functools import partial, reduce
from typing import Final

import numpy as np

from personlab.people import FloatArray
from personlab.skeleton import COCO_PERSON
from personlab.synthetic.appearance import EYE, Appearance, face, shirt, solid, split
from personlab.synthetic.pose import Limb, Pose, Rng, Spine
from personlab.synthetic.raycast import Quadric, Texture, Triple, cone, ellipsoid, sphere


class Build:
    """Random proportions, relative to an average adult's."""

    def __init__(self, rng: Rng) -> None:
        child = rng.random() < 0.15
        self.girth = float(np.exp(rng.normal(0, 0.13)))  # of the trunk
        self.limbs = float(np.exp(0.5 * np.log(self.girth) + rng.normal(0, 0.08)))  # thickness
        self.shoulders = rng.normal(1, 0.06) * (0.93 if child else 1.0)
        self.head = rng.normal(1.35, 0.07) if child else rng.normal(1.03, 0.04)
        self.legs = rng.normal(0.9, 0.03) if child else rng.normal(1, 0.03)  # length
        self.bust = 0.0 if child or rng.random() < 0.5 else rng.uniform(0.028, 0.04)  # statures


def rotation(axis: int, degrees: float) -> FloatArray:
    """The 3 x 3 right-handed rotation about axis 0 (x), 1 (y) or 2 (z)."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    matrix = np.eye(3, dtype=np.float32)
    i, j = (axis + 1) % 3, (axis + 2) % 3
    matrix[i, i], matrix[i, j], matrix[j, i], matrix[j, j] = c, -s, s, c
    return matrix


def compose(*rotations: FloatArray) -> FloatArray:
    """The product of 3 x 3 rotations; the last is applied first."""
    product: FloatArray = reduce(np.matmul, rotations)
    return product


# An average adult, in statures.
HIP_WIDTH, SHOULDER_WIDTH = 0.053, 0.112  # from the middle
WAIST, SHOULDER_HEIGHT, NECK = 0.09, 0.193, 0.265  # hips to waist, waist to shoulders, waist to skull base
UPPER_ARM, FOREARM, THIGH, SHANK = 0.163, 0.142, 0.24, 0.235
SKULL: Final = (0.049, 0.068, 0.058)  # radii across, up and to the front
SHOULDER_R, ELBOW_R, WRIST_R, HIP_R, KNEE_R, ANKLE_R = 0.035, 0.026, 0.018, 0.054, 0.037, 0.023

ORIGIN: Final = np.zeros(3, np.float32)


def _spine(spine: Spine) -> FloatArray:
    return compose(rotation(2, -spine.lean), rotation(0, spine.bend), rotation(1, spine.twist))


def _ball_joint(limb: Limb, side: int) -> FloatArray:
    """The rotation of a shoulder or hip. side: +1 left, -1 right."""
    return compose(rotation(2, side * limb.abduct), rotation(0, -limb.flex), rotation(1, side * limb.twist))


def _offset(start: FloatArray, frame: FloatArray, x: float, y: float, z: float) -> FloatArray:
    """The point at (x, y, z) in a frame (columns x, y, z) whose origin is `start`."""
    point: FloatArray = start + frame @ np.array((x, y, z), np.float32)
    return point


def _downward(frame: FloatArray) -> FloatArray:
    """The axes (rows u, t, w) of a part that hangs in the frame: t points down."""
    return np.stack([frame[:, 0], -frame[:, 1], frame[:, 2]])


class Body:
    """The body in a pose. Frames are 3 x 3 with columns x, y, z in the body frame.

    Attributes:
        keypoints: COCO's, 17 x 3, statures.
        surfaces: the visible surfaces.
    """

    def __init__(self, pose: Pose, build: Build, appearance: Appearance) -> None:
        self.pose, self.build, self.appearance = pose, build, appearance
        self.pelvis = compose(rotation(0, pose.tilt), rotation(1, pose.roll))
        self.chest = compose(self.pelvis, _spine(pose.back))
        self.waist = _offset(ORIGIN, self.pelvis, 0, WAIST, 0)
        self.skull = compose(self.chest, _spine(pose.head))
        self.skull_radii = (build.head * SKULL[0], build.head * SKULL[1], build.head * SKULL[2])
        skull_base = self._on_chest(0, NECK, 0.004)
        self.head = _offset(skull_base, self.skull, 0, 0.8 * self.skull_radii[1], 0.014)
        self._points: dict[str, tuple[FloatArray, float]] = {}  # name: position, tolerance
        self.surfaces: Sequence[Quadric] = (*self._trunk(), *self._head(), *self._limbs())
        self.keypoints, _ = self.points(COCO_PERSON.keypoints)

    def points(self, names: Sequence[str]) -> tuple[FloatArray, FloatArray]:
        """Keypoints by name, K x 3, and tolerances, K: a surface at most this far in front does not hide a
        keypoint. Statures."""
        positions, tolerances = zip(*(self._points[name] for name in names), strict=True)
        return np.stack(positions), np.array(tolerances, np.float32)

    def _trunk(self) -> Iterator[Quadric]:
        look, g, bust = self.appearance, self.build.girth, self.build.bust
        axes, wide, dressed = self.chest.T, SHOULDER_WIDTH * self.build.shoulders, partial(shirt, look)
        pelvis = _offset(ORIGIN, self.pelvis, 0, 0.02, -0.004)
        yield ellipsoid(pelvis, self.pelvis.T, (0.1 * g, 0.075, 0.066 * g), look.trousers)
        yield ellipsoid(self.waist, axes, (0.083 * g, 0.085, 0.06 * g), dressed)
        yield cone(self.waist, axes, 0.19, (0.08 * g, 0.056 * g), 0.82 * wide / 0.08 / g, dressed)
        yoke = self._on_chest(0, 0.175, -0.004)
        yield ellipsoid(
            yoke, axes, (wide + 0.008, 0.052, 0.056 * g), lambda u, t, w: dressed(u, t + np.float32(0.175), w)
        )
        for side in (1, -1) if bust else ():
            yield sphere(self._on_chest(side * 0.043, 0.125, 0.033 * g), axes, bust, look.shirt)
        yield cone(self._on_chest(0, 0.185, -0.006), axes, 0.1, (0.034, 0.034), 0.85, solid(look.skin))
        self._joint("neck", self._on_chest(0, 0.215, -0.006), 0.034)
        if look.backpack:
            back = self._on_chest(0, 0.1, -0.06 * g - 0.035)
            yield ellipsoid(back, axes, (0.075, 0.12, 0.05), solid(look.trim))
        if look.skirt and self.pose.upright:
            top, length = _offset(ORIGIN, self.pelvis, 0, 0.05, 0), 0.1 + 0.5 * (THIGH + SHANK)
            yield cone(top, _downward(self.pelvis), length, (0.088 * g, 0.062 * g), 1.75, look.trousers)

    def _on_chest(self, x: float, y: float, z: float) -> FloatArray:
        """A point of the chest's frame, whose origin is the waist."""
        return _offset(self.waist, self.chest, x, y, z)

    def _head(self) -> Iterator[Quadric]:
        look, radii = self.appearance, self.skull_radii
        skin, hair, hat = look.skin, solid(look.hair), solid(look.trim)
        yield ellipsoid(self.head, self.skull.T, radii, partial(face, look, radii))
        self._points["head_top"] = self._on_head(0, 1.0, 0), 0.04  # the hair covers it
        self._points["nose"] = self._on_head(0, -0.16, 1.12), 0.012
        yield self._on_skull((0, -0.12, 0.97), (0.2, 0.2, 0.2), solid(0.93 * skin))
        eye_depth = float(np.sqrt(1 - EYE[0] ** 2 - EYE[1] ** 2))
        for side, name in ((1, "left"), (-1, "right")):
            ear = (side * 1.0, -0.03, -0.12)
            self._points[f"{name}_eye"] = self._on_head(side * EYE[0], EYE[1], eye_depth), 0.01
            self._points[f"{name}_ear"] = self._on_head(*ear), 0.02
            yield self._on_skull(ear, (0.2, 0.25, 0.22), solid(0.9 * skin))
        if not look.bald:
            yield self._on_skull((0, 0.16, -0.16), (1.06, 0.97, 0.98), hair)
        if look.long_hair:
            yield self._on_skull((0, -0.45, -0.5), (1.12, 1.35, 0.68), hair)
        if look.hat:
            yield self._on_skull((0, 0.55, -0.04), (1.12, 0.62, 1.1), hat)
            yield self._on_skull((0, 0.5, 0.85), (0.85, 0.09, 0.75), hat)

    def _on_head(self, x: float, y: float, z: float) -> FloatArray:
        """A point of the skull's frame, in radii of the skull."""
        a, c, b = self.skull_radii
        return _offset(self.head, self.skull, x * a, y * c, z * b)

    def _on_skull(self, centre: Triple, radii: Triple, texture: Texture) -> Quadric:
        """An ellipsoid of the head; centre and radii in radii of the skull."""
        a, c, b = self.skull_radii
        size = radii[0] * a, radii[1] * c, radii[2] * b
        return ellipsoid(self._on_head(*centre), self.skull.T, size, texture)

    def _limbs(self) -> Iterator[Quadric]:
        sides = zip((1, -1), ("left", "right"), self.pose.arms, self.pose.legs, strict=True)
        for side, name, arm, leg in sides:
            yield from self._arm(side, name, arm)
            yield from self._leg(side, name, leg)

    def _arm(self, side: int, name: str, limb: Limb) -> Iterator[Quadric]:
        look, r = self.appearance, self.build.limbs
        shirt, skin = look.shirt, solid(look.skin)
        sleeve = look.sleeve_length * (UPPER_ARM + FOREARM)
        upper = compose(self.chest, _ball_joint(limb, side))
        lower = compose(upper, rotation(0, -limb.bend))
        shoulder = self._on_chest(side * SHOULDER_WIDTH * self.build.shoulders, SHOULDER_HEIGHT, -0.004)
        elbow = _offset(shoulder, upper, 0, -UPPER_ARM, 0)
        wrist = _offset(elbow, lower, 0, -FOREARM, 0)
        self._joint(f"{name}_shoulder", shoulder, SHOULDER_R * r + 0.015)
        self._joint(f"{name}_elbow", elbow, ELBOW_R * r)
        self._joint(f"{name}_wrist", wrist, WRIST_R * r)
        upper_arm, forearm = split(shirt, skin, sleeve), split(shirt, skin, sleeve - UPPER_ARM)
        yield sphere(shoulder, self.chest.T, SHOULDER_R * r, shirt)
        yield _segment(shoulder, upper, UPPER_ARM, SHOULDER_R * 0.97 * r, ELBOW_R / SHOULDER_R, upper_arm)
        yield sphere(elbow, lower.T, ELBOW_R * r, shirt if sleeve > UPPER_ARM else skin)
        yield _segment(elbow, lower, FOREARM, ELBOW_R * 1.04 * r, WRIST_R / ELBOW_R, forearm)
        yield sphere(wrist, lower.T, WRIST_R * r, skin)
        hand = _offset(wrist, lower, 0, -0.04, 0)
        yield ellipsoid(hand, lower.T, (0.014 * r, 0.045, 0.024 * r), skin)

    def _leg(self, side: int, name: str, limb: Limb) -> Iterator[Quadric]:
        look, r = self.appearance, self.build.limbs
        trousers, skin, shoe = look.trousers, solid(look.skin), solid(look.shoes)
        thigh_length, shank_length = THIGH * self.build.legs, SHANK * self.build.legs
        cover = look.trouser_length * self.build.legs * (THIGH + SHANK)
        upper = compose(self.pelvis, _ball_joint(limb, side))
        lower = compose(upper, rotation(0, limb.bend))
        hip = _offset(ORIGIN, self.pelvis, side * HIP_WIDTH, 0, 0)
        knee = _offset(hip, upper, 0, -thigh_length, 0)
        ankle = _offset(knee, lower, 0, -shank_length, 0)
        self._joint(f"{name}_hip", hip, 0.075 * self.build.girth)
        self._joint(f"{name}_knee", knee, KNEE_R * r)
        self._joint(f"{name}_ankle", ankle, ANKLE_R * r)
        thigh, shank = split(trousers, skin, cover), split(trousers, skin, cover - thigh_length)
        yield sphere(hip, upper.T, HIP_R * r, trousers)
        yield _segment(hip, upper, thigh_length, HIP_R * r, KNEE_R / HIP_R, thigh)
        yield sphere(knee, lower.T, KNEE_R * r, trousers if cover > thigh_length else skin)
        yield _segment(knee, lower, shank_length, KNEE_R * 1.03 * r, ANKLE_R / KNEE_R, shank)
        calf = _offset(knee, lower, 0, -0.075, -0.01 * r)
        calf_texture = trousers if look.trouser_length > 0.8 else skin
        yield ellipsoid(calf, lower.T, (0.03 * r, 0.075, 0.031 * r), calf_texture)
        yield sphere(ankle, lower.T, ANKLE_R * r, shoe)
        foot = _offset(ankle, lower, 0, -0.024, 0.04)
        yield ellipsoid(foot, lower.T, (0.027 * r, 0.022, 0.07), shoe)

    def _joint(self, name: str, position: FloatArray, radius: float) -> None:
        self._points[name] = position, 1.4 * radius + 0.008


def _segment(
    start: FloatArray, frame: FloatArray, length: float, radius: float, taper: float, texture: Texture
) -> Quadric:
    """A round, tapered part of a limb that hangs from `start`."""
    return cone(start, _downward(frame), length, (radius, radius), taper, texture)
