"""A rendered image of people and its ground truth: keypoints, visibility and masks.

People and objects stand on a ground plane: nearer ones are larger, lower in the image and in front. Ground
truth is read from the rendered instance and depth maps.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from personlab.people import BoolArray, FloatArray
from personlab.synthetic.appearance import Appearance
from personlab.synthetic.body import Body, Build, compose, rotation
from personlab.synthetic.canvas import SUPERSAMPLING, Canvas
from personlab.synthetic.pose import Pose, Rng, choose, random_pose
from personlab.synthetic.raycast import Camera, render
from personlab.synthetic.scenery import draw_backrest, draw_object, draw_seat, paint_background


@dataclass(frozen=True)
class PersonTruth:
    """Ground truth of one person."""

    keypoints: FloatArray  # K x 2, (x, y) in image pixels, pixel centres at whole numbers; may lie outside
    inside: BoolArray  # K: within the image
    visible: BoolArray  # K: within the image and not occluded
    mask: BoolArray  # height x width, the visible pixels


@dataclass(frozen=True)
class Scene:
    image: npt.NDArray[np.uint8]  # height x width x 3, RGB
    people: tuple[PersonTruth, ...]
    crowds: tuple[BoolArray, ...]  # masks, height x width: the visible pixels of a packed group


@dataclass(frozen=True)
class Viewpoint:
    """Where the ground plane is seen from, and its light. Lengths are in canvas pixels."""

    width: int
    height: int
    horizon: float  # row
    eye_height: float  # statures
    pitch: float  # degrees, downward
    roll: float  # degrees
    light: FloatArray  # 3, unit vector towards the light, camera space

    def ground(self, stature: float) -> float:
        """The row on which a person who is `stature` pixels tall stands."""
        return self.horizon + self.eye_height * stature

    def rotation(self, yaw: float) -> FloatArray:
        """3 x 3, body frame to camera space; at yaw 0 the person faces the camera, then turns left."""
        upright = np.diag(np.array([1, -1, -1], np.float32))
        return compose(rotation(2, self.roll), upright, rotation(0, self.pitch), rotation(1, yaw))


@dataclass(frozen=True)
class PlacedPerson:
    """A person at a position of the canvas, not drawn yet."""

    body: Body
    pose: Pose
    camera: Camera
    yaw: float  # degrees
    ground: float  # row
    instance: int

    def joints(self) -> FloatArray:
        """COCO's keypoints, 17 x 3: x, y in canvas pixels and depth in statures."""
        return self.camera.project(self.body.keypoints)


# (least, greatest) stature in pixels of an image 360 pixels high, for distant, middle and near people, and
# their probabilities.
STATURES: Final = ((14.0, 60.0), (60.0, 230.0), (180.0, 560.0))
STATURE_PROBABILITIES: Final = (0.17, 0.4, 0.43)
COUNT_PROBABILITIES: Final = (0.07, 0.23, 0.19, 0.16, 0.12, 0.09, 0.06, 0.05, 0.03)  # of 0, 1, 2 … people
CROWD_PROBABILITY: Final = 0.06


def make_scene(rng: Rng, width: int, height: int, names: Sequence[str]) -> Scene:
    """A random scene, rendered as an image of width x height pixels. names: of the true keypoints."""
    view = _random_view(rng, SUPERSAMPLING * width, SUPERSAMPLING * height)
    people = list(_place_people(rng, view))
    crowd = list(_place_crowd(rng, view, len(people) + 1)) if rng.random() < CROWD_PROBABILITY else []
    objects = [_place_object(rng, view) for _ in range(rng.integers(0, 5))]
    canvas = Canvas(width, height)
    paint_background(canvas, rng, view.horizon)
    items = [
        *((person.ground, partial(draw_person, canvas, rng, view, person)) for person in (*people, *crowd)),
        *((ground, partial(draw_object, canvas, rng, x, ground, size)) for x, ground, size in objects),
    ]
    for _, draw in sorted(items, key=itemgetter(0)):
        draw()
    return Scene(
        _photograph(canvas.rgb, rng),
        tuple(ground_truth(canvas, person, names) for person in people),
        (_mask(canvas, crowd[0].instance),) if crowd else (),
    )


def _random_view(rng: Rng, width: int, height: int) -> Viewpoint:
    light = np.array([rng.normal(0, 0.6), rng.uniform(-1.2, -0.2), rng.uniform(-1, -0.2)], np.float32)
    return Viewpoint(
        width,
        height,
        horizon=rng.uniform(0.12, 0.5) * height,
        eye_height=rng.uniform(0.75, 1.5),
        pitch=rng.uniform(0, 22),
        roll=rng.normal(0, 3),
        light=light / np.linalg.norm(light),
    )


def _random_stature(rng: Rng, view: Viewpoint, limits: tuple[float, float]) -> float:
    """Log-uniform in `limits` (see STATURES); in canvas pixels."""
    low, high = np.log(limits)
    return float(np.exp(rng.uniform(low, high))) * view.height / 360


def _random_yaw(rng: Rng) -> float:
    """Any direction; somewhat more people face the camera."""
    return rng.normal(0, 40) if rng.random() < 0.35 else rng.uniform(-180, 180)


