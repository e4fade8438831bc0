"""Which annotations of a file are read, and the skeleton of their keypoints."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from personlab import params
from personlab.data import category, coco
from personlab.data.category import Category, choose, skeleton
from personlab.errors import UserError
from personlab.people import Annotation
from personlab.skeleton import COCO_PERSON, DEFAULT_SIGMA
from tests.layouts import document, image, person, write_json

FILE = Path("some.json")
DOG = {"id": 2, "name": "dog", "supercategory": "animal", "keypoints": ["nose", "tail"], "skeleton": [[1, 2]]}
CAT = DOG | {"id": 5, "name": "cat"}
PERSON = {"id": 1, "name": "Person"}


def posed(category_id: Any, count: int = 2) -> dict[str, Any]:
    return {"category_id": category_id, "keypoints": [1, 2, 2] * count}


# --- which category -----------------------------------------------------------------------------------------


def test_person_comes_before_others_that_have_keypoints() -> None:
    found = choose(FILE, [DOG, PERSON], [posed(2), posed(1, 17)])
    assert (found.ids, found.name, found.keypoints) == ((1,), "person", COCO_PERSON.keypoints)


def test_categories_that_share_their_keypoints_are_taken_together() -> None:
    found = choose(FILE, [DOG, {"id": 3, "name": "tree"}, CAT], [posed(2), posed(5)])
    assert (found.ids, found.name, found.keypoints, found.links) == (
        (2, 5),
        "animal",
        ("nose", "tail"),
        ((0, 1),),
    )


def test_a_person_without_keypoints_gives_way_to_categories_that_have_them() -> None:
    assert choose(FILE, [DOG, PERSON], [posed(2), {"category_id": 1}]).name == "dog"
    assert choose(FILE, [{"id": 2, "name": "dog"}, PERSON], [{"category_id": 2}]).name == "person"


def test_a_category_is_chosen_by_name() -> None:
    assert choose(FILE, [DOG, CAT, PERSON], [posed(2)], ["Cat"]).ids == (5,)
    with pytest.raises(UserError, match="must name 'horse' once, not 0 times; its categories: dog, cat"):
        choose(FILE, [DOG, CAT], [], ["horse"])


def test_categories_with_other_keypoints_are_not_taken_together() -> None:
    bird = DOG | {"id": 7, "name": "bird", "keypoints": ["beak", "tail"]}
    with pytest.raises(UserError, match=r"'dog' and 'bird' have other keypoints: .*acquire\.categories"):
        choose(FILE, [DOG, bird], [])
    assert choose(FILE, [DOG, bird], [], ["bird"]).keypoints == ("beak", "tail")


def test_names_go_as_far_as_annotations_and_numbers_further(caplog: pytest.LogCaptureFixture) -> None:
    fewer = choose(FILE, [DOG], [posed(2, 3), posed(2, 3), posed(2, 2)])
    assert fewer.keypoints == ("nose", "tail", "keypoint_3")
    more = choose(FILE, [DOG | {"keypoints": ["a", "b", "c"]}], [posed(2, 2)])
    assert more.keypoints == ("a", "b")
    category.warn(more, skeleton(more, []), params.Skeleton())
    assert "annotations of dog hold 2 keypoints, the category names 3: the first names" in caplog.text


def test_categories_without_annotations_give_way_to_those_that_have_some() -> None:
    bird = DOG | {"id": 7, "name": "bird", "keypoints": ["beak", "tail"]}
    person = PERSON | {"keypoints": list(COCO_PERSON.keypoints)}
    assert choose(FILE, [DOG, bird, person], [posed(7)]).keypoints == ("beak", "tail")
    assert choose(FILE, [DOG, CAT], [posed(5)]).ids == (5,)
    assert choose(FILE, [bird, person], []).name == "person"


def test_missing_and_repeated_names_are_numbered(caplog: pytest.LogCaptureFixture) -> None:
    found = choose(
        FILE, [DOG | {"keypoints": ["left_eye", "right_eye", None, "", "tail", "tail"]}], [posed(2, 6)]
    )
    assert found.keypoints == ("left_eye", "right_eye", "keypoint_3", "keypoint_4", "tail", "tail_6")
    derived = skeleton(found, [])
    assert derived.flip is None  # what is not named may be on a side
    category.warn(found, derived, params.Skeleton())
    assert "hold 6 keypoints, the category names 3: others are numbered" in caplog.text


@pytest.mark.parametrize("names", [[], None, [None] * 17, [str(k) for k in range(17)]])
def test_seventeen_keypoints_without_names_are_cocos(names: Any) -> None:
    found = choose(FILE, [PERSON | {"keypoints": names}], [posed(1, 17)])
    assert skeleton(found, []) == COCO_PERSON


def test_seventeen_keypoints_of_others_are_numbered_and_names_may_be_of_any_script() -> None:
    fish = {"id": 4, "name": "fish"}
    assert choose(FILE, [fish], [posed(4, 17)]).keypoints[0] == "keypoint_1"
    chinese = [f"点{k}号" for k in range(17)]
    assert choose(FILE, [PERSON | {"keypoints": chinese}], [posed(1, 17)]).keypoints == tuple(chinese)


def test_flip_idx_says_what_names_do_not_and_one_that_swaps_nothing_is_unknown() -> None:
    def flip(names: Sequence[str], flip_idx: Any) -> Any:
        listed = DOG | {"keypoints": list(names), "flip_idx": flip_idx}
        return skeleton(choose(FILE, [listed], [posed(2, len(names))]), []).flip

    assert flip(["a", "b"], [1, 0]) == flip(["a", "b"], ["1", "0"]) == (1, 0)
    assert flip(["a", "b"], [0, 1]) is flip(["a", "b"], [7, 8]) is None
    assert flip(["left_eye", "right_eye"], [0, 1]) == (1, 0)


def test_numbered_keypoints_are_not_taken_for_the_middle() -> None:
    named = DOG | {"keypoints": ["nose", "left_eye", "right_eye"]}
    assert skeleton(choose(FILE, [named], [posed(2, 5)]), []).flip is None


def test_links_may_count_from_one_or_zero_and_others_are_named(caplog: pytest.LogCaptureFixture) -> None:
    def links(pairs: Any) -> tuple[tuple[int, int], ...]:
        return choose(FILE, [DOG | {"skeleton": pairs}], [posed(2)]).links

    assert links([["nose", "tail"]]) == ((0, 1),)
    assert links([[1, 2]]) == links([[0, 1]]) == links([[1, 2], [2, 2], "ab", [1]]) == ((0, 1),)
    assert links(None) == links(5) == ()
    named = choose(FILE, [DOG | {"skeleton": [["nose", "ear"], [1, 2]]}], [posed(2)])
    category.warn(named, skeleton(named, []), params.Skeleton())
    assert 'numbers from 1 to 2: ["nose", "ear"]. They are left out' in caplog.text


def test_a_number_out_of_range_leaves_out_all_links(caplog: pytest.LogCaptureFixture) -> None:
    for pairs in ([[1, 2], [1, 9]], [[0, 1], [1, 2]], [["nose", "tail"], [-1, 1]]):
        found = choose(FILE, [DOG | {"skeleton": pairs}], [posed(2)])
        assert found.links == ()
    category.warn(found, skeleton(found, []), params.Skeleton())
    assert "[-1, 1]. All links are left out; give skeleton.links in params.yaml" in caplog.text


@pytest.mark.parametrize("names", [[{"name": "nose"}, {"name": "tail"}], {"1": "nose"}, "nose, tail"])
def test_keypoints_that_are_no_list_of_names_are_refused(names: Any) -> None:
    with pytest.raises(UserError, match=r"some\.json: category 'dog': keypoints is .*, not a list of names"):
        choose(FILE, [DOG | {"keypoints": names}], [posed(2)])


# --- the tree -----------------------------------------------------------------------------------------------


def dataset(names: Sequence[str], links: Sequence[tuple[int, int]]) -> Category:
    return Category((1,), "thing", tuple(names), len(names), tuple(links))


def annotated(*xy: tuple[float, float]) -> Annotation:
    keypoints = np.array(xy, np.float32)
    return Annotation(1, keypoints, np.full(len(xy), 2, np.int8), False, (0, 0, 100, 100), 1, False, b"")


def tree(names: str, linked: str, *xy: tuple[float, float], **given: Any) -> set[str]:
    """The tree's edges, e.g. "ab" from a to b; links are written the same way."""
    found = skeleton(
        dataset(names, [(names.index(a), names.index(b)) for a, b in linked.split()]),
        [annotated(*xy)] if xy else [],
        params.Skeleton(**given),
    )
    return {names[a] + names[b] for a, b in found.tree}


