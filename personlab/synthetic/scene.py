"""One rendered picture of people and the truth about it: where every keypoint is, who shows where.

A camera looks at a ground plane: who stands nearer is larger, lower in the picture and in front. Truth is
read from the rendered maps of owner and depth, never guessed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from personlab.people import BoolArray, FloatArray
from personlab.synthetic.backdrop import (
    SUPERSAMPLING,
    Canvas,
    draw_backrest,
    draw_prop,
    draw_seat,
    paint_backdrop,
)
from personlab.synthetic.body import Body, compose, make_body, random_build, rotation
from personlab.synthetic.outfit import random_outfit
from personlab.synthetic.pose import Pose, Rng, pick, random_pose
from personlab.synthetic.quadric import View, render


@dataclass(frozen=True)
class Figure:
    """What the picture shows of one person."""

    keypoints: FloatArray  # K x 2, (x, y) in image pixels, pixel centres at whole numbers; may lie outside
    inside: BoolArray  # K: within the image
    visible: BoolArray  # K: within the image and hidden by nothing
    mask: BoolArray  # height x width, the visible pixels


@dataclass(frozen=True)
class Scene:
    image: npt.NDArray[np.uint8]  # height x width x 3, RGB
    people: tuple[Figure, ...]
    crowds: tuple[BoolArray, ...]  # height x width each: the visible pixels of a packed group


@dataclass(frozen=True)
class Camera:
    """All lengths in canvas pixels."""

    width: int
    height: int
    horizon: float
    eye: float  # height above the ground, in statures
    pitch: float  # degrees, looking down
    roll: float  # degrees
    light: FloatArray  # 3, towards the lamp, view space

    def ground(self, stature: float) -> float:
        """The row on which a person of that many pixels stands."""
        return self.horizon + self.eye * stature

    def view(self, yaw: float) -> FloatArray:
        """3 x 3, body frame to view space; yaw 0 faces the camera, positive turns to the person's left."""
        upright = np.diag(np.array([1, -1, -1], np.float32))
        return compose(rotation(2, self.roll), upright, rotation(0, self.pitch), rotation(1, yaw))


@dataclass(frozen=True)
class Person:
    """Somebody placed in front of the camera, not drawn yet."""

    body: Body
    pose: Pose
    view: View
    yaw: float
    stature: float
    ground: float
    owner: int


@dataclass(frozen=True)
class Prop:
    """An object placed in front of the camera, not drawn yet."""

    x: float
    ground: float
    size: float


# Least and greatest stature in pixels of a 360 pixel high image, for far, middle and near views; the
# chances of each.
DISTANCES: Final = ((14.0, 60.0), (60.0, 230.0), (180.0, 560.0))
DISTANCE_CHANCES: Final = (0.17, 0.4, 0.43)
# Chances of 0, 1, 2 … people.
PEOPLE_CHANCES: Final = (0.07, 0.23, 0.19, 0.16, 0.12, 0.09, 0.06, 0.05, 0.03)
CROWD_CHANCE: Final = 0.06


def make_scene(rng: Rng, width: int, height: int) -> Scene:
    """Compose, render and photograph a picture of width x height pixels."""
    camera = _random_camera(rng, SUPERSAMPLING * width, SUPERSAMPLING * height)
    people = list(_place_people(rng, camera))
    crowd = list(_place_crowd(rng, camera, owner=len(people) + 1)) if rng.random() < CROWD_CHANCE else []
    props = list(_place_props(rng, camera))
    canvas = Canvas.blank(width, height)
    paint_backdrop(canvas, rng, camera.horizon)
    items: list[Person | Prop] = [*people, *crowd, *props]
    for item in sorted(items, key=lambda item: item.ground):
        if isinstance(item, Prop):
            draw_prop(canvas, rng, item.x, item.ground, item.size)
        else:
            draw_person(canvas, rng, camera, item)
    return Scene(
        _expose(canvas.rgb, rng),
        tuple(_figure(canvas, person) for person in people),
        (_mask(canvas, crowd[0].owner),) if crowd else (),
    )