def _place_people(rng: Rng, view: Viewpoint) -> Iterator[PlacedPerson]:
    """Up to 8 people, most of them at similar distances, some side by side."""
    usual = choose(rng, STATURES, STATURE_PROBABILITIES)
    stature, x = 0.0, 0.0
    for instance in range(1, 1 + choose(rng, range(9), COUNT_PROBABILITIES)):
        if instance > 1 and rng.random() < 0.4:  # beside the previous person
            stature *= rng.uniform(0.93, 1.07)
            x += rng.choice((-1, 1)) * rng.uniform(0.12, 0.5) * stature
        else:
            limits = usual if rng.random() < 0.7 else choose(rng, STATURES, STATURE_PROBABILITIES)
            stature = _random_stature(rng, view, limits)
            x = rng.uniform(-0.04, 1.04) * view.width
        ground = view.ground(stature) + rng.normal(0, 0.06) * stature
        yield place_person(rng, view, random_pose(rng), _random_yaw(rng), (x, ground), stature, instance)


def _place_crowd(rng: Rng, view: Viewpoint, instance: int) -> Iterator[PlacedPerson]:
    """Two to four packed rows of small people who share an instance."""
    stature = _random_stature(rng, view, (18.0, 42.0))
    left, columns = rng.uniform(0, 0.7) * view.width, int(rng.integers(6, 11))
    for row in range(rng.integers(2, 5)):
        ground = view.ground(stature) + 0.16 * row * stature
        for column in range(columns):
            x = left + (0.3 * column + rng.normal(0, 0.06)) * stature
            yield place_person(rng, view, random_pose(rng), _random_yaw(rng), (x, ground), stature, instance)


def _place_object(rng: Rng, view: Viewpoint) -> tuple[float, float, float]:
    """x, ground and size for `draw_object`."""
    size = _random_stature(rng, view, (30.0, 330.0))
    return rng.uniform(0, 1) * view.width, view.ground(size), size


def place_person(
    rng: Rng,
    view: Viewpoint,
    pose: Pose,
    yaw: float,
    position: tuple[float, float],
    stature: float,
    instance: int,
) -> PlacedPerson:
    """A person of random build and appearance, whose middle and lowest point are at `position`."""
    if pose.name == "lying":  # across the view; seen end on, a lying person is unrecognisable
        yaw = float(rng.choice((-90, 90))) + rng.normal(0, 30)
    body = Body(pose, Build(rng), Appearance(rng))
    turn = view.rotation(yaw)
    joints = Camera(turn, stature, (0.0, 0.0)).project(body.keypoints)
    lowest = float(joints[:, 1].max()) + (0.06 if pose.name == "lying" else 0.045) * stature
    shift = position[0] - float(joints[:, 0].mean()), position[1] - lowest
    return PlacedPerson(body, pose, Camera(turn, stature, shift), yaw, position[1], instance)


def draw_person(canvas: Canvas, rng: Rng, view: Viewpoint, person: PlacedPerson) -> None:
    """Draw a person, the shadow and the seat."""
    joints, stature = person.joints(), person.camera.scale
    spread = 0.5 * float(np.ptp(joints[:, 0])) + 0.1 * stature
    canvas.shadow((float(joints[:, 0].mean()), person.ground), (spread, 0.07 * stature), 0.55)
    hips, seat = float(joints[11:13, 0].mean()), float(joints[11:13, 1].mean()) + 0.05 * stature
    seated = person.pose.name == "sitting"
    backrest = seated and rng.random() < 0.5
    away = abs((person.yaw + 180) % 360 - 180) > 100
    if seated:
        draw_seat(canvas, rng, hips, seat, person.ground, stature)
    if backrest and not away:
        draw_backrest(canvas, rng, hips, seat, stature)
    canvas.paste(*render(person.body.surfaces, person.camera, view.light, canvas.size), person.instance)
    if backrest and away:
        draw_backrest(canvas, rng, hips, seat, stature)


def ground_truth(canvas: Canvas, person: PlacedPerson, names: Sequence[str]) -> PersonTruth:
    """What is visible of a person, and of the named keypoints, on the finished canvas."""
    h, w = canvas.size
    positions, tolerance = person.body.points(names)
    joints = person.camera.project(positions)
    # the pixel grids of image and canvas share their corners, not their pixel centres
    keypoints: FloatArray = (joints[:, :2] + np.float32(0.5)) / np.float32(SUPERSAMPLING) - np.float32(0.5)
    last = np.array((w, h)) / SUPERSAMPLING - 1
    inside: BoolArray = np.all((keypoints >= 0) & (keypoints <= last), axis=1)
    x, y = np.round(joints[:, :2]).astype(int).clip(0, (w - 1, h - 1)).T
    uncovered = canvas.instances[y, x] == person.instance
    foremost = canvas.depth[y, x] > joints[:, 2] - tolerance
    return PersonTruth(keypoints, inside, inside & uncovered & foremost, _mask(canvas, person.instance))


def _mask(canvas: Canvas, instance: int) -> BoolArray:
    """The image pixels most of whose canvas pixels are the instance's; the upper left one breaks ties."""
    covered = canvas.instances == instance
    step = SUPERSAMPLING
    count = sum(covered[i::step, j::step].astype(np.uint8) for i in range(step) for j in range(step))
    mask: BoolArray = (count > step**2 // 2) | ((count == step**2 // 2) & covered[::step, ::step])
    return mask


def _photograph(rgb: npt.NDArray[np.uint8], rng: Rng) -> npt.NDArray[np.uint8]:
    """Downscale the canvas to the image, with lens blur, exposure, colour cast, vignette and sensor noise."""
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