def test_links_without_loops_are_the_tree_whatever_their_direction() -> None:
    assert tree("abcd", "ba bc db") == {"ab", "bc", "bd"}


def test_a_loop_is_broken_as_far_from_the_first_keypoint_as_can_be() -> None:
    assert tree("abcd", "ab bc cd da") == {"ab", "ad", "bc"}


def test_parts_without_links_are_joined_by_their_closest_keypoints() -> None:
    ends = [(0.0, 0.0), (10.0, 0.0), (90.0, 0.0), (30.0, 0.0)]
    assert tree("abcd", "ab cd", *ends) == {"ab", "bd", "dc"}
    assert tree("abcd", "", *ends) == {"ab", "bd", "dc"}


def test_given_links_replace_the_files() -> None:
    assert tree("abc", "ab bc", links=[("a", "c"), ("c", "b")]) == {"ac", "cb"}
    with pytest.raises(UserError, match=r"skeleton\.links: there is no keypoint 'z'; they are a, b, c"):
        tree("abc", "ab", links=[("a", "z")])


# --- mirroring, tolerances, names ---------------------------------------------------------------------------


def test_coco_is_known_by_its_names_and_its_parts_can_be_replaced() -> None:
    words = [name.replace("_", " ").title() for name in COCO_PERSON.keypoints]
    known = Category((1,), "person", tuple(words), 17, ())
    assert skeleton(known, []) == COCO_PERSON
    sigmas = tuple(0.01 * (k + 1) for k in range(17))
    other = skeleton(known, [], params.Skeleton(sigmas=sigmas))
    assert (other.sigmas, other.tree) == (sigmas, COCO_PERSON.tree)


