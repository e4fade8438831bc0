"""The category of an annotation file that is trained on, and its keypoints.

The category is `person` if it has keypoints, or if no category has. Otherwise all that have are taken
together, if their keypoints are the same (breeds, species); `acquire.categories` names others. Categories
without any annotation do not count, if others have some: label tools list all that a project has. K is the
number of keypoints that the annotations hold.

The skeleton is COCO's for COCO's 17 names. For others, the tree is a spanning tree of the category's links:
breadth-first from the first keypoint, so that loops are broken; parts that no link connects are joined by the
two keypoints that are closest in the mean pose. One number out of range leaves out all links. Left and right
are paired by name, and OKS tolerances are COCO's for keypoints that COCO has. `params.Skeleton` overrides
each.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from personlab import params
from personlab.data.json_fields import BadRecordError, integer, record_id, shown, whole
from personlab.data.mean_pose import MeanPose
from personlab.errors import UserError, first
from personlab.people import Annotation
from personlab.skeleton import COCO_PERSON, DEFAULT_SIGMA, Edge, Skeleton, known_sigma, mirrored, words

log = logging.getLogger("personlab")

_PEOPLE: Final = ("person", "people", "human", "pedestrian")  # whose 17 keypoints without names are COCO's


@dataclass(frozen=True)
class Category:
    """The category, or several that share their keypoints, whose annotations are read.

    Attributes:
        ids: in the file, the first in front.
        name: of the category; of several, their common supercategory or all names.
        keypoints: names, K.
        named: how many of them the file names.
        links: pairs of keypoints that the file connects; may have loops; none if a number is out of range.
        flip: as `Skeleton.flip`, if the file has it.
        unread_links: what the file lists as links and is none, as text.
    """

    ids: tuple[int, ...]
    name: str
    keypoints: tuple[str, ...]
    named: int
    links: tuple[Edge, ...]
    flip: tuple[int, ...] | None = None
    unread_links: tuple[str, ...] = ()


# --- which categories ---------------------------------------------------------------------------------------


def choose(
    path: Path, categories: Sequence[Any], annotations: Sequence[Any], wanted: Sequence[str] = ()
) -> Category:
    """The category of `wanted` names, or the default.

    Raises:
        UserError: there is none, a name stands for none or for several, or they have other keypoints.
    """
    chosen = [_named(path, categories, annotations, name) for name in wanted] or _default(
        path, categories, annotations
    )
    for category in chosen:
        try:
            number = integer(category, "id", 0, 2**63)
        except BadRecordError as error:
            raise UserError(f"{path}: category '{_name(category)}': {error}") from None
        names = category.get("keypoints") or []
        if not isinstance(names, list) or not all(isinstance(name, str | int | None) for name in names):
            raise UserError(
                f"{path}: category '{_name(category)}': keypoints is {shown(names)}, not a list of names"
            )
        if others := [_name(c) for c in categories if record_id(c) == number and c is not category]:
            raise UserError(
                f"{path}: category id {number} is that of '{_name(category)}' and of '{others[0]}'"
            )
    ids = tuple(number for number in map(record_id, chosen) if number is not None)
    if unlike := [c for c in chosen if _listed(c) != _listed(chosen[0])]:
        raise UserError(
            f"{path}: '{_name(chosen[0])}' and '{_name(unlike[0])}' have other keypoints: choose categories "
            "that share them (acquire.categories)"
        )
    mine = [a for a in annotations if isinstance(a, dict) and whole(a.get("category_id")) in ids]
    title = _title(chosen)
    listed = _listed(chosen[0])
    names = _keypoint_names(title, listed, _count(mine))
    named = len(listed) - sum(given != name for given, name in zip(listed, names, strict=False))
    links, unread = _links(chosen[0].get("skeleton"), names)
    return Category(ids, title, names, named, links, _given_flip(chosen[0], len(names)), unread)


def _named(path: Path, categories: Sequence[Any], annotations: Sequence[Any], name: str) -> Any:
    """The category of a name. Of several, the one that annotations have: Roboflow adds a root category that
    is named after the project."""
    named = [category for category in categories if _name(category) == name.strip().lower()]
    if len(named) > 1:
        used = {whole(a.get("category_id")) for a in annotations if isinstance(a, dict)}
        named = [category for category in named if record_id(category) in used] or named
    if len(named) != 1:
        known = ", ".join(map(_name, categories)) or "none"
        raise UserError(
            f"{path}: 'categories' must name '{name}' once, not {len(named)} times; its categories: {known} "
            "(acquire.categories chooses)"
        )
    return named[0]


def _default(path: Path, categories: Sequence[Any], annotations: Sequence[Any]) -> list[Any]:
    """`person`, or all that have keypoints if it has none; of these, those with annotations if any has."""
    records = [a for a in annotations if isinstance(a, dict)]
    used = {whole(a.get("category_id")) for a in records}
    posed = {whole(a.get("category_id")) for a in records if a.get("keypoints")}
    found = [c for c in categories if isinstance(c, dict) and (_listed(c) or record_id(c) in posed)]
    found = [category for category in found if record_id(category) in used] or found
    if not found or any(_name(category) == "person" for category in found):
        return [_named(path, categories, annotations, "person")]
    return found


def _name(category: Any) -> str:
    """The name of a category, in lower case; "object" if it has none."""
    return str(category.get("name") or "object").strip().lower() if isinstance(category, dict) else ""


def _title(categories: Sequence[Any]) -> str:
    if len(categories) == 1:
        return _name(categories[0])
    (above, *others) = {str(category.get("supercategory") or "").strip().lower() for category in categories}
    return above if above and not others else first(map(_name, categories))


def _listed(category: Any) -> tuple[str, ...]:
    """The names of keypoints that a category lists; "" where there is none."""
    names = category.get("keypoints")
    return (
        tuple("" if name is None else str(name).strip() for name in names) if isinstance(names, list) else ()
    )


# --- which keypoints ----------------------------------------------------------------------------------------


def _count(annotations: Iterable[Any]) -> int:
    """The number of keypoints that most annotations have, of equals the larger; 0 without any."""
    held = [a.get("keypoints") for a in annotations]
    counts = Counter(len(values) // 3 for values in held if isinstance(values, list) and _is_flat(values))
    return max(counts, key=lambda count: (counts[count], count), default=0)


def _is_flat(values: list[Any]) -> bool:
    return bool(values) and len(values) % 3 == 0 and not any(isinstance(value, list) for value in values)


def _given_flip(category: Any, count: int) -> tuple[int, ...] | None:
    """YOLO's `flip_idx`; None if it swaps nothing, which tools write that do not know it."""
    flip = category.get("flip_idx")
    if not isinstance(flip, list) or sorted(map(str, flip)) != sorted(map(str, range(count))):
        return None
    numbers = tuple(map(int, flip))
    return None if numbers == tuple(range(count)) else numbers


