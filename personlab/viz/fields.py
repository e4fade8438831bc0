"""Draw the five fields of an image side by side."""

from typing import Any, Final

import cv2
import numpy as np
import numpy.typing as npt

from personlab.codec.fields import Fields
from personlab.data.transform import ImageArray
from personlab.people import FloatArray
from personlab.skeleton import EDGES, TREE, K
from personlab.viz.people import PEOPLE, Floats, side_colour, to_pixels
from personlab.viz.sheet import contact_sheet

_SIDES: Final = np.array([side_colour(point) for point in range(K)])
_TOWARDS_NOSE: Final = np.array(
    [0, *(next(e for e in range(len(TREE), len(EDGES)) if EDGES[e][0] == k) for k in range(1, K))]
)


def draw_fields(image: ImageArray, fields: Fields) -> ImageArray:
    """A sheet of what the network predicts for one image: the input, then the five fields over it.

    Heat and segmentation must be probabilities (`Fields.probabilities`); `fields` is a batch of one for
    the H x W input `image`. Short- and mid-range offsets are those of the likeliest keypoint of each cell,
    mid-range ones along its edge towards the nose; long-range ones are their mean over the keypoints. An
    offset's direction is a hue and its length a strength, as on the small wheel.
    """
    heat = _array(fields.heatmap[0])  # K x h x w
    offsets = _array(fields.short[0])
    nearer = 1e-6 * np.linalg.norm(offsets, axis=1)  # decides between disks that overlap, in targets
    best, likeliest = heat.max(axis=0), (heat - nearer).argmax(axis=0)
    person = _array(fields.seg[0])
    short = np.take_along_axis(offsets, likeliest[None, None], axis=0)[0]
    mid = np.take_along_axis(_array(fields.mid[0]), _TOWARDS_NOSE[likeliest][None, None], axis=0)[0]
    long = _array(fields.long[0]).mean(axis=0)
    has_edge = likeliest != 0
    panels = {
        "input": image,
        "heatmaps": _overlay(image, _SIDES[likeliest], 0.8 * best, fields.stride),
        "segmentation": _overlay(
            image, np.broadcast_to(PEOPLE[0], (*person.shape, 3)), 0.7 * person, fields.stride
        ),
        "short-range offsets": _flow(image, short, best, fields.stride),
        "mid-range offsets, towards the nose": _flow(image, mid, best * has_edge, fields.stride),
        "long-range offsets, mean": _flow(image, long, person, fields.stride),
    }
    return contact_sheet(list(panels.values()), 3, list(panels))


def _array(tensor: object) -> FloatArray:
    array: FloatArray = tensor.detach().float().cpu().numpy()  # type: ignore[attr-defined]
    return array


def _overlay(image: ImageArray, colours: npt.NDArray[Any], strength: Floats, stride: int) -> ImageArray:
    """Colours (h x w x 3, of output cells) over the dimmed grey input, as opaque as `strength` (h x w)."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None] * 0.55 + 30
    layer = np.concatenate((colours * strength[..., None], strength[..., None]), axis=-1)
    shape = (image.shape[1], image.shape[0])
    to_image = np.array([[stride, 0, 0], [0, stride, 0]], dtype=float)
    spread = cv2.warpAffine(
        layer.astype(np.float32), to_image, shape, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    blended = grey * (1 - spread[..., 3:]) + spread[..., :3]
    return to_pixels(blended)


def _flow(image: ImageArray, offsets: Floats, strength: Floats, stride: int) -> ImageArray:
    """Offsets (2 x h x w) as colours where `strength` is large, with a wheel that says which is which."""
    length = np.linalg.norm(offsets, axis=0)
    there = strength > 0.5
    longest = float(np.quantile(length[there], 0.98)) if there.any() else 1.0
    picture = _overlay(image, _hues(offsets / max(longest, 1e-6)), strength, stride)
    _paint_wheel(picture)
    return picture


def _hues(vectors: Floats) -> ImageArray:
    """Direction as hue, length (0 to 1) as saturation: 2 x h x w -> h x w x 3."""
    x, y = vectors
    hue = np.degrees(np.arctan2(y, x)) % 360
    length = np.hypot(x, y).clip(0, 1)
    hsv = np.stack((hue, 0.9 * length, np.ones_like(hue)), axis=-1).astype(np.float32)
    return to_pixels(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB) * 255)


def _paint_wheel(picture: ImageArray) -> None:
    """A disc in the lower right corner whose colour at each place is that of an offset pointing there."""
    radius = max(8, min(picture.shape[:2]) // 14)
    axis = np.linspace(-1, 1, 2 * radius + 1, dtype=np.float32)
    if 2 * radius + 9 > min(picture.shape[:2]):
        return
    wheel = _hues(np.stack(np.broadcast_arrays(axis[None, :], axis[:, None])))
    disc = np.hypot(axis[None, :], axis[:, None]) <= 1
    corner = picture[-2 * radius - 9 : -8, -2 * radius - 9 : -8]
    corner[disc] = wheel[disc]
