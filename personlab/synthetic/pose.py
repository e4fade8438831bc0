"""Poses of a human body: joint angles within their limits, and random poses of everyday life.

Angles are in degrees, zero everywhere is a person standing with the arms hanging. Of a limb, `flex` swings
it forward, `abduct` away from the body, `twist` turns it about its own axis (outward), and `bend` folds
the elbow or knee.
"""

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, replace
from typing import Final, TypeVar

import numpy as np


@dataclass(frozen=True)
class Limb:
    flex: float = 0.0
    abduct: float = 0.0
    twist: float = 0.0
    bend: float = 0.0


@dataclass(frozen=True)
class Spine:
    """How the chest is on the pelvis, or the head on the chest: bent forward, leant left, twisted left."""

    bend: float = 0.0
    lean: float = 0.0
    twist: float = 0.0


@dataclass(frozen=True)
class Pose:
    name: str
    back: Spine = Spine()
    head: Spine = Spine()
    left_arm: Limb = Limb(abduct=7, bend=8)
    right_arm: Limb = Limb(abduct=7, bend=8)
    left_leg: Limb = Limb()
    right_leg: Limb = Limb()
    tilt: float = 0.0  # of the whole body about its left-right axis: -90 lies on its back, 90 on its face
    roll: float = 0.0  # of the lying body about its length

    @property
    def seated(self) -> bool:
        return self.name == "sitting"

    @property
    def upright(self) -> bool:
        """On the feet, so that a skirt hangs."""
        return self.tilt == 0 and max(abs(leg.flex) for leg in (self.left_leg, self.right_leg)) < 45

    def limited(self) -> "Pose":
        """The nearest pose that a human's joints allow."""
        return replace(
            self,
            back=_clip(self.back, BACK_LIMITS),
            head=_clip(self.head, HEAD_LIMITS),
            left_arm=_clip(self.left_arm, ARM_LIMITS),
            right_arm=_clip(self.right_arm, ARM_LIMITS),
            left_leg=_clip(self.left_leg, LEG_LIMITS),
            right_leg=_clip(self.right_leg, LEG_LIMITS),
        )


# (least, greatest)
ARM_LIMITS: Final = (Limb(-45, -25, -75, 0), Limb(175, 170, 75, 145))
LEG_LIMITS: Final = (Limb(-25, -15, -35, 0), Limb(120, 50, 45, 140))
BACK_LIMITS: Final = (Spine(-20, -25, -35), Spine(75, 25, 35))
HEAD_LIMITS: Final = (Spine(-35, -25, -70), Spine(40, 25, 70))


Joint = TypeVar("Joint", Limb, Spine)


def _clip(joint: Joint, limits: tuple[Joint, Joint]) -> Joint:
    low, high = (astuple(limit) for limit in limits)
    return type(joint)(*(float(angle) for angle in np.clip(astuple(joint), low, high)))


Rng = np.random.Generator
T = TypeVar("T")


def random_pose(rng: Rng) -> Pose:
    """A pose of everyday life, within the joint limits."""
    bodies = (_standing, _walking, _running, _sitting, _lying, _crouching)
    pose = pick(rng, bodies, (0.34, 0.22, 0.1, 0.2, 0.08, 0.06))(rng)
    if rng.random() < (0.25 if pose.name in ("walking", "running") else 0.85):
        left, right = _gesture(rng), _gesture(rng)
        if rng.random() < 0.45:
            right = left
        pose = replace(pose, left_arm=left(rng), right_arm=right(rng))
    head = Spine(rng.normal(4, 10), rng.normal(0, 7), rng.normal(0, 22))
    return replace(pose, head=head).limited()


def pick(rng: Rng, options: Sequence[T], weights: Sequence[float]) -> T:
    """One of the options, by weights that sum to 1."""
    return options[int(rng.choice(len(options), p=weights))]


def _around(rng: Rng, flex: float, abduct: float, twist: float, bend: float, spread: float = 8.0) -> Limb:
    """A limb whose angles vary around the given ones."""
    return Limb(*(angle + rng.normal(0, spread) for angle in (flex, abduct, twist, bend)))


