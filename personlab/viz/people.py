"""Draw poses and masks of annotated and detected people.

Images are H x W x 3, RGB, uint8, and are not modified. The body's left is orange, its right blue, its middle
sand; each person's mask has its own colour. Lines are thicker on larger people.
"""

from collections.abc import Iterator, Sequence
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from pycocotools import mask as rle_tools

from personlab.data.transform import ImageArray
from personlab.people import Annotation, BoolArray, Box, Detection
from personlab.skeleton import COCO_PERSON, Edge, Skeleton, side

Colour = tuple[int, int, int]
Floats = npt.NDArray[np.floating]
Rectangle = tuple[float, float, float, float]  # left, top, right, bottom; pixels

LEFT: Final = (255, 140, 40)
RIGHT: Final = (40, 150, 255)
MIDDLE: Final = (255, 226, 170)
RIM: Final = (18, 20, 26)  # around limbs and joints, for contrast with any background

# Mask colours of the people of an image, in order, then repeated. They differ from each other and from LEFT
# and RIGHT also for eyes that do not see green or red (tests/test_viz.py).
PEOPLE: Final = (
    *((0, 180, 120), (180, 75, 150), (45, 255, 240), (165, 75, 0)),
    *((30, 90, 255), (30, 255, 150), (75, 210, 255)),
)

_FACE: Final = frozenset({"nose", "left_eye", "right_eye", "left_ear", "right_ear"})  # smaller joints
_SHOULDERS: Final = [COCO_PERSON.keypoints.index(f"{each}_shoulder") for each in ("left", "right")]
_HIPS: Final = [COCO_PERSON.keypoints.index(f"{each}_hip") for each in ("left", "right")]
_NECK: Final = len(COCO_PERSON.keypoints)  # an extra point of COCO's people, midway between the shoulders
_COCO_BONES: Final = (
    *((a, b) for a, b in COCO_PERSON.tree if not (a == 0 and b in _SHOULDERS)),
    *((0, _NECK), (_SHOULDERS[0], _NECK), (_SHOULDERS[1], _NECK), (_HIPS[0], _HIPS[1])),
)


def draw_people(
    image: ImageArray,
    detections: Sequence[Detection],
    skeleton: Skeleton,
    *,
    colours: Sequence[int] | None = None,
    min_keypoint_score: float = 0.2,
) -> ImageArray:
    """Draw the masks, if any, and the poses of detected people, the first on top.

    Keypoints with scores below `min_keypoint_score` are not drawn; the lower a score, the darker the core of
    the joint. colours: numbers of colours, one per person; by default in order.
    """
    masks = [_decode(person.rle, image) if person.rle else None for person in detections]
    canvas = _paint_masks(image, masks, colours or range(len(masks)))
    for person in reversed(detections):
        scores = person.keypoint_scores
        _paint_pose(canvas, skeleton, person.keypoints, scores >= min_keypoint_score, scores)
    return canvas


def draw_scores(
    image: ImageArray,
    detections: Sequence[Detection],
    *,
    colours: Sequence[int] | None = None,
    min_keypoint_score: float = 0.2,
) -> ImageArray:
    """Draw the score above each person. Arguments as for `draw_people`."""
    canvas = Image.fromarray(image)
    pen, taken = ImageDraw.Draw(canvas), list[Rectangle]()
    for colour, person in zip(colours or range(len(detections)), detections, strict=True):
        points = person.keypoints[person.keypoint_scores >= min_keypoint_score]
        if len(points):
            taken.append(
                _paint_tag(pen, f"{person.score:.2f}", points, _colour(colour), _magnification(image), taken)
            )
    return np.asarray(canvas)


def draw_note(image: ImageArray, text: str) -> ImageArray:
    """Draw a line of text at the lower left corner."""
    canvas = Image.fromarray(image)
    pen = ImageDraw.Draw(canvas)
    size = max(10.0, min(16.0, image.shape[1] / 24)) * _magnification(image)
    font = ImageFont.load_default(size)
    at = (size * 0.6, image.shape[0] - size * 0.6)
    box = pen.textbbox(at, text, font, "ls")
    pen.rectangle((box[0] - size / 3, box[1] - size / 3, box[2] + size / 3, box[3] + size / 3), fill=RIM)
    pen.text(at, text, fill=(255, 255, 255), font=font, anchor="ls")
    return np.asarray(canvas)


def draw_annotations(
    image: ImageArray,
    annotations: Sequence[Annotation],
    skeleton: Skeleton,
    *,
    colours: Sequence[int] | None = None,
) -> ImageArray:
    """Draw annotated masks, boxes where there is none, and keypoints; crowds are hatched.

    Hidden and imputed keypoints have dark cores.

    colours: numbers of colours, one per annotation; by default in order.
    """
    numbered = zip(colours or range(len(annotations)), annotations, strict=True)
    shown = [(colour, annotation) for colour, annotation in numbered if not annotation.crowd]
    people = [annotation for _, annotation in shown]
    masks = [_decode(p.rle, image) if p.rle else None for p in people]
    canvas = _paint_masks(image, masks, [colour for colour, _ in shown])
    for annotation in annotations:
        if annotation.crowd:
            _hatch(
                canvas, _decode(annotation.rle, image) if annotation.rle else _inside(annotation.box, image)
            )
    for colour, person in reversed(shown):
        if not person.rle:
            _paint_box(canvas, person.box, _colour(colour))
    for person in reversed(people):
        visible = (person.visibility == 2) & (not person.imputed)
        _paint_pose(canvas, skeleton, person.keypoints, person.visibility > 0, visible.astype(np.float32))
    return canvas


