"""An excerpt of COCO 2017: images chosen by their ids, downloaded one by one, with their annotations."""

import json
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from personlab.data.coco import Layout
from personlab.data.download import COCO_2017, download, fetch_archives
from personlab.errors import UserError, first
from personlab.params import reasons
from personlab.tables import SPLITS, Split
from personlab.utils.files import write_json
from personlab.utils.progress import progress

_ANNOTATIONS: Final = tuple(archive for archive in COCO_2017 if archive.folder == "annotations")
_CONNECTIONS: Final = 8


class Excerpt(BaseModel):
    """Ids of the images of both splits. COCO's own splits do not matter: ids are unique in all of COCO."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    train: tuple[int, ...]
    val: tuple[int, ...]

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        counts = Counter(self.train + self.val)
        if repeated := [str(each) for each, count in counts.items() if count > 1]:
            raise ValueError(f"more than once: {first(repeated)}")
        return self

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a JSON file: {"train": [id, ...], "val": [id, ...]}.

        Raises:
            UserError: there is no such file, or it holds something else.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            raise UserError(f"{path}: no such file (acquire.excerpt)") from None
        except ValidationError as error:
            raise UserError(f"{path}: not an excerpt of COCO: {reasons(error)}") from None


def fetch(excerpt: Excerpt, url: str, folder: Path, output: Path) -> dict[Split, Layout]:
    """Download what is missing in `folder`, and write the annotations of both splits to `output`.

    Images are taken from `folder`/train2017 and val2017 if all of COCO is there, and else kept in
    `folder`/photos. An interrupted download is resumed.

    Raises:
        UserError: COCO has no image of an id, or a download fails (see `download`).
    """
    fetch_archives(url, folder, _ANNOTATIONS)
    records = _find(set(excerpt.train + excerpt.val), folder)
    _download([record for record in records.values() if not record.file.exists()], url)
    layouts = dict[Split, Layout]()
    for split in SPLITS:
        chosen = [records[each] for each in getattr(excerpt, split)]
        layouts[split] = Layout(folder, split, output / f"{split}.json", ".")
        write_json(layouts[split].annotations, _as_coco(chosen, folder))
    return layouts


@dataclass(frozen=True)
class _Record:
    """An image of COCO.

    Attributes:
        path: on the server, below its address.
        file: on this machine.
    """

    image: dict[str, Any]
    annotations: list[dict[str, Any]]
    categories: list[dict[str, Any]]
    path: str
    file: Path


def _find(ids: set[int], folder: Path) -> dict[int, _Record]:
    """COCO's records of the images with these ids."""
    records = dict[int, _Record]()
    for split in SPLITS:
        name = f"{split}2017"
        images = folder / name if (folder / name).is_dir() else folder / "photos" / name
        content = json.loads((folder / f"annotations/person_keypoints_{name}.json").read_bytes())
        people: dict[int, list[dict[str, Any]]] = {}
        for person in content["annotations"]:
            people.setdefault(person["image_id"], []).append(person)
        for image in content["images"]:
            if (known := image["id"]) in ids:
                records[known] = _Record(
                    image,
                    people.get(known, []),
                    content["categories"],
                    f"{name}/{image['file_name']}",
                    images / image["file_name"],
                )
    if unknown := sorted(ids - records.keys()):
        raise UserError(
            f"acquire.excerpt: COCO 2017 has no images with these ids: {first(map(str, unknown))}"
        )
    return records


def _download(missing: list[_Record], url: str) -> None:
    def fetch_one(record: _Record) -> None:
        download(f"{url.rstrip('/')}/{record.path}", record.file)

    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        done = pool.map(fetch_one, missing)
        try:
            for _ in progress(done, total=len(missing), label="download photos"):
                pass
        finally:
            pool.shutdown(cancel_futures=True)


def _as_coco(records: list[_Record], folder: Path) -> Mapping[str, Any]:
    return {
        "categories": records[0].categories if records else [],
        "images": [
            record.image | {"file_name": record.file.relative_to(folder).as_posix()} for record in records
        ],
        "annotations": [person for record in records for person in record.annotations],
    }