def _standing(rng: Rng) -> Pose:
    back = Spine(rng.normal(3, 5), rng.normal(0, 4), rng.normal(0, 6))
    stance = rng.uniform(1, 14)
    left, right = (_around(rng, 0, stance, 8, rng.uniform(0, 12), 3) for _ in range(2))
    if rng.random() < 0.08:  # on one leg, as in a kick
        left = _around(rng, rng.uniform(20, 90), 8, 0, rng.uniform(0, 100), 5)
    return Pose("standing", back=back, left_leg=left, right_leg=right)


def _striding(rng: Rng, name: str, reach: float, knee: float, elbow: float, lean: float) -> Pose:
    """A gait at a random moment: arms and legs swing against each other."""
    phase = rng.uniform(0, 2 * np.pi)
    swing = np.array([phase, phase + np.pi])
    hips = reach * np.sin(swing) + reach / 5
    knees = 6 + knee * np.maximum(np.cos(swing), 0) ** 1.3
    shoulders = -0.9 * reach * np.sin(swing)
    legs = [_around(rng, hip, 2, 4, bend, 3) for hip, bend in zip(hips, knees, strict=True)]
    arms = [_around(rng, shoulder, 8, 0, elbow, 6) for shoulder in shoulders]
    back = Spine(rng.normal(lean, 3), rng.normal(0, 3), 8 * float(np.sin(phase)))
    return Pose(name, back, Spine(), arms[0], arms[1], legs[0], legs[1])


def _walking(rng: Rng) -> Pose:
    return _striding(rng, "walking", rng.uniform(18, 32), rng.uniform(30, 55), rng.uniform(8, 35), 4)


def _running(rng: Rng) -> Pose:
    return _striding(rng, "running", rng.uniform(35, 55), rng.uniform(75, 110), rng.uniform(75, 105), 14)


def _sitting(rng: Rng) -> Pose:
    spread, knee = rng.uniform(2, 22), rng.uniform(60, 105)
    left, right = (_around(rng, 86, spread, 0, knee, 5) for _ in range(2))
    back = Spine(rng.normal(8, 12), rng.normal(0, 6), rng.normal(0, 8))
    rest = [_around(rng, 35, 10, -10, 55, 8) for _ in range(2)]  # hands in the lap
    return Pose("sitting", back, Spine(), rest[0], rest[1], left, right)


def _crouching(rng: Rng) -> Pose:
    hip, knee = rng.uniform(75, 115), rng.uniform(85, 135)
    left, right = (_around(rng, hip, 14, 8, knee, 6) for _ in range(2))
    arms = [_around(rng, 60, 8, 0, 30, 12) for _ in range(2)]
    return Pose("crouching", Spine(rng.uniform(10, 45)), Spine(), arms[0], arms[1], left, right)


def _lying(rng: Rng) -> Pose:
    left, right = (_around(rng, rng.uniform(0, 45), 8, 6, rng.uniform(0, 70), 6) for _ in range(2))
    tilt = -90.0 if rng.random() < 0.6 else 90.0
    return Pose(
        "lying", Spine(rng.normal(2, 6)), left_leg=left, right_leg=right, tilt=tilt, roll=rng.normal(0, 35)
    )


def _gesture(rng: Rng) -> Callable[[Rng], Limb]:
    """What an arm does."""
    gestures = (_hanging, _on_hip, _raised, _forward, _folded, _wide)
    return pick(rng, gestures, (0.3, 0.14, 0.2, 0.14, 0.12, 0.1))


def _hanging(rng: Rng) -> Limb:
    return _around(rng, 0, 9, 0, 12)


def _on_hip(rng: Rng) -> Limb:
    return _around(rng, -18, 42, -55, 92, 5)


def _raised(rng: Rng) -> Limb:
    return _around(rng, rng.uniform(110, 165), 15, 0, rng.uniform(0, 80), 10)


def _forward(rng: Rng) -> Limb:
    return _around(rng, rng.uniform(40, 95), 4, -10, rng.uniform(5, 70), 8)


def _folded(rng: Rng) -> Limb:
    return _around(rng, 28, 8, -50, 95, 6)


def _wide(rng: Rng) -> Limb:
    return _around(rng, 5, rng.uniform(50, 100), 0, rng.uniform(0, 60), 8)