def _random_camera(rng: Rng, width: int, height: int) -> Camera:
    light = np.array([rng.normal(0, 0.6), rng.uniform(-1.2, -0.2), rng.uniform(-1, -0.2)], np.float32)
    return Camera(
        width,
        height,
        horizon=rng.uniform(0.12, 0.5) * height,
        eye=rng.uniform(0.75, 1.5),
        pitch=rng.uniform(0, 22),
        roll=rng.normal(0, 3),
        light=light / np.linalg.norm(light),
    )


def _random_stature(rng: Rng, camera: Camera, distance: tuple[float, float]) -> float:
    near, far = np.log(distance[1]), np.log(distance[0])
    return float(np.exp(rng.uniform(far, near))) * camera.height / 360


def _place_people(rng: Rng, camera: Camera) -> Iterator[Person]:
    """Up to 8 people, most of them about as far away as each other, some side by side."""
    usual = pick(rng, DISTANCES, DISTANCE_CHANCES)
    stature, x = 0.0, 0.0
    for owner in range(1, 1 + pick(rng, range(9), PEOPLE_CHANCES)):
        if owner > 1 and rng.random() < 0.4:
            stature *= rng.uniform(0.93, 1.07)
            x += rng.choice((-1, 1)) * rng.uniform(0.12, 0.5) * stature
        else:
            distance = usual if rng.random() < 0.7 else pick(rng, DISTANCES, DISTANCE_CHANCES)
            stature = _random_stature(rng, camera, distance)
            x = rng.uniform(-0.04, 1.04) * camera.width
        ground = camera.ground(stature) + rng.normal(0, 0.06) * stature
        yield place_person(rng, camera, random_pose(rng), _random_yaw(rng), (x, ground), stature, owner)


def _random_yaw(rng: Rng) -> float:
    """Somewhat more people face the camera than turn away from it."""
    return rng.normal(0, 40) if rng.random() < 0.35 else rng.uniform(-180, 180)


def _place_crowd(rng: Rng, camera: Camera, owner: int) -> Iterator[Person]:
    """Two to four packed rows of small people who share one owner."""
    stature = _random_stature(rng, camera, (18.0, 42.0))
    left, columns = rng.uniform(0, 0.7) * camera.width, int(rng.integers(6, 11))
    for row in range(rng.integers(2, 5)):
        ground = camera.ground(stature) + 0.16 * row * stature
        for column in range(columns):
            x = left + (0.3 * column + rng.normal(0, 0.06)) * stature
            yield place_person(rng, camera, random_pose(rng), _random_yaw(rng), (x, ground), stature, owner)


def _place_props(rng: Rng, camera: Camera) -> Iterator[Prop]:
    """Objects anywhere from the horizon to just before the camera."""
    for _ in range(rng.integers(0, 5)):
        size = _random_stature(rng, camera, (30.0, 330.0))
        yield Prop(rng.uniform(0, 1) * camera.width, camera.ground(size), size)


def place_person(
    rng: Rng,
    camera: Camera,
    pose: Pose,
    yaw: float,
    at: tuple[float, float],
    stature: float,
    owner: int,
) -> Person:
    """Give a pose a random build and outfit and stand it at `at` (middle, ground; canvas pixels)."""
    if pose.name == "lying":  # across the view: end on, nobody could tell what it is
        yaw = float(rng.choice((-90, 90))) + rng.normal(0, 30)
    body = make_body(pose, random_build(rng), random_outfit(rng))
    turn = camera.view(yaw)
    joints = View(turn, stature, (0.0, 0.0)).project(body.keypoints)
    lowest = float(joints[:, 1].max()) + (0.06 if pose.name == "lying" else 0.045) * stature
    shift = at[0] - float(joints[:, 0].mean()), at[1] - lowest
    return Person(body, pose, View(turn, stature, shift), yaw, stature, at[1], owner)


