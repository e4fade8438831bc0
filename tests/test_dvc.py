"""dvc.yaml: a stage runs again if something changes that decides its outputs, and only then."""

import ast
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from personlab.params import NO_FOLDER, RANDOM
from tests.conftest import ROOT

# No stage depends on these, nor on what only they import: they decide how work is done, reported and stored,
# but no output. `tables` decides those of ingest and targets, which list it, and `viz` those of evaluate.
INFRASTRUCTURE = (
    *("personlab.utils", "personlab.distributed", "personlab.tables", "personlab.viz"),
    *("personlab.errors", "personlab.params", "personlab.people", "personlab.skeleton"),
)
# Imported along with what is used: to read an image involves no encoder; `metrics` and `predictor` only
# measure what estimator and train have learnt; evaluate reads images for its gallery.
_ENCODER = ("personlab.codec.encode",)
EXCUSED = {
    "acquire": ("personlab.codec.fields",),
    "ingest": (*_ENCODER, "personlab.codec.fields", "personlab.stages.acquire"),
    "estimator": (*_ENCODER, "personlab.metrics"),
    "impute": _ENCODER,
    "train": ("personlab.predictor", "personlab.metrics"),
    "evaluate": ("personlab.data",),
}
STAGES: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


# --- dependencies on code, by the imports -------------------------------------------------------------------


def file_of(module: str) -> Path | None:
    """The file of a module or package, if it is one."""
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


def imported(stage: str) -> set[Path]:
    """Every file that a stage imports, except infrastructure and what is excused."""
    left_out = {*INFRASTRUCTURE, *EXCUSED.get(stage, ())}
    found, pending = set[Path](), [f"personlab.stages.{stage}"]
    while pending:
        file = file_of(pending.pop())
        if file and file not in found:
            found.add(file)
            parents = {name: {".".join(name.split(".")[:n]) for n in range(2, 9)} for name in imports(file)}
            pending += [name for name, above in parents.items() if not above & left_out]
    return {file for file in found if file.name != "__init__.py"}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_the_code_it_imports(stage: str) -> None:
    deps = [ROOT / dep for dep in STAGES[stage]["deps"]]
    missing = {file for file in imported(stage) if not {file, *file.parents} & set(deps)}
    assert sorted(str(file.relative_to(ROOT)) for file in missing) == []
    assert all(dep.exists() for dep in deps if dep.is_relative_to(ROOT / "personlab"))


# --- what runs again, by a real DVC -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of the pipeline in which every stage is up to date; its outputs are placeholders."""
    from dvc.repo import Repo

    folder = tmp_path_factory.mktemp("project")
    for name in ("dvc.yaml", ".dvcignore", ".gitignore", "data/.gitignore", RANDOM, NO_FOLDER):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    shutil.copytree(ROOT / "personlab", folder / "personlab", ignore=shutil.ignore_patterns("__pycache__"))
    write(folder / "models/start.safetensors", "some weights")
    for stage in STAGES:
        for kind in ("data/{}/out", "data/metrics/{}.json", "data/plots/{}/curve.tsv"):
            write(folder / kind.format(stage), "{}")
    for name in ("ingest/train", "ingest/val", "targets/train", "targets/val"):
        write(folder / f"data/{name}/part-00000.parquet", name)
    write(folder / "data/ingest/dataset.json", "{}")
    for name in ("model.safetensors", "model.json"):
        write(folder / "data/train" / name, name)
    subprocess.run(("git", "init", "-q"), cwd=folder, check=True)
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["model"]["init"] = "models/start.safetensors"
    params["estimator"]["init"] = RANDOM
    write(folder / "params.yaml", yaml.safe_dump(params))
    with inside(folder), Repo.init(str(folder)) as repository:
        repository.commit(force=True)
    return folder


def write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    here = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(here)


