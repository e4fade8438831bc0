"""dvc.yaml names the code of each stage: a change of what decides its output makes the stage run again."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT

# Rooms that decide nothing, only how work is done, shown and stored; `tables` is a dependency of the stages
# that write the data, whose outputs the others read.
INFRASTRUCTURE = {
    *("personlab.errors", "personlab.params", "personlab.people", "personlab.skeleton"),
    *("personlab.utils", "personlab.tables", "personlab.distributed"),
    "personlab.stages.acquire",  # `ingest` asks it where the images are
}
# Modules that are imported beside what a stage uses.
_PICTURES = {"personlab.viz"}  # sheets and galleries, for people to look at
_FIELDS = {"personlab.codec"}  # stages that read images use neither targets nor fields
EXCUSED = {
    "acquire": _FIELDS,
    "ingest": _FIELDS | _PICTURES,
    "estimator": {"personlab.codec.encode", "personlab.metrics"},  # of metrics, OKS similarity alone
    "impute": {"personlab.codec.encode"} | _PICTURES,
    # monitoring: better ways to find people are no reason to train again
    "train": {"personlab.predictor", "personlab.metrics", "personlab.codec.decode"},
    "infer": {"personlab.metrics"} | _PICTURES,
    "evaluate": _FIELDS | {"personlab.data"},
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


def parents(module: str) -> Iterator[str]:
    while "." in module:
        module = module.rpartition(".")[0]
        yield module


def followed(stage: str) -> set[Path]:
    """Every file that a stage imports, but for infrastructure and what only that imports."""
    left_out = INFRASTRUCTURE | EXCUSED.get(stage, set())
    found, pending = set[Path](), [f"personlab.stages.{stage}"]
    while pending:
        file = file_of(pending.pop())
        if file and file not in found:
            found.add(file)
            pending += [name for name in imports(file) if not {name, *parents(name)} & left_out]
    return {file for file in found if file.name != "__init__.py" or "backbones" in file.parts}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_the_code_it_imports(stage: str) -> None:
    deps = [ROOT / dep for dep in STAGES[stage]["deps"]]
    missing = {file for file in followed(stage) if not {file, *file.parents} & set(deps)}
    assert sorted(str(file.relative_to(ROOT)) for file in missing) == []