def draw_pose(
    image: ImageArray,
    keypoints: Floats,
    scores: Floats,
    skeleton: Skeleton,
    *,
    min_score: float = 0.2,
) -> ImageArray:
    """Draw one pose: keypoints K x 2, (x, y) in image pixels; scores K, in [0, 1]."""
    canvas = image.copy()
    _paint_pose(canvas, skeleton, keypoints, scores >= min_score, scores)
    return canvas


def _decode(rle: bytes, image: ImageArray) -> BoolArray:
    mask: BoolArray = rle_tools.decode({"size": list(image.shape[:2]), "counts": rle}).astype(bool)
    return mask


def _inside(box: Box, image: ImageArray) -> BoolArray:
    left, top, right, bottom = _corners(box)
    mask = np.zeros(image.shape[:2], bool)
    mask[max(top, 0) : bottom, max(left, 0) : right] = True
    return mask


def _paint_box(canvas: ImageArray, box: Box, colour: Colour) -> None:
    left, top, right, bottom = _corners(box)
    thickness = round(2 * _magnification(canvas))
    cv2.rectangle(canvas, (left, top), (right - 1, bottom - 1), _lighter(colour), thickness, cv2.LINE_AA)


def _corners(box: Box) -> tuple[int, int, int, int]:
    """Left, top, right, bottom; whole pixels."""
    x, y, width, height = box
    return round(x), round(y), round(x + width), round(y + height)


def _paint_masks(image: ImageArray, masks: Sequence[BoolArray | None], colours: Sequence[int]) -> ImageArray:
    """A copy of the image with masks tinted and outlined, the first on top."""
    canvas = image.copy()
    for mask, colour in reversed(list(zip(masks, colours, strict=True))):
        if mask is not None:
            _paint_mask(canvas, mask, _colour(colour))
    return canvas


def _colour(number: int) -> Colour:
    return PEOPLE[number % len(PEOPLE)]


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


def side_colours(skeleton: Skeleton) -> list[Colour]:
    """The colour of each keypoint, by body side."""
    colours = {"left": LEFT, "right": RIGHT, "": MIDDLE}
    return [colours[side(name)] for name in skeleton.keypoints]


def _bones(skeleton: Skeleton) -> Iterator[tuple[Edge, Colour]]:
    """The lines of a pose and their colours: the side's, or the middle's between sides and at the neck."""
    colours = [*side_colours(skeleton), MIDDLE]
    is_coco = skeleton.has_channels_of(COCO_PERSON)
    for a, b in _COCO_BONES if is_coco else skeleton.tree:
        sides = {colours[a], colours[b]} - {MIDDLE}
        at_neck = _NECK in (a, b) and is_coco
        yield (a, b), sides.pop() if len(sides) == 1 and not at_neck else MIDDLE


def _paint_pose(
    canvas: ImageArray, skeleton: Skeleton, keypoints: Floats, shown: BoolArray, scores: Floats
) -> None:
    """Draw the shown keypoints and the bones between them into the canvas."""
    if not shown.any():
        return
    points, drawn = keypoints, shown
    if skeleton.has_channels_of(COCO_PERSON):
        points = np.vstack((keypoints, keypoints[_SHOULDERS].mean(axis=0)))
        drawn = np.append(shown, shown[_SHOULDERS].all())
    diagonal = float(np.linalg.norm(np.ptp(keypoints[shown], axis=0)))
    width = float(np.clip(0.022 * diagonal, 1.2, 7.0 * _magnification(canvas)))
    rim = max(0.7, 0.28 * width)
    bones = [bone for bone in _bones(skeleton) if drawn[list(bone[0])].all()]
    for (a, b), _ in bones:  # all rims first, so that none crosses another bone
        _capsule(canvas, points[a], points[b], width / 2 + rim, RIM)
    for (a, b), colour in bones:
        _capsule(canvas, points[a], points[b], width / 2, colour)
    colours = side_colours(skeleton)
    for k in np.flatnonzero(shown):
        radius = width * (0.6 if skeleton.keypoints[k] in _FACE else 0.85)
        grey = round(40 + 215 * float(np.clip(scores[k], 0, 1)))
        _disc(canvas, points[k], radius + rim, RIM)
        _disc(canvas, points[k], radius, colours[k])
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
    pen: ImageDraw.ImageDraw,
    text: str,
    points: Floats,
    colour: Colour,
    magnification: float,
    taken: Sequence[Rectangle],
) -> Rectangle:
    """Draw a label above the highest of the points, within the image and clear of the labels in `taken`.

    Returns its place.
    """
    size = float(np.clip(0.07 * np.ptp(points[:, 1]), 10, 16 * magnification))
    font = ImageFont.load_default(size)
    left, top, right, bottom = font.getbbox(text)
    width, height = right - left + size * 0.8, bottom - top + size * 0.6
    above = height + max(size, 0.09 * float(np.linalg.norm(np.ptp(points, axis=0))))
    x, y = points[points[:, 1].argmin()] - (width / 2, above)
    last = np.maximum(np.array(pen.im.size) - (width, height) - 1, 0)
    x, y = np.clip((x, y), 0, last).round().tolist()
    while blocked := next((each for each in taken if _overlap(each, (x, y, x + width, y + height))), None):
        y = blocked[3] + 1
        if y > last[1]:  # no room below
            break
    pen.rounded_rectangle((x, y, x + width, y + height), height * 0.3, fill=_lighter(colour), outline=RIM)
    pen.text((x + width / 2, y + height / 2), text, fill=RIM, font=font, anchor="mm")
    return x, y, x + width, y + height


def _overlap(one: Rectangle, other: Rectangle) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
