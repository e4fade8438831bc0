"""Draw the five fields of an image as one picture."""

from typing import Any, Final

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from personlab.codec.fields import Fields
from personlab.data.transform import ImageArray, Transform
from personlab.people import FloatArray
from personlab.skeleton import Skeleton
from personlab.viz.people import PEOPLE, RIM, Floats, side_colours, to_pixels
from personlab.viz.sheet import contact_sheet

_LONGEST: Final = 640  # side of a panel, pixels


def draw_fields(image: ImageArray, fields: Fields, scale: float = 1.0, *, skeleton: Skeleton) -> ImageArray:
    """Draw an image and the fields predicted for it, in panels with captions.

    An output cell shows its likeliest keypoint: the heatmap in the colour of the body side, the short-range
    offset to it, and the mid-range offset to its parent in the tree. Long-range offsets are averaged over the
    keypoints. Hue is the direction of an offset and saturation its length, as on the wheel.

    Args:
        image: H x W x 3, RGB.
        fields: of this image, a batch of one, as probabilities (`Fields.probabilities`).
        scale: network input pixels per image pixel.
    """
    height, width = image.shape[:2]
    zoom = min(1.0, _LONGEST / max(height, width))
    size = max(1, round(zoom * height)), max(1, round(zoom * width))
    background = Transform(zoom, (0.0, 0.0), *size).image(image)
    step = zoom * fields.stride / scale  # panel pixels per cell

    def flow(offsets: Floats, opacity: Floats) -> ImageArray:
        return _flow(background, offsets / scale, opacity, step)

    heatmap, short = _array(fields.heatmap), _array(fields.short)
    likely = heatmap.max(axis=0)
    # the nearer keypoint where disks overlap in targets, where all are 1
    keypoint = (heatmap - 1e-6 * np.linalg.norm(short, axis=1)).argmax(axis=0)
    to_parent = _select(_array(fields.mid), _to_parent(skeleton)[keypoint])
    sides = np.array(side_colours(skeleton))
    panels = {"Image": background}
    panels["Heatmaps\nleft orange, right blue"] = _overlay(background, sides[keypoint], likely, step)
    if fields.has_masks:
        person = _array(fields.seg)
        panels["Segmentation\nall people"] = _overlay(background, np.array(PEOPLE[0]), person, step)
    panels["Short-range offsets\nto the keypoint nearby"] = flow(_select(short, keypoint), likely)
    panels["Mid-range offsets\nto the parent keypoint"] = flow(to_parent, likely * (keypoint != 0))
    if fields.has_masks:
        long = _array(fields.long).mean(axis=0)
        panels["Long-range offsets\nmean over all keypoints"] = flow(long, person)
    return contact_sheet(list(panels.values()), len(panels) // 2, list(panels))


def _to_parent(skeleton: Skeleton) -> npt.NDArray[np.integer]:
    """The edge from each keypoint to its parent: K; any for the root, which has none."""
    edges = np.zeros(len(skeleton.keypoints), int)
    for edge, (_, end) in enumerate(skeleton.tree):
        edges[end] = len(skeleton.tree) + edge
    return edges


def _array(batch: Tensor) -> FloatArray:
    array: FloatArray = batch[0].detach().float().cpu().numpy()
    return array


def _select(offsets: FloatArray, index: npt.NDArray[np.integer]) -> FloatArray:
    """From N x 2 x h x w offsets those of the given index (h x w) at each cell: 2 x h x w."""
    selected: FloatArray = np.take_along_axis(offsets, index[None, None], axis=0)[0]
    return selected


def _overlay(image: ImageArray, colours: npt.NDArray[Any], opacity: Floats, step: float) -> ImageArray:
    """Draw colours (h x w x 3 or 3) over the darkened grey image. opacity: h x w; step: pixels per cell."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None] * 0.45 + 20
    opacity = opacity[..., None]
    layer = np.concatenate((colours * opacity, opacity), axis=-1).astype(np.float32)
    to_image = np.array([[step, 0, 0], [0, step, 0]], dtype=float)
    size = (image.shape[1], image.shape[0])
    # not upscaled by cv2.resize, which would shift the cells by half a pixel
    layer = cv2.warpAffine(layer, to_image, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return to_pixels(grey * (1 - layer[..., 3:]) + layer[..., :3])


def _flow(image: ImageArray, offsets: Floats, opacity: Floats, step: float) -> ImageArray:
    """Draw offsets (2 x h x w, image pixels) as colours over the image, with the wheel."""
    shown = np.linalg.norm(offsets, axis=0)[opacity > 0.5]
    longest = max(float(np.quantile(shown, 0.9)), 1e-6) if shown.size else 1.0
    return _draw_wheel(_overlay(image, _hues(offsets / longest), opacity, step), longest)


def _hues(vectors: Floats) -> ImageArray:
    """Direction as hue, length (0 to 1) as saturation: 2 x h x w -> h x w x 3."""
    x, y = vectors
    hue = np.degrees(np.arctan2(y, x)) % 360
    saturation = 0.95 * np.hypot(x, y).clip(0, 1)
    hsv = np.stack((hue, saturation, np.ones_like(hue)), axis=-1).astype(np.float32)
    return to_pixels(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB) * 255)


def _draw_wheel(image: ImageArray, length: float) -> ImageArray:
    """Draw the legend: a disk whose points have the colours of the offsets from its centre to them.

    length: of an offset to the rim, image pixels.
    """
    radius = min(image.shape[:2]) // 9
    if radius < 8:
        return image
    axis = np.linspace(-1, 1, 2 * radius + 1, dtype=np.float32)
    wheel = _hues(np.stack(np.broadcast_arrays(axis[None, :], axis[:, None])))
    disk = Image.fromarray(((axis[None, :] ** 2 + axis[:, None] ** 2 <= 1) * 255).astype(np.uint8))
    picture = Image.fromarray(image)
    x, y = picture.width - wheel.shape[1] - radius // 4, picture.height - wheel.shape[0] - radius // 4
    picture.paste(Image.fromarray(wheel), (x, y), disk)
    font = ImageFont.load_default(radius * 0.42)
    pen = ImageDraw.Draw(picture)
    pen.ellipse((x - 1, y - 1, x + 2 * radius + 1, y + 2 * radius + 1), outline=RIM, width=1 + radius // 24)
    at = (x - radius * 0.2, y + 2 * radius)
    pen.text(at, f"rim: {length:.0f} px", (255, 255, 255), font, "rs", stroke_width=2, stroke_fill=RIM)
    return np.asarray(picture)