def draw_person(canvas: Canvas, rng: Rng, camera: Camera, person: Person) -> None:
    """Draw somebody, with a shadow, and what they sit on."""
    joints = person.view.project(person.body.keypoints)
    x, hips = float(joints[:, 0].mean()), float(joints[11:13, 1].mean())
    spread = 0.5 * float(np.ptp(joints[:, 0])) + 0.1 * person.stature
    canvas.shadow((x, person.ground), (spread, 0.07 * person.stature), 0.55)
    middle, seat = float(joints[11:13, 0].mean()), hips + 0.05 * person.stature
    away = abs((person.yaw + 180) % 360 - 180) > 100
    backrest = person.pose.seated and rng.random() < 0.5
    if person.pose.seated:
        draw_seat(canvas, rng, middle, seat, person.ground, person.stature)
    if backrest and not away:
        draw_backrest(canvas, rng, middle, seat, person.stature)
    window = render(person.body.surfaces, person.view, camera.light, canvas.size)
    if window is not None:
        canvas.paste(window, person.owner)
    if backrest and away:
        draw_backrest(canvas, rng, middle, seat, person.stature)


def _figure(canvas: Canvas, person: Person) -> Figure:
    """Read off the finished canvas what can be seen of a person."""
    h, w = canvas.size
    joints = person.view.project(person.body.keypoints)
    # the image's pixel grid and the canvas' share their corners, not their centres
    keypoints: FloatArray = (joints[:, :2] + np.float32(0.5)) / np.float32(SUPERSAMPLING) - np.float32(0.5)
    last = np.array((w, h)) / SUPERSAMPLING - 1
    inside: BoolArray = np.all((keypoints >= 0) & (keypoints <= last), axis=1)
    x, y = np.round(joints[:, :2]).astype(int).clip(0, (w - 1, h - 1)).T
    uncovered = canvas.owner[y, x] == person.owner
    foremost = canvas.depth[y, x] > joints[:, 2] - person.body.reach
    return Figure(keypoints, inside, inside & uncovered & foremost, _mask(canvas, person.owner))


def _mask(canvas: Canvas, owner: int) -> BoolArray:
    """The image pixels of which the owner holds most subpixels; of two halves, the upper left decides."""
    held = canvas.owner == owner
    votes = sum(held[i::SUPERSAMPLING, j::SUPERSAMPLING].astype(np.uint8) for i in range(2) for j in range(2))
    half = SUPERSAMPLING**2 // 2
    mask: BoolArray = (votes > half) | ((votes == half) & held[::SUPERSAMPLING, ::SUPERSAMPLING])
    return mask


def _expose(rgb: npt.NDArray[np.uint8], rng: Rng) -> npt.NDArray[np.uint8]:
    """Photograph the canvas: lens blur, light, colour cast, vignette, sensor noise."""
    h, w = rgb.shape[0] // SUPERSAMPLING, rgb.shape[1] // SUPERSAMPLING
    image = cv2.resize(rgb, (w, h), interpolation=cv2.INTER_AREA).astype(np.float32)
    if rng.random() < 0.5:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 1.1))
    gain = rng.uniform(0.7, 1.2) * (1 + rng.normal(0, 0.05, 3))
    x, y = np.linspace(-1, 1, w, dtype=np.float32), np.linspace(-1, 1, h, dtype=np.float32)
    slope = rng.normal(0, 0.1, 2)
    vignette = 1 - rng.uniform(0, 0.14) * (x[None, :] ** 2 + y[:, None] ** 2)
    vignette += slope[0] * x[None, :] + slope[1] * y[:, None]
    image *= vignette[..., None].astype(np.float32)
    image *= gain.astype(np.float32)
    noise = rng.standard_normal((h, w, 3), dtype=np.float32)
    image += noise * np.float32(rng.uniform(0.5, 8))
    photograph: npt.NDArray[np.uint8] = image.clip(0, 255).astype(np.uint8)
    return photograph
