"""Body poses as joint angles: joint limits, and random everyday poses.

Angles are in degrees; all zero is a person who stands with the arms hanging. A limb's `flex` swings it
forward, `abduct` sideways, away from the body, `twist` turns it outward about its own axis, and `bend` folds
the elbow or knee.
"""

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, replace
from typing import Final, TypeVar

import numpy as np

Rng = np.random.Generator
T = TypeVar("T")


@dataclass(frozen=True)
class Limb:
    flex: float = 0.0
    abduct: float = 0.0
    twist: float = 0.0
    bend: float = 0.0


Limbs = tuple[Limb, Limb]  # left, right


@dataclass(frozen=True)
class Spine:
    """The chest relative to the pelvis, or the head to the chest: bent forward, leant and twisted left."""

    bend: float = 0.0
    lean: float = 0.0
    twist: float = 0.0


@dataclass(frozen=True)
class Pose:
    name: str
    back: Spine = Spine()
    head: Spine = Spine()
    arms: Limbs = (Limb(abduct=7, bend=8), Limb(abduct=7, bend=8))
    legs: Limbs = (Limb(), Limb())
    tilt: float = 0.0  # of the body about its left-right axis: -90 lies on the back, 90 on the face
    roll: float = 0.0  # of the lying body about its length

    @property
    def seated(self) -> bool:
        return self.name == "sitting"

    @property
    def upright(self) -> bool:
        """Whether the thighs point down, so that a skirt hangs."""
        return self.tilt == 0 and max(abs(leg.flex) for leg in self.legs) < 45

    def clipped(self) -> "Pose":
        """The pose with every angle within the joint limits."""
        return replace(
            self,
            back=_clip(self.back, BACK_LIMITS),
            head=_clip(self.head, HEAD_LIMITS),
            arms=(_clip(self.arms[0], ARM_LIMITS), _clip(self.arms[1], ARM_LIMITS)),
            legs=(_clip(self.legs[0], LEG_LIMITS), _clip(self.legs[1], LEG_LIMITS)),
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


def random_pose(rng: Rng) -> Pose:
    """An everyday pose within the joint limits."""
    bodies = (_standing, _walking, _running, _sitting, _lying, _crouching)
    pose = choose(rng, bodies, (0.34, 0.22, 0.1, 0.2, 0.08, 0.06))(rng)
    if rng.random() < (0.25 if pose.name in ("walking", "running") else 0.85):
        left, right = _random_gesture(rng), _random_gesture(rng)
        if rng.random() < 0.45:
            right = left
        pose = replace(pose, arms=(left(rng), right(rng)))
    head = Spine(rng.normal(4, 10), rng.normal(0, 7), rng.normal(0, 22))
    return replace(pose, head=head).clipped()


def choose(rng: Rng, options: Sequence[T], probabilities: Sequence[float]) -> T:
    """A random one of the options."""
    return options[int(rng.choice(len(options), p=probabilities))]


def _limb(rng: Rng, flex: float, abduct: float, twist: float, bend: float, spread: float = 8.0) -> Limb:
    """A limb with normally distributed angles: the given means, standard deviation `spread`."""
    return Limb(*(angle + rng.normal(0, spread) for angle in (flex, abduct, twist, bend)))


# --- bodies -----------------------------------------------------------------------------------------------


def _standing(rng: Rng) -> Pose:
    back = Spine(rng.normal(3, 5), rng.normal(0, 4), rng.normal(0, 6))
    stance = rng.uniform(1, 14)
    left, right = (_limb(rng, 0, stance, 8, rng.uniform(0, 12), 3) for _ in range(2))
    if rng.random() < 0.08:  # on one leg, as in a kick
        left = _limb(rng, rng.uniform(20, 90), 8, 0, rng.uniform(0, 100), 5)
    return Pose("standing", back, legs=(left, right))


def _gait(rng: Rng, name: str, reach: float, knee: float, elbow: float, lean: float) -> Pose:
    """A random phase of walking or running, with arms and legs in opposition. Amplitudes in degrees."""
    phase = rng.uniform(0, 2 * np.pi)
    swing = np.array([phase, phase + np.pi])  # left, right
    hips = reach * np.sin(swing) + reach / 5
    knees = 6 + knee * np.maximum(np.cos(swing), 0) ** 1.3
    shoulders = -0.9 * reach * np.sin(swing)
    left, right = (_limb(rng, hip, 2, 4, bend, 3) for hip, bend in zip(hips, knees, strict=True))
    arms = _limb(rng, shoulders[0], 8, 0, elbow, 6), _limb(rng, shoulders[1], 8, 0, elbow, 6)
    back = Spine(rng.normal(lean, 3), rng.normal(0, 3), 8 * float(np.sin(phase)))
    return Pose(name, back, arms=arms, legs=(left, right))


def _walking(rng: Rng) -> Pose:
    return _gait(rng, "walking", rng.uniform(18, 32), rng.uniform(30, 55), rng.uniform(8, 35), 4)


def _running(rng: Rng) -> Pose:
    return _gait(rng, "running", rng.uniform(35, 55), rng.uniform(75, 110), rng.uniform(75, 105), 14)


def _sitting(rng: Rng) -> Pose:
    spread, knee = rng.uniform(2, 22), rng.uniform(60, 105)
    legs = _limb(rng, 86, spread, 0, knee, 5), _limb(rng, 86, spread, 0, knee, 5)
    back = Spine(rng.normal(8, 12), rng.normal(0, 6), rng.normal(0, 8))
    arms = _limb(rng, 35, 10, -10, 55), _limb(rng, 35, 10, -10, 55)  # hands in the lap
    return Pose("sitting", back, arms=arms, legs=legs)


def _crouching(rng: Rng) -> Pose:
    hip, knee = rng.uniform(75, 115), rng.uniform(85, 135)
    legs = _limb(rng, hip, 14, 8, knee, 6), _limb(rng, hip, 14, 8, knee, 6)
    arms = _limb(rng, 60, 8, 0, 30, 12), _limb(rng, 60, 8, 0, 30, 12)
    return Pose("crouching", Spine(rng.uniform(10, 45)), arms=arms, legs=legs)


def _lying(rng: Rng) -> Pose:
    left, right = (_limb(rng, rng.uniform(0, 45), 8, 6, rng.uniform(0, 70), 6) for _ in range(2))
    tilt = -90.0 if rng.random() < 0.6 else 90.0
    back = Spine(rng.normal(2, 6))
    return Pose("lying", back, legs=(left, right), tilt=tilt, roll=rng.normal(0, 35))


# --- arms -------------------------------------------------------------------------------------------------


def _random_gesture(rng: Rng) -> Callable[[Rng], Limb]:
    gestures = (_hanging, _on_hip, _raised, _forward, _folded, _sideways)
    return choose(rng, gestures, (0.3, 0.14, 0.2, 0.14, 0.12, 0.1))


def _hanging(rng: Rng) -> Limb:
    return _limb(rng, 0, 9, 0, 12)


def _on_hip(rng: Rng) -> Limb:
    return _limb(rng, -18, 42, -55, 92, 5)


def _raised(rng: Rng) -> Limb:
    return _limb(rng, rng.uniform(110, 165), 15, 0, rng.uniform(0, 80), 10)


def _forward(rng: Rng) -> Limb:
    return _limb(rng, rng.uniform(40, 95), 4, -10, rng.uniform(5, 70))


def _folded(rng: Rng) -> Limb:
    return _limb(rng, 28, 8, -50, 95, 6)


def _sideways(rng: Rng) -> Limb:
    return _limb(rng, 5, rng.uniform(50, 100), 0, rng.uniform(0, 60))
