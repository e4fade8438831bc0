"""Draw poses and masks of annotated and detected people.

Images are H x W x 3, RGB, uint8, and are not modified. The body's left is orange, its right blue, its middle
sand; each person's mask has its own colour. Lines are thicker on larger people.
"""

from collections.abc import Sequence
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from pycocotools import mask as rle_tools

from personlab.data.transform import ImageArray
from personlab.people import Annotation, BoolArray, Detection
from personlab.skeleton import KEYPOINTS, TREE, K

Colour = tuple[int, int, int]
Floats = npt.NDArray[np.floating]

LEFT: Final = (255, 140, 40)
RIGHT: Final = (40, 150, 255)
MIDDLE: Final = (255, 226, 170)
RIM: Final = (18, 20, 26)  # around limbs and joints, for contrast with any background

# Mask colours of the people of an image, in order, then repeated; all clearly different, also from LEFT and
# RIGHT.
PEOPLE: Final = (
    *((0, 190, 165), (240, 60, 200), (255, 235, 60), (120, 75, 255), (80, 225, 50)),
    *((225, 30, 70), (190, 230, 255), (140, 45, 120), (118, 118, 20), (255, 165, 195)),
)

_NECK = K  # an extra point midway between the shoulders, which connects head and body
_FACE = range(KEYPOINTS.index("right_ear") + 1)
_SHOULDERS = [KEYPOINTS.index("left_shoulder"), KEYPOINTS.index("right_shoulder")]
_HIPS = [KEYPOINTS.index("left_hip"), KEYPOINTS.index("right_hip")]
_BONES: Final = (
    *((a, b) for a, b in TREE if not (a == 0 and b in _SHOULDERS)),
    *((0, _NECK), (_SHOULDERS[0], _NECK), (_SHOULDERS[1], _NECK), (_HIPS[0], _HIPS[1])),
)


def draw_people(
    image: ImageArray, detections: Sequence[Detection], *, min_keypoint_score: float = 0.2
) -> ImageArray:
    """Draw the masks, if any, and the poses of detected people, the first on top.

    Keypoints with scores below `min_keypoint_score` are not drawn; the lower a score, the darker the core of
    the joint.
    """
    masks = [_decode(person.rle, image) if person.rle else None for person in detections]
    canvas = _paint_masks(image, masks)
    for person in reversed(detections):
        scores = person.keypoint_scores
        _paint_pose(canvas, person.keypoints, scores >= min_keypoint_score, scores)
    return canvas


def draw_scores(
    image: ImageArray, detections: Sequence[Detection], *, min_keypoint_score: float = 0.2
) -> ImageArray:
    """Draw the scores of the pose and of the mask above each person. Arguments as for `draw_people`."""
    canvas = Image.fromarray(image)
    pen = ImageDraw.Draw(canvas)
    for index, person in reversed(list(enumerate(detections))):
        points = person.keypoints[person.keypoint_scores >= min_keypoint_score]
        if len(points):
            _paint_tag(pen, _scores(person), points, _colour(index), _magnification(image))
    return np.asarray(canvas)


def _scores(person: Detection) -> str:
    """The pose's score, and the mask's if there is one."""
    return f"{person.score:.2f} / {person.mask_score:.2f}" if person.rle else f"{person.score:.2f}"


def draw_annotations(image: ImageArray, annotations: Sequence[Annotation]) -> ImageArray:
    """Draw annotated masks and keypoints; hidden and imputed ones have dark cores, crowds are hatched."""
    people = [annotation for annotation in annotations if not annotation.crowd]
    canvas = _paint_masks(image, [_decode(person.rle, image) for person in people])
    for annotation in annotations:
        if annotation.crowd:
            _hatch(canvas, _decode(annotation.rle, image))
    for person in reversed(people):
        visible = (person.visibility == 2) & (not person.imputed)
        _paint_pose(canvas, person.keypoints, person.visibility > 0, visible.astype(np.float32))
    return canvas


def draw_pose(image: ImageArray, keypoints: Floats, scores: Floats, *, min_score: float = 0.2) -> ImageArray:
    """Draw one pose: keypoints K x 2, (x, y) in image pixels; scores K, in [0, 1]."""
    canvas = image.copy()
    _paint_pose(canvas, keypoints, scores >= min_score, scores)
    return canvas


def _decode(rle: bytes, image: ImageArray) -> BoolArray:
    mask: BoolArray = rle_tools.decode({"size": list(image.shape[:2]), "counts": rle}).astype(bool)
    return mask


def _paint_masks(image: ImageArray, masks: Sequence[BoolArray | None]) -> ImageArray:
    """A copy of the image with masks tinted and outlined, the first on top."""
    canvas = image.copy()
    for index, mask in reversed(list(enumerate(masks))):
        if mask is not None:
            _paint_mask(canvas, mask, _colour(index))
    return canvas


def _colour(index: int) -> Colour:
    return PEOPLE[index % len(PEOPLE)]


