"""The schema of every table that stages exchange.

Keypoints are 2 K numbers x0, y0, x1, y1, ... in image pixels, visibility is COCO's 0/1/2, a mask is COCO's
compressed run-length string over the whole image, empty if there is none. K is that of the dataset
(dataset.json beside the tables) or of the model.
"""

from typing import Final, Literal

import pyarrow as pa
import pyarrow.compute as pc

from personlab.tables.checks import (
    ALL_FINITE,
    FINITE,
    HAS_SIZE,
    NOT_EMPTY,
    POSITIVE,
    SAME_LENGTH,
    Contract,
    as_long_as,
    contract,
    in_order,
    length,
    one_of,
    unique,
    within,
)

Split = Literal["train", "val"]
SPLITS: Final[tuple[Split, ...]] = ("train", "val")

_PERSON = [
    ("person_id", pa.int64()),  # COCO's annotation id
    ("keypoints", pa.list_(pa.float32())),
    ("visibility", pa.list_(pa.int8())),
    ("confidence", pa.list_(pa.float32())),  # 1 if annotated, the estimator's if imputed, 0 if unlabelled
    ("imputed", pa.bool_()),
    ("box", pa.list_(pa.float32())),  # x, y, width, height
    ("area", pa.float64()),
    ("crowd", pa.bool_()),
    ("mask", pa.binary()),
]

PEOPLE = pa.schema([("split", pa.string()), ("image_id", pa.int64()), *_PERSON])

REJECTS = pa.schema(
    [
        ("file", pa.string()),  # that holds the record
        ("record", pa.string()),  # e.g. "annotation 1234", "image 56"
        ("reason", pa.string()),
    ]
)

# Image shards, written by `ingest`; later stages read no image files.
IMAGES = pa.schema(
    [
        ("image_id", pa.int64()),
        ("file_name", pa.string()),  # relative to the dataset's root, e.g. val2017/000000000139.jpg
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("image", pa.binary()),  # the file's own bytes, or a PNG of the pixels that EXIF shows
    ]
)

# The people of the image shards, row for row: same parts, row groups and order.
TARGETS = pa.schema([("image_id", pa.int64()), ("people", pa.list_(pa.struct(_PERSON)))])

_DETECTION = [
    ("score", pa.float32()),
    ("keypoints", pa.list_(pa.float32())),
    ("keypoint_scores", pa.list_(pa.float32())),
    ("mask", pa.binary()),  # empty if masks were not predicted
]

PREDICTIONS = pa.schema(
    [
        ("image_id", pa.int64()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("people", pa.list_(pa.struct(_DETECTION))),  # best first
    ]
)

# The frames of a video: the id is the number of the frame, from 0; milliseconds since the first.
FRAMES = PREDICTIONS.insert(1, pa.field("milliseconds", pa.float64()))

# Batch inference: what there is to read (personlab/inference/listing.py), what was found, what could not be
# read. An image's id is its place in INPUTS; predictions can be read as PREDICTIONS too.
INPUTS = pa.schema([("file", pa.string()), ("row", pa.int64())])  # row -1: the file is the picture

# orientation: EXIF's, of the image file; 1 is upright.
NAMED_PREDICTIONS = PREDICTIONS.insert(1, pa.field("image", pa.string())).append(
    pa.field("orientation", pa.int8())
)

FAILURES = pa.schema([("image_id", pa.int64()), ("image", pa.string()), ("reason", pa.string())])

# The tables that `people_rows` returns.
_TARGET_PEOPLE = pa.schema([("image_id", pa.int64()), *_PERSON])
_PREDICTED_PEOPLE = pa.schema([("image_id", pa.int64()), *_DETECTION])

_PERSON_CHECKS = {
    "keypoints": [as_long_as("visibility", 2), ALL_FINITE],
    "visibility": [SAME_LENGTH, within(0, 2)],
    "confidence": [as_long_as("visibility"), within(0, 1)],
    "box": [length(4), ALL_FINITE, HAS_SIZE],
    "area": [FINITE, POSITIVE],
}
_DETECTION_CHECKS = {
    "score": [FINITE],
    "keypoints": [as_long_as("keypoint_scores", 2), ALL_FINITE],
    "keypoint_scores": [SAME_LENGTH, ALL_FINITE],
}

_SIZE = {"height": [POSITIVE], "width": [POSITIVE]}
_BY_IMAGE = unique("image_id"), in_order(image_id="ascending")

_CONTRACTS: Final = (
    contract(IMAGES, ("image_id",), {**_SIZE, "file_name": [NOT_EMPTY], "image": [NOT_EMPTY]}, *_BY_IMAGE),
    contract(
        PEOPLE,
        ("split", "image_id", "person_id"),
        {"split": [one_of(*SPLITS)], **_PERSON_CHECKS},
        unique("split", "person_id"),
        in_order(split="ascending", image_id="ascending", person_id="ascending"),
    ),
    contract(
        REJECTS,
        ("file", "record"),
        {name: [NOT_EMPTY] for name in REJECTS.names},
        in_order(file="ascending", record="ascending", reason="ascending"),
    ),
    contract(TARGETS, ("image_id",), {}, *_BY_IMAGE),
    contract(
        _TARGET_PEOPLE,
        ("image_id", "person_id"),
        _PERSON_CHECKS,
        unique("person_id"),
        in_order(image_id="ascending", person_id="ascending"),
    ),
    contract(PREDICTIONS, ("image_id",), _SIZE, *_BY_IMAGE),
    contract(FRAMES, ("image_id",), {**_SIZE, "milliseconds": [FINITE]}, *_BY_IMAGE),
    contract(
        INPUTS,
        ("file", "row"),
        {"file": [NOT_EMPTY]},
        unique("file", "row"),
        in_order(file="ascending", row="ascending"),
    ),
    contract(
        NAMED_PREDICTIONS,
        ("image_id", "image"),
        {**_SIZE, "image": [NOT_EMPTY], "orientation": [POSITIVE]},
        *_BY_IMAGE,
    ),
    contract(FAILURES, ("image_id", "image"), {"image": [NOT_EMPTY], "reason": [NOT_EMPTY]}, *_BY_IMAGE),
    contract(
        _PREDICTED_PEOPLE,
        ("image_id",),
        _DETECTION_CHECKS,
        in_order(image_id="ascending", score="descending"),
    ),
)


def validate(table: pa.Table) -> None:
    """Check a table, and the people nested in it, against the schema with its columns.

    Raises:
        UserError: rows are invalid; the message names the first of them for each reason.
        ValueError: no schema of this module has these columns.
    """
    _contract_of(table.schema).validate(table)
    if "people" in table.column_names:
        validate(people_rows(table))


def _contract_of(schema: pa.Schema) -> Contract:
    for candidate in _CONTRACTS:
        if schema.equals(candidate.arrow):
            return candidate
    raise ValueError(f"no schema of personlab.tables.schema has these columns:\n{schema.to_string()}")


def people_rows(table: pa.Table) -> pa.Table:
    """The people of a table of targets or predictions, one row each, with the `image_id` of their image."""
    people = table["people"].combine_chunks()
    image_id = table["image_id"].take(pc.list_parent_indices(people))
    persons = pc.list_flatten(people)
    return pa.table([image_id, *persons.flatten()], names=["image_id", *persons.type.names])