def _keypoint_names(title: str, listed: tuple[str, ...], count: int) -> tuple[str, ...]:
    """A name for each of `count` keypoints: the category's or, where it is missing or repeated, with the
    keypoint's number."""
    count = count or len(listed) or len(COCO_PERSON.keypoints)
    are_numbers = all(not name or name.isdigit() for name in listed)
    if title in _PEOPLE and are_numbers and count == len(COCO_PERSON.keypoints):
        return COCO_PERSON.keypoints
    names = (*listed[:count], *[""] * (count - len(listed)))
    return tuple(
        name if name and name not in names[:k] else f"{name or 'keypoint'}_{k + 1}"
        for k, name in enumerate(names)
    )


def _links(value: Any, names: Sequence[str]) -> tuple[tuple[Edge, ...], tuple[str, ...]]:
    """Pairs of names, or of numbers from 1 (from 0 if there is a 0), as indices; others as text.

    A number out of range leaves out all pairs: the list is probably that of other keypoints (CrowdPose lists
    COCO's 17 for its own 14), and its other numbers are wrong too.
    """
    links, unread = list[Edge](), list[str]()
    listed = value if isinstance(value, list) else []
    numbers = {
        whole(end) for pair in listed if isinstance(pair, list) for end in pair if end not in names
    } - {None}
    base = 0 if 0 in numbers else 1
    for pair in listed:
        match [_index(end, names, base) for end in pair] if isinstance(pair, list) else []:
            case [int(a), int(b)] if a != b:
                links.append((a, b))
            case _:
                unread.append(shown(pair))
    in_range = numbers <= set(range(base, base + len(names)))
    return tuple(links) if in_range else (), tuple(unread)


def _index(end: Any, names: Sequence[str], base: int) -> int | None:
    """The index of a keypoint, of which `end` is the name or the number, counted from `base`."""
    number = names.index(end) + base if end in names else whole(end)
    return number - base if number is not None and 0 <= number - base < len(names) else None


def check_order(path: Path, names: Sequence[str]) -> None:
    """Refuse COCO's 17 keypoints in another order than COCO's.

    Raises:
        UserError: they are.
    """
    cocos = list(map(words, COCO_PERSON.keypoints))
    found = list(map(words, names))
    if found != cocos and set(found) == set(cocos):
        name, expected = next(
            pair
            for pair in zip(names, COCO_PERSON.keypoints, strict=False)
            if words(pair[0]) != words(pair[1])
        )
        raise UserError(
            f"{path}: the keypoints are in another order than COCO's: '{name}' is listed instead of "
            f"{expected}; COCO's are {', '.join(COCO_PERSON.keypoints)}"
        )


# --- the skeleton -------------------------------------------------------------------------------------------


