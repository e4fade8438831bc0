"""Schema of every table that crosses a stage boundary, and the one way to write and read them.

Plain Arrow types; rows sorted by the caller; same rows in, same bytes out. A table is written to a
temporary name and renamed, so nothing half-written is ever visible under its final name.

Keypoints are 2 * 17 numbers x0, y0, x1, y1, ... in image pixels, visibility is COCO's 0/1/2, a mask is
COCO's compressed run-length string over the whole image.
"""

import pyarrow as pa

FORMAT_VERSION = 1

IMAGES = pa.schema(
    [
        ("split", pa.string()),  # train | val
        ("image_id", pa.int64()),
        ("file_name", pa.string()),  # relative to the dataset's root, e.g. val2017/000000000139.jpg
        ("height", pa.int32()),
        ("width", pa.int32()),
    ]
)

_PERSON = [
    ("person_id", pa.int64()),  # COCO's annotation id
    ("keypoints", pa.list_(pa.float32())),
    ("visibility", pa.list_(pa.int8())),
    ("confidence", pa.list_(pa.float32())),  # 1 annotated, the estimator's if imputed, 0 unlabelled
    ("imputed", pa.bool_()),
    ("box", pa.list_(pa.float32())),  # x, y, width, height
    ("area", pa.float64()),
    ("crowd", pa.bool_()),
    ("mask", pa.binary()),
]

PEOPLE = pa.schema([("split", pa.string()), ("image_id", pa.int64()), *_PERSON])

REJECTS = pa.schema(
    [
        ("file", pa.string()),  # where the bad record stands
        ("record", pa.string()),  # e.g. "annotation 1234", "image 56"
        ("reason", pa.string()),
    ]
)

# One row is one image, complete: after `targets` nothing reads an image file again.
SHARD = pa.schema(
    [
        ("image_id", pa.int64()),
        ("file_name", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("jpeg", pa.binary()),
        ("people", pa.list_(pa.struct(_PERSON))),
    ]
)

_DETECTION = [
    ("score", pa.float32()),
    ("keypoints", pa.list_(pa.float32())),
    ("keypoint_scores", pa.list_(pa.float32())),
    ("mask", pa.binary()),
]

PREDICTIONS = pa.schema(
    [
        ("image_id", pa.int64()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("people", pa.list_(pa.struct(_DETECTION))),  # best first
    ]
)