def test_pairs_and_tolerances_follow_from_names(caplog: pytest.LogCaptureFixture) -> None:
    eyes = dataset(["L_Eye", "R_Eye", "tail"], [(0, 1), (1, 2)])
    found = skeleton(eyes, [])
    assert (found.flip, found.sigmas) == ((1, 0, 2), (0.025, 0.025, DEFAULT_SIGMA))
    category.warn(eyes, found, params.Skeleton())
    assert "no OKS tolerance for tail: 0.07 is used" in caplog.text


def test_without_sides_nothing_is_mirrored_unless_pairs_are_given(caplog: pytest.LogCaptureFixture) -> None:
    hand = dataset(["wrist", "thumb"], [(0, 1)])
    unknown = skeleton(hand, [])
    assert unknown.flip is None
    category.warn(hand, unknown, params.Skeleton())
    assert "no image is mirrored in training. Give skeleton.pairs" in caplog.text
    assert skeleton(hand, [], params.Skeleton(pairs=[])).flip == (0, 1)
    assert skeleton(hand, [], params.Skeleton(pairs=[("wrist", "thumb")])).flip == (1, 0)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"keypoints": ["a"]}, "names 1 keypoints, and the annotations hold 2"),
        ({"keypoints": ["a", "a"]}, "2 keypoints do not have a name of their own: a"),
        ({"sigmas": [0.1]}, "2 keypoints need as many sigmas"),
    ],
)
def test_given_parts_that_do_not_fit_are_refused(given: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        skeleton(dataset(["wrist", "thumb"], []), [], params.Skeleton(**given))


# --- files --------------------------------------------------------------------------------------------------


def test_a_share_of_the_images_is_the_validation_split(tmp_path: Path) -> None:
    images = [image(number) for number in range(1, 21)]
    people = [person(100 + number, number) for number in range(1, 21)] + [person(200, 99)]
    records = coco.load(write_json(tmp_path, "train", document(images, people)))

    def ids(split: Any, **share: Any) -> set[int]:
        part = records.of(split, coco.Share(**{"val": 0.2, "seed": 0} | share))
        numbers = {record["id"] for record in part.images}
        assert {record["image_id"] for record in part.people} - {99} == numbers
        return numbers

    train, val = ids("train"), ids("val")
    assert (len(train), len(val), train & val) == (16, 4, set())
    assert ids("val", seed=1) != val
    assert ids("val", val=0.3) > val  # more of the same order
    assert len(ids("val", val=0.001)) == 1
    assert len(ids("train", val=0.999)) == 1
