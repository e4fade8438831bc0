"""Body poses as joint angles: joint limits, and random everyday poses.

Angles are in degrees; all zero is a person who stands with the arms hanging. A limb's `flex` swings it
forward, `abduct` sideways, away from the body, `twist` turns it outward about its own axis, and `bend` folds
the elbow or knee.
"""

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, replace
from functools import partial
from typing import Final, TypeVar

import numpy as np

Rng = np.random.Generator
T = TypeVar("T")
Range = float | tuple[float, float]  # a number, or the limits of a uniform distribution


@dataclass(frozen=True)
class Limb:
    flex: float = 0.0
    abduct: float = 0.0
    twist: float = 0.0
    bend: float = 0.0


Limbs = tuple[Limb, ...]  # left, right


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
    def upright(self) -> bool:
        """Whether the thighs point down, so that a skirt hangs."""
        return self.tilt == 0 and max(abs(leg.flex) for leg in self.legs) < 45

    def clipped(self) -> "Pose":
        """The pose with every angle within the joint limits."""
        return replace(
            self,
            back=_clip(self.back, BACK_LIMITS),
            head=_clip(self.head, HEAD_LIMITS),
            arms=tuple(_clip(arm, ARM_LIMITS) for arm in self.arms),
            legs=tuple(_clip(leg, LEG_LIMITS) for leg in self.legs),
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


# Of an arm: flex, abduct, twist, bend, and their standard deviation; and the probabilities.
GESTURES: Final[tuple[tuple[Range, Range, Range, Range, float], ...]] = (
    (0, 9, 0, 12, 8),  # hanging
    (-18, 42, -55, 92, 5),  # hand on the hip
    ((110, 165), 15, 0, (0, 80), 10),  # raised
    ((40, 95), 4, -10, (5, 70), 8),  # forward
    (28, 8, -50, 95, 6),  # folded
    (5, (50, 100), 0, (0, 60), 8),  # sideways
)
GESTURE_PROBABILITIES: Final = (0.3, 0.14, 0.2, 0.14, 0.12, 0.1)


def random_pose(rng: Rng) -> Pose:
    """An everyday pose within the joint limits."""
    walking = partial(_gait, name="walking", reach=(18, 32), knee=(30, 55), elbow=(8, 35), lean=4)
    running = partial(_gait, name="running", reach=(35, 55), knee=(75, 110), elbow=(75, 105), lean=14)
    bodies: tuple[Callable[[Rng], Pose], ...]
    bodies = (_standing, walking, running, _sitting, _lying, _crouching)
    pose = choose(rng, bodies, (0.34, 0.22, 0.1, 0.2, 0.08, 0.06))(rng)
    if rng.random() < (0.25 if pose.name in ("walking", "running") else 0.85):
        left, right = (choose(rng, GESTURES, GESTURE_PROBABILITIES) for _ in range(2))
        if rng.random() < 0.45:
            right = left
        pose = replace(pose, arms=(_limb(rng, *left), _limb(rng, *right)))
    head = Spine(rng.normal(4, 10), rng.normal(0, 7), rng.normal(0, 22))
    return replace(pose, head=head).clipped()


def choose(rng: Rng, options: Sequence[T], probabilities: Sequence[float]) -> T:
    """A random one of the options."""
    return options[int(rng.choice(len(options), p=probabilities))]


def _limb(rng: Rng, flex: Range, abduct: Range, twist: Range, bend: Range, spread: float) -> Limb:
    """A limb with normally distributed angles: the given means, standard deviation `spread`."""
    means = [rng.uniform(*m) if isinstance(m, tuple) else m for m in (flex, abduct, twist, bend)]
    return Limb(*(mean + rng.normal(0, spread) for mean in means))


def _limbs(rng: Rng, flex: Range, abduct: Range, twist: Range, bend: Range, spread: float) -> Limbs:
    return tuple(_limb(rng, flex, abduct, twist, bend, spread) for _ in range(2))


def _standing(rng: Rng) -> Pose:
    back = Spine(rng.normal(3, 5), rng.normal(0, 4), rng.normal(0, 6))
    left, right = _limbs(rng, 0, rng.uniform(1, 14), 8, (0, 12), 3)
    if rng.random() < 0.08:  # on one leg, as in a kick
        left = _limb(rng, (20, 90), 8, 0, (0, 100), 5)
    return Pose("standing", back, legs=(left, right))


def _gait(
    rng: Rng,
    name: str,
    reach: tuple[float, float],
    knee: tuple[float, float],
    elbow: tuple[float, float],
    lean: float,
) -> Pose:
    """A random phase of walking or running, with arms and legs in opposition. Amplitudes in degrees."""
    swing, lift, bend = rng.uniform(*reach), rng.uniform(*knee), rng.uniform(*elbow)
    phase = rng.uniform(0, 2 * np.pi)
    phases = np.array([phase, phase + np.pi])  # left, right
    hips = swing * np.sin(phases) + swing / 5
    knees = 6 + lift * np.maximum(np.cos(phases), 0) ** 1.3
    legs = tuple(_limb(rng, hip, 2, 4, fold, 3) for hip, fold in zip(hips, knees, strict=True))
    arms = tuple(_limb(rng, shoulder, 8, 0, bend, 6) for shoulder in -0.9 * swing * np.sin(phases))
    back = Spine(rng.normal(lean, 3), rng.normal(0, 3), 8 * float(np.sin(phase)))
    return Pose(name, back, arms=arms, legs=legs)


def _sitting(rng: Rng) -> Pose:
    spread, knee = rng.uniform(2, 22), rng.uniform(60, 105)
    legs = _limbs(rng, 86, spread, 0, knee, 5)
    back = Spine(rng.normal(8, 12), rng.normal(0, 6), rng.normal(0, 8))
    return Pose("sitting", back, arms=_limbs(rng, 35, 10, -10, 55, 8), legs=legs)  # hands in the lap


def _crouching(rng: Rng) -> Pose:
    hip, knee = rng.uniform(75, 115), rng.uniform(85, 135)
    legs, arms = _limbs(rng, hip, 14, 8, knee, 6), _limbs(rng, 60, 8, 0, 30, 12)
    return Pose("crouching", Spine(rng.uniform(10, 45)), arms=arms, legs=legs)


def _lying(rng: Rng) -> Pose:
    legs = _limbs(rng, (0, 45), 8, 6, (0, 70), 6)
    tilt = -90.0 if rng.random() < 0.6 else 90.0
    return Pose("lying", Spine(rng.normal(2, 6)), legs=legs, tilt=tilt, roll=rng.normal(0, 35))