@contextmanager
def changed(path: Path, values: dict[str, Any] | str) -> Iterator[None]:
    """A file with other parameters, or with a line appended, for the time of the block."""
    before = path.read_text()
    if isinstance(values, str):
        path.write_text(before + values)
    else:
        tree = yaml.safe_load(before)
        for key, value in values.items():
            *sections, name = key.split(".")
            section = tree
            for each in sections:
                section = section[each]
            assert section[name] != value
            section[name] = value
        path.write_text(yaml.safe_dump(tree))
    try:
        yield
    finally:
        path.write_text(before)


def out_of_date(project: Path) -> set[str]:
    from dvc.repo import Repo

    with inside(project), Repo(str(project)) as repository:
        return set(repository.status())


def test_everything_is_up_to_date_at_first(project: Path) -> None:
    assert out_of_date(project) == set()


@pytest.mark.parametrize(
    ("parameters", "stages"),
    [
        (
            {
                "compute.gpu": True,
                "compute.workers": 2,
                "compute.max_failures": -1,
                "compute.checkpoint_every": 7,
            }
            | {"compute.ray_address": "auto", "compute.storage_path": "s3://bucket/runs"},
            set(),
        ),
        ({"acquire.url": "http://mirror"}, {"acquire"}),
        ({"ingest.shard_mb": 5}, {"ingest"}),
        ({"skeleton.pairs": []}, {"ingest"}),
        ({"estimator.steps": 5}, {"estimator"}),
        ({"impute.max_area": None}, {"impute"}),
        ({"targets.imputed": False}, {"targets"}),
        ({"model.radius": 20}, {"train"}),
        ({"train.loss_weights.mid": 9}, {"train"}),
        ({"train.pos_weight": 2}, {"train"}),
        ({"model.init": RANDOM}, {"train", "infer"}),
        ({"export.initial_share": 0.5}, {"infer"}),
        ({"infer.sides": [65]}, {"infer"}),
        ({"decode.nms": "hard"}, {"infer"}),
        ({"decode.max_people": 7}, {"infer", "evaluate"}),
        ({"evaluate.gallery": 3}, {"evaluate"}),
    ],
    ids=lambda value: "-".join(sorted(value)) if isinstance(value, set) else next(iter(value)),
)
def test_a_parameter_reruns_the_stages_it_decides(
    project: Path, parameters: dict[str, Any], stages: set[str]
) -> None:
    with changed(project / "params.yaml", parameters):
        assert out_of_date(project) == stages


@pytest.mark.parametrize(
    ("file", "stages"),
    [
        ("models/start.safetensors", {"train", "infer"}),  # other weights under the same path
        ("data/train/model.json", {"train", "infer"}),  # as an output and as a dependency
        ("data/infer/out", {"infer", "evaluate"}),
        ("personlab/codec/score.py", {"infer"}),
        ("personlab/codec/encode.py", {"train", "infer"}),
        ("personlab/training/engine.py", {"train"}),
        ("personlab/inference/job.py", {"infer"}),
        ("personlab/metrics/coco.py", {"evaluate"}),
        ("personlab/distributed/board.py", set()),
        ("personlab/utils/logs.py", set()),
        ("personlab/params.py", set()),
    ],
)
def test_a_file_reruns_the_stages_it_decides(project: Path, file: str, stages: set[str]) -> None:
    with changed(project / file, "\n"):
        assert out_of_date(project) == stages


@pytest.mark.parametrize("inside_the_project", [True, False])
def test_acquire_runs_again_if_anything_in_its_folder_changes(
    project: Path, tmp_path: Path, inside_the_project: bool
) -> None:
    from dvc.repo import Repo

    folder = project / "mine" if inside_the_project else tmp_path
    write(folder / "train2017/1.jpg", "a picture")
    name = "mine" if inside_the_project else str(tmp_path)
    with changed(project / "params.yaml", {"acquire.directory": name}):
        with inside(project), Repo(str(project)) as repository:
            repository.commit("acquire", force=True)
        assert out_of_date(project) == set()
        write(folder / "train2017/2.jpg", "another")
        assert out_of_date(project) == {"acquire"}
    with inside(project), Repo(str(project)) as repository:
        repository.commit("acquire", force=True)
