"""What `ingest` found out about a dataset: data/ingest/dataset.json, for the stages after it."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter, ValidationError

from personlab.errors import UserError
from personlab.skeleton import Skeleton
from personlab.utils.files import write_json

DATASET: Final = "dataset.json"


@dataclass(frozen=True)
class Dataset:
    """The keypoints of a dataset's people (or animals, or things), and whether any of them has a mask."""

    skeleton: Skeleton
    masks: bool

    def write(self, folder: Path) -> None:
        """Write dataset.json to the folder of `ingest`."""
        write_json(folder / DATASET, asdict(self))


def read_dataset(data: Path) -> Dataset:
    """Read ingest/dataset.json in the folder `data`.

    Raises:
        UserError: the file is missing or was not written by `ingest`.
    """
    path = data / "ingest" / DATASET
    try:
        return TypeAdapter(Dataset).validate_json(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run 'dvc repro ingest' first") from None
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise UserError(f"{path}: not written by ingest ({reason}); run 'dvc repro --force ingest'") from None