def skeleton(
    category: Category, people: Sequence[Annotation], given: params.Skeleton | None = None
) -> Skeleton:
    """The skeleton of a category, whose parts `given` replaces.

    Args:
        people: annotated ones, for their mean pose.

    Raises:
        UserError: the given parts do not fit the keypoints, or two keypoints have the same name.
    """
    given = given or params.Skeleton()
    names = given.keypoints or category.keypoints
    if len(names) != len(category.keypoints):
        raise UserError(
            f"skeleton.keypoints names {len(names)} keypoints, and the annotations hold "
            f"{len(category.keypoints)}"
        )
    is_coco = [*map(words, names)] == [*map(words, COCO_PERSON.keypoints)]
    links = _indices(names, given.links, "links") if given.links else category.links
    try:
        return Skeleton(
            name=category.name,
            keypoints=COCO_PERSON.keypoints if is_coco else names,
            tree=COCO_PERSON.tree if is_coco and not given.links else _tree(links, _mean(people, names)),
            flip=_flip(category, names, given),
            sigmas=_sigmas(names) if given.sigmas is None else given.sigmas,
        )
    except ValueError as error:
        raise UserError(f"the keypoints of '{category.name}': {error} (params.yaml: skeleton)") from None


def warn(category: Category, skeleton: Skeleton, given: params.Skeleton) -> None:
    """Log what was not known about the keypoints."""
    if category.named not in (0, len(category.keypoints)) and not given.keypoints:
        log.warning(
            "annotations of %s hold %d keypoints, the category names %d: %s",
            *(category.name, len(category.keypoints), category.named),
            "the first names are used" if category.named > len(category.keypoints) else "others are numbered",
        )
    if category.unread_links and not given.links and skeleton.tree != COCO_PERSON.tree:
        log.warning(
            "links of %s that are neither names of keypoints nor numbers from 1 to %d: %s. %s left out; give "
            "skeleton.links in params.yaml",
            *(category.name, len(category.keypoints), first(category.unread_links)),
            "They are" if category.links else "All links are",
        )
    unknown = [name for name in skeleton.keypoints if known_sigma(name) is None]
    if unknown and given.sigmas is None:
        log.warning(
            "COCO has no OKS tolerance for %s: %g is used, on which AP depends. Give skeleton.sigmas if you "
            "know them",
            *(first(unknown), DEFAULT_SIGMA),
        )
    if skeleton.flip is None:
        log.warning(
            "the names of the keypoints do not say which are left and right of each other: no image is "
            "mirrored in training. Give skeleton.pairs, or [] if there are none"
        )


def _mean(people: Sequence[Annotation], names: Sequence[str]) -> npt.NDArray[np.floating]:
    posed = [person for person in people if person.visibility.any()]
    return MeanPose.of(posed).keypoints if posed else np.zeros((len(names), 2))


def _tree(links: Sequence[Edge], mean: npt.NDArray[np.floating]) -> tuple[Edge, ...]:
    """A spanning tree of the links, each edge away from keypoint 0; see the module."""
    neighbours: list[list[int]] = [[] for _ in mean]
    for a, b in links:
        neighbours[a].append(b)
        neighbours[b].append(a)
    reached, tree = [0], list[Edge]()
    while len(reached) < len(mean):
        for keypoint in reached:  # grows on the way
            for end in neighbours[keypoint]:
                if end not in reached:
                    reached.append(end)
                    tree.append((keypoint, end))
        if len(reached) < len(mean):
            tree.append(_closest(mean, reached))
            reached.append(tree[-1][1])
    return tuple(tree)


def _closest(mean: npt.NDArray[np.floating], reached: Sequence[int]) -> Edge:
    """The closest pair of a reached keypoint and one that is not, by their mean positions (K x 2)."""
    left = np.setdiff1d(np.arange(len(mean)), reached)
    distance = np.linalg.norm(mean[reached][:, None] - mean[left], axis=-1)
    start, end = np.unravel_index(distance.argmin(), distance.shape)
    return reached[start], int(left[end])


def _indices(names: Sequence[str], pairs: Sequence[tuple[str, str]], key: str) -> list[Edge]:
    for name in (name for pair in pairs for name in pair):
        if name not in names:
            raise UserError(f"skeleton.{key}: there is no keypoint '{name}'; they are {', '.join(names)}")
    return [(names.index(a), names.index(b)) for a, b in pairs]


def _flip(category: Category, names: Sequence[str], given: params.Skeleton) -> tuple[int, ...] | None:
    if given.pairs is None:
        made_up = 0 < category.named < len(names) and not given.keypoints
        return category.flip if made_up else mirrored(names) or category.flip
    flip = list(range(len(names)))
    for a, b in _indices(names, given.pairs, "pairs"):
        flip[a], flip[b] = b, a
    return tuple(flip)


def _sigmas(names: Sequence[str]) -> tuple[float, ...]:
    return tuple(known_sigma(name) or DEFAULT_SIGMA for name in names)
