"""The weights that people are predicted with where no others are named."""

import logging
from pathlib import Path
from typing import Final

DEFAULT_NETWORK: Final = "bodypix-mobilenet-075"

log = logging.getLogger("personlab")


def find(weights: str | None, project: Path) -> Path:
    """The checkpoint that a path, URI or name of a network stands for; of None the champion of the project,
    else the default network.

    Raises:
        UserError: as `zoo.find` or `local_copy`.
    """
    from personlab.inference.local_copy import local_copy
    from personlab.registry.models import WEIGHTS, Registry
    from personlab.weights import zoo

    if weights:
        return zoo.find(local_copy(weights))
    champion = Registry(project).champion()
    return champion.folder / WEIGHTS if champion else zoo.get(DEFAULT_NETWORK)


def find_and_log(weights: str | None) -> Path:
    """`find` in the current folder; a log line names the checkpoint unless it was named."""
    path = find(weights, Path.cwd())
    if not weights:
        log.info("weights: %s; --weights takes others", path)
    return path
