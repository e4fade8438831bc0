"""Tiny COCO layouts for tests: solid-coloured JPEGs and one good person, to be spoilt one way at a time."""

import json
from pathlib import Path
from typing import Any

from PIL import Image

from personlab.data.coco import Layout
from personlab.tables import Split

HEIGHT, WIDTH = 30, 40
SQUARE = [[10.0, 5.0, 20.0, 5.0, 20.0, 25.0, 10.0, 25.0]]  # 10 x 20 pixels
Record = dict[str, Any]


def layout(root: Path, split: Split) -> Layout:
    """COCO's own."""
    return Layout(root, split, root / f"annotations/person_keypoints_{split}2017.json", f"{split}2017")


def image(image_id: int, **changes: Any) -> Record:
    return {"id": image_id, "file_name": f"{image_id}.jpg", "height": HEIGHT, "width": WIDTH} | changes


def person(annotation_id: int, image_id: int, **changes: Any) -> Record:
    """A person with two labelled keypoints, nose (12, 8) and left eye (14.5, 7)."""
    good = {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": 1,
        "iscrowd": 0,
        "keypoints": [12, 8, 2, 14.5, 7, 1, *[0] * 45],
        "num_keypoints": 2,
        "segmentation": SQUARE,
        "bbox": [10, 5, 10, 20],
        "area": 200.0,
    }
    return good | changes


def without(record: Record, *keys: str) -> Record:
    return {key: value for key, value in record.items() if key not in keys}


def document(images: list[Any], annotations: list[Any]) -> Record:
    categories = [{"id": 1, "name": "person"}, {"id": 3, "name": "car"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def write_json(root: Path, split: str, content: Any) -> Path:
    path = root / "annotations" / f"person_keypoints_{split}2017.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def write_image(path: Path, kind: str = "JPEG", size: tuple[int, int] = (WIDTH, HEIGHT)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.effect_noise(size, 64).convert("RGB").save(path, kind)


def write_layout(root: Path, split: str, images: list[Any], annotations: list[Any]) -> Path:
    """Annotations, and a good JPEG for every image named by a plain file name."""
    for record in images:
        if isinstance(record, dict) and Path(str(record.get("file_name"))).suffix == ".jpg":
            name = Path(record["file_name"]).name
            write_image(root / f"{split}2017" / name)
    (root / f"{split}2017").mkdir(parents=True, exist_ok=True)
    return write_json(root, split, document(images, annotations))
