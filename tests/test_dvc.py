"""dvc.yaml names the code of each stage: a change of what decides its output makes the stage run again."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT

# What no stage depends on, nor on what it imports itself: it decides nothing, only how work is done, said and
# kept; or its own stage depends on it, whose output the others read.
INFRASTRUCTURE = {
    *(
        "personlab.utils.prefetch",
        "personlab.errors",
        "personlab.utils.files",
        "personlab.utils.logs",
        "personlab.utils.malloc",
    ),
    *("personlab.params", "personlab.people", "personlab.utils.progress", "personlab.skeleton"),
    "personlab.utils.storage",
    *("personlab.distributed.cluster", "personlab.distributed.checkpoints", "personlab.distributed.board"),
    "personlab.tables.schema",  # of ingest
    "personlab.stages.acquire",  # of acquire; others ask it where the images are
}
# What is imported beside what is used: they read images, or draw people, and make no targets or fields.
_TARGETS = {"personlab.codec.encode"}
_FIELDS = {*_TARGETS, "personlab.codec.fields"}
EXCUSED = {
    "ingest": _FIELDS,
    "estimator": _TARGETS | {"personlab.metrics.coco"},  # similarity alone is used
    "impute": _TARGETS,
    # better ways to find people in validation images are no reason to train again
    "train": {"personlab.training.validation"},
    "evaluate": _FIELDS,
}
STAGES: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


def file_of(module: str) -> Path | None:
    """A module's or package's, if there is such a module."""
    path = ROOT / module.replace(".", "/")
    files = (path.with_suffix(".py"), path / "__init__.py")
    return next((file for file in files if file.is_file()), None)


def imports(file: Path) -> Iterator[str]:
    """The modules of this program that a file imports anywhere in it."""
    for node in ast.walk(ast.parse(file.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        yield from (name for name in names if name.startswith("personlab.") and file_of(name))


def followed(stage: str) -> set[Path]:
    """Every file that a stage imports, but for infrastructure and what only that imports."""
    left_out = INFRASTRUCTURE | EXCUSED.get(stage, set())
    found, pending = set[Path](), [f"personlab.stages.{stage}"]
    while pending:
        file = file_of(pending.pop())
        if file and file not in found:
            found.add(file)
            pending += [name for name in imports(file) if name not in left_out]
    return {file for file in found if file.name != "__init__.py"}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_the_code_it_imports(stage: str) -> None:
    deps = [ROOT / dep for dep in STAGES[stage]["deps"]]
    missing = {file for file in followed(stage) if not {file, *file.parents} & set(deps)}
    assert sorted(str(file.relative_to(ROOT)) for file in missing) == []