def _paint_mask(canvas: ImageArray, mask: BoolArray, colour: Colour) -> None:
    pixels = mask.view(np.uint8)
    x, y, width, height = cv2.boundingRect(pixels)
    part = canvas[y : y + height, x : x + width]
    shades = _mix(np.arange(256, dtype=np.uint8)[:, None], colour, 0.38)
    if part.size:
        np.copyto(part, cv2.LUT(part, shades[None]), where=mask[y : y + height, x : x + width, None])
    contours, _ = cv2.findContours(pixels, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    thickness = round(_magnification(canvas) * (2 if mask.sum() > 48**2 else 1))
    cv2.polylines(canvas, contours, True, _lighter(colour), thickness, cv2.LINE_AA)


def _magnification(image: ImageArray) -> float:
    """Factor of line widths on images longer than 1000 pixels, which are viewed reduced."""
    return max(1.0, float(max(image.shape[:2])) / 1000)


def _hatch(canvas: ImageArray, mask: BoolArray) -> None:
    y, x = np.indices(mask.shape)
    canvas[mask] = _mix(canvas[mask], (128, 128, 128), 0.5)
    stripes = mask & ((x + y) % 14 < 3)
    canvas[stripes] = _mix(canvas[stripes], (255, 255, 255), 0.6)


def _mix(pixels: ImageArray, colour: Colour, share: float) -> ImageArray:
    return to_pixels(pixels * (1 - share) + np.array(colour) * share)


def to_pixels(values: Floats) -> ImageArray:
    """Round to uint8."""
    pixels: ImageArray = np.rint(values.clip(0, 255)).astype(np.uint8)
    return pixels


def _lighter(colour: Colour) -> Colour:
    r, g, b = (value + (255 - value) // 4 for value in colour)
    return r, g, b


# --- poses ------------------------------------------------------------------------------------------------


def side_colour(point: int) -> Colour:
    """The colour of a keypoint, or of the neck, by body side."""
    name = KEYPOINTS[point] if point < K else "neck"
    return LEFT if name.startswith("left") else RIGHT if name.startswith("right") else MIDDLE


def _bone_colour(a: int, b: int) -> Colour:
    """The side's colour; the middle's for bones between the sides and at the neck."""
    sides = {side_colour(a), side_colour(b)} - {MIDDLE}
    return sides.pop() if len(sides) == 1 and _NECK not in (a, b) else MIDDLE


def _paint_pose(canvas: ImageArray, keypoints: Floats, shown: BoolArray, scores: Floats) -> None:
    """Draw the shown keypoints and the bones between them into the canvas."""
    if not shown.any():
        return
    points = np.vstack((keypoints, keypoints[_SHOULDERS].mean(axis=0)))
    drawn = np.append(shown, shown[_SHOULDERS].all())
    diagonal = float(np.linalg.norm(np.ptp(keypoints[shown], axis=0)))
    width = float(np.clip(0.022 * diagonal, 1.2, 7.0 * _magnification(canvas)))
    rim = max(0.7, 0.28 * width)
    bones = [(a, b) for a, b in _BONES if drawn[a] and drawn[b]]
    for a, b in bones:  # all rims first, so that none crosses another bone
        _capsule(canvas, points[a], points[b], width / 2 + rim, RIM)
    for a, b in bones:
        _capsule(canvas, points[a], points[b], width / 2, _bone_colour(a, b))
    for k in np.flatnonzero(shown):
        radius = width * (0.6 if k in _FACE else 0.85)
        grey = round(40 + 215 * float(np.clip(scores[k], 0, 1)))
        _disc(canvas, points[k], radius + rim, RIM)
        _disc(canvas, points[k], radius, side_colour(int(k)))
        if radius > 1.2:  # smaller cores would be invisible
            _disc(canvas, points[k], radius / 2, (grey, grey, grey))


_FRACTION = 4  # fractional bits of the coordinates given to OpenCV


def _fixed(values: Floats) -> npt.NDArray[np.int32]:
    return np.rint(np.asarray(values) * (1 << _FRACTION)).astype(np.int32)


def _capsule(canvas: ImageArray, a: Floats, b: Floats, radius: float, colour: Colour) -> None:
    """Draw a line with round ends, of any width."""
    dx, dy = b - a
    angles = np.arctan2(dy, dx) + np.linspace(np.pi / 2, 3 * np.pi / 2, 12)
    half = radius * np.stack((np.cos(angles), np.sin(angles)), axis=-1)
    cv2.fillPoly(canvas, [_fixed(np.vstack((a + half, b - half)))], colour, cv2.LINE_AA, _FRACTION)


def _disc(canvas: ImageArray, centre: Floats, radius: float, colour: Colour) -> None:
    x, y = _fixed(centre)
    size = round(radius * (1 << _FRACTION))
    cv2.circle(canvas, (int(x), int(y)), size, colour, cv2.FILLED, cv2.LINE_AA, _FRACTION)


def _paint_tag(
    pen: ImageDraw.ImageDraw, text: str, points: Floats, colour: Colour, magnification: float
) -> None:
    """Draw a label above the highest of the points, within the image."""
    size = float(np.clip(0.07 * np.ptp(points[:, 1]), 10, 16 * magnification))
    font = ImageFont.load_default(size)
    left, top, right, bottom = font.getbbox(text)
    width, height = right - left + size * 0.8, bottom - top + size * 0.6
    above = height + max(size, 0.09 * float(np.linalg.norm(np.ptp(points, axis=0))))
    x, y = points[points[:, 1].argmin()] - (width / 2, above)
    x, y = np.clip((x, y), 0, np.maximum(np.array(pen.im.size) - (width, height) - 1, 0)).round()
    pen.rounded_rectangle((x, y, x + width, y + height), height * 0.3, fill=_lighter(colour), outline=RIM)
    pen.text((x + width / 2, y + height / 2), text, fill=RIM, font=font, anchor="mm")
