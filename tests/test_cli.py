"""The command line, run in this process, or as a program where the process matters."""

import hashlib
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor

import personlab
from personlab import predictor
from personlab.cli import app, main
from personlab.errors import UserError
from personlab.model import checkpoint
from personlab.model.network import build
from personlab.params import Infer, Model
from personlab.people import SHOWN
from personlab.skeleton import COCO_PERSON
from tests import layouts, tfjs_models
from tests.coco_person import KEYPOINTS
from tests.test_video import clip

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
Call = Callable[..., tuple[int, str]]
STAGES = ("acquire", "ingest", "estimator", "impute", "targets", "train", "infer", "evaluate")


def run(*arguments: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command as a program."""
    command = [sys.executable, "-m", "personlab", *arguments]
    return subprocess.run(
        command, cwd=folder, env=os.environ | environment, capture_output=True, text=True, timeout=120
    )


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run a command in this process, in `tmp_path`; returns its status and all that it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("personlab.utils.malloc.disable_trim", lambda: None)

    def call(*arguments: str) -> tuple[int, str]:
        try:
            app(arguments)
            status = 0
        except SystemExit as ended:
            status = int(ended.code or 0)
        except UserError as error:
            status = 1
            print(f"personlab: {error}")
        printed = capsys.readouterr()
        return status, printed.out + printed.err

    return call


def test_help_has_a_line_for_every_stage_in_order(command: Call) -> None:
    lines = command("--help")[1].replace("│", "").splitlines()
    found = [line for line in lines if line.split()[:1] and line.split()[0] in STAGES]
    assert [line.split()[0] for line in found] == list(STAGES)
    assert all(line.rstrip().endswith(".") for line in found)  # nothing is wrapped


@pytest.mark.parametrize("name", sorted(name for name in app if not name.startswith("-")))
def test_every_command_explains_itself(name: str, command: Call) -> None:
    status, shown = command(name, "--help")
    assert status == 0
    assert "Usage" in shown
    assert len(shown.splitlines()) > 8
    assert "--empty-" not in shown  # what cyclopts adds to lists
    assert "-.parquet" not in shown  # asterisks that are not code become emphasis


@pytest.mark.parametrize("name", ["predict", "infer-batch"])
def test_prediction_has_the_predictor_s_defaults(name: str, command: Call) -> None:
    shown = " ".join(command(name, "--help")[1].replace("│", " ").split())
    infer = Infer()
    assert f"Longest side of the network's input, in pixels. [default: {infer.sides[0]}]" in shown
    assert f"[default: {infer.stride}]" in shown
    assert "Proposals per image. [default: as the model was evaluated with]" in shown
    assert name != "predict" or f"and in a COCO dataset. [default: {SHOWN:g}]" in shown


LARGE = {"torch", "ray", "dvc", "prefect", "pyarrow", "pandera", "numba", "pycocotools", "colorama"}
WITHOUT_NETWORK = ("acquire", "ingest", "targets", "evaluate")


@pytest.mark.parametrize(
    ("modules", "unwanted"),
    [
        (["cli"], LARGE),
        (
            ["inference.worker", *(f"stages.{stage}" for stage in WITHOUT_NETWORK)],
            {"torch", "ray", "dvc", "prefect"},
        ),
    ],
)
def test_large_packages_are_imported_where_they_are_used(
    tmp_path: Path, modules: list[str], unwanted: set[str]
) -> None:
    """For the time to start, and because DVC replaces sys.stdout when it is imported."""
    imported = ", ".join(f"personlab.{module}" for module in modules)
    code = f"import sys, {imported}; print(*{unwanted} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")


def test_the_predictor_is_where_people_look_for_it() -> None:
    assert personlab.Predictor is predictor.Predictor
    with pytest.raises(AttributeError, match="no attribute 'Predicter'"):
        personlab.Predicter  # noqa: B018


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A tiny network that has learnt nothing and sees people everywhere."""
    torch.manual_seed(0)
    network = build(Model(width=8), stride=16, skeleton=COCO_PERSON).eval()
    for weight in network.heads.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    path = tmp_path / "weights" / "model.safetensors"
    path.parent.mkdir()
    checkpoint.save(path, network.state_dict(), network.card({}))
    return path


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_pictures_are_predicted_and_scored(tmp_path: Path, weights: Path, command: Call) -> None:
    annotated = layouts.write_layout(tmp_path, "val", [layouts.image(7)], [layouts.person(1, 7)])
    before = everything(tmp_path)
    status, printed = command(
        *("predict", "val2017", "--weights", str(weights), "--out", "found"),
        *("--pyramid", "65", "97", "--stride", "8", "--max-people", "3", "--format", "coco"),
    )
    assert status == 0, printed
    assert everything(tmp_path) - before == {
        "found/results.json",
        "found/images.json",
        "found/overlays/7.jpg",
    }
    results = json.loads((tmp_path / "found/results.json").read_text())
    assert 0 < len(results) <= 3
    assert {result["image_id"] for result in results} == {7}

    status, printed = command(
        *("score", "--annotations", str(annotated), "--results", "found/results.json"),
        *("--json", "scores.json"),
    )
    assert status == 0, printed
    assert "Keypoints" in printed
    assert "Segmentation" in printed
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert 0 <= scores["keypoints"]["AP"] <= scores["keypoints"]["AP50"] <= 1
    assert "AR20" in scores["segm"]

    status, printed = command(
        *("errors", "--annotations", str(annotated), "--results", "found/results.json"),
        *("--json", "errors.json"),
    )
    assert status == 0, printed
    assert "lost to background" in printed
    errors = json.loads((tmp_path / "errors.json").read_text())
    for task, kinds in (("keypoints", 5), ("segm", 6)):
        assert scores[task].items() <= errors[task]["scores"].items()
        assert errors[task]["scores"]["AP_without_missed_people"] >= scores[task]["AP"]
        assert len(errors[task]["sizes"]["all"]) == kinds + 1
    assert errors["keypoints"]["keypoints"].keys() == set(KEYPOINTS)


def copy(weights: Path, to: Path) -> Path:
    """Copy a checkpoint."""
    to.parent.mkdir(parents=True)
    for suffix in (".safetensors", ".json"):
        shutil.copyfile(weights.with_suffix(suffix), to.with_suffix(suffix))
    return to


def test_published_weights_are_copied_into_a_project(
    tmp_path: Path, weights: Path, command: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    cached = copy(weights, tmp_path / "cache/personlab/bodypix-mobilenet-075.safetensors")
    status, printed = command("weights", "get", "bodypix-mobilenet-075", "--out", "models")
    assert (status, printed.split()[-1]) == (0, "models/bodypix-mobilenet-075.safetensors")
    for suffix in (".safetensors", ".json"):
        copied = tmp_path / "models/bodypix-mobilenet-075.safetensors"
        assert copied.with_suffix(suffix).read_bytes() == cached.with_suffix(suffix).read_bytes()


def test_a_photo_is_enough(
    tmp_path: Path,
    weights: Path,
    command: Call,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The weights are the default network's, as no model was promoted here; results go to people/."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    copy(weights, tmp_path / "cache/personlab/bodypix-mobilenet-075.safetensors")
    layouts.write_image(tmp_path / "photo.jpg")
    with caplog.at_level("INFO"):
        status, printed = command("predict", "photo.jpg")
    assert status == 0, printed
    assert "personlab/bodypix-mobilenet-075.safetensors; --weights takes others" in caplog.text
    assert re.search(r"^photo.jpg: (\d+ people|1 person), people/overlays/photo.jpg$", printed, re.MULTILINE)
    assert everything(tmp_path / "people") == {"photo.json", "overlays/photo.jpg"}


def test_the_champion_comes_before_the_default_network(
    tmp_path: Path, weights: Path, command: Call, caplog: pytest.LogCaptureFixture
) -> None:
    champion = copy(weights, tmp_path / "models/versions/3-abc/model.safetensors")
    (tmp_path / "models/champion").symlink_to("versions/3-abc")
    layouts.write_image(tmp_path / "photo.jpg")
    with caplog.at_level("INFO"):
        status, printed = command("predict", "photo.jpg")
    assert status == 0, printed
    assert f"weights: {champion}; --weights takes others" in caplog.text


def test_videos_and_images_are_predicted_together(tmp_path: Path, weights: Path, command: Call) -> None:
    clip(tmp_path / "walk.mp4", frames=3)
    layouts.write_image(tmp_path / "photo.jpg")
    (tmp_path / "torn.mov").write_text("nothing but text")
    status, printed = command(
        *("predict", "walk.mp4", "photo.jpg", "torn.mov", "--weights", str(weights), "--side", "65")
    )
    assert status == 1
    assert "walk.mp4: 3 frames, at most " in printed
    assert "1 of 3 files could not be read:\n  torn.mov: cannot be opened as a video" in printed
    assert everything(tmp_path / "people") == {
        *("photo.json", "overlays/photo.jpg", "walk.json", "overlays/walk.mp4"),
    }


@pytest.mark.parametrize("words", [["predict", "a.jpg"], ["infer-batch", "a.jpg", "--out", "o"]])
def test_an_unknown_network_is_answered_with_the_names(command: Call, words: list[str]) -> None:
    status, printed = command(*words, "--weights", "bodypix")
    assert status == 1
    assert "bodypix: no such file, and no network has that name; there are bodypix-mobilenet-050, " in printed


def test_networks_are_listed(
    tmp_path: Path, weights: Path, command: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = copy(weights, tmp_path / "cache/personlab/posenet-resnet50.safetensors")
    lines = command("weights", "list")[1].splitlines()
    assert "bodypix-mobilenet-075      5.2 MB        0.279    0.164" in lines
    assert "posenet-resnet50          94.9 MB            –        –  downloaded" in lines
    assert command("weights", "get", "posenet-resnet50") == (0, f"{path}\n")
    assert "no network is named yolo" in command("weights", "get", "yolo")[1]


def test_images_get_the_ids_of_an_annotation_file(tmp_path: Path, weights: Path, command: Call) -> None:
    """Without it they are numbered from 1, and scoring refuses the numbers of other images."""
    names = ("b.jpg", "a.jpg", "c.jpg")
    listed = [layouts.image(number, file_name=name) for number, name in enumerate(names, start=1)]
    annotated = layouts.write_layout(tmp_path, "val", listed, [layouts.person(1, 1)])

    def predicted_and_scored(*options: str) -> tuple[int, str]:
        status, printed = command(
            *("predict", "val2017", "--weights", str(weights), "--out", "found", "--side", "65"),
            *("--format", "coco", *options),
        )
        assert status == 0, printed
        return command("score", "--annotations", str(annotated), "--results", "found/results.json")

    status, printed = predicted_and_scored()
    assert status == 1
    assert "image 1 is val2017/a.jpg (images.json), but b.jpg in the annotations" in printed
    status, printed = predicted_and_scored("--annotations", str(annotated))
    assert status == 0, printed
    images = json.loads((tmp_path / "found/images.json").read_text())
    assert {image["file_name"]: image["id"] for image in images} == {"b.jpg": 1, "a.jpg": 2, "c.jpg": 3}


@pytest.mark.parametrize("name", ["", "a.json/b.json", 300 * "x"])
def test_paths_that_cannot_be_read_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "a.json").touch()
    place = str(tmp_path / name)
    monkeypatch.setattr("personlab.utils.logs.start", lambda: None)
    monkeypatch.setattr(sys, "argv", ["personlab", "score", "--annotations", place, "--results", "a.json"])
    with pytest.raises(SystemExit, match=f"^personlab: {re.escape(place)}: (Is a|Not a|File name too)"):
        main()


def test_the_categories_of_a_project_are_those_that_are_scored(tmp_path: Path, command: Call) -> None:
    dog = {"id": 4, "name": "dog", "keypoints": ["nose", "tail"]}
    people = [layouts.person(1, 1), layouts.person(2, 1, category_id=4, keypoints=[12, 8, 2, 14, 7, 2])]
    content = layouts.document([layouts.image(1)], people)
    content["categories"].append(dog)
    annotated = layouts.write_json(tmp_path, "val", content)
    found = {"image_id": 1, "category_id": 4, "score": 1, "keypoints": [12, 8, 1, 14, 7, 1]}
    (tmp_path / "results.json").write_text(json.dumps([found]))
    (tmp_path / "params.yaml").write_text("acquire: { categories: [dog] }")
    status, printed = command("score", "--annotations", str(annotated), "--results", "results.json")
    assert (status, printed.splitlines()[1].split()[0]) == (0, "1.000"), printed


@pytest.mark.parametrize(
    "environment",
    [ASCII, {"PYTHONIOENCODING": "latin-1"}],
    ids=["ASCII", "Latin-1"],
)
def test_scores_are_printed_whatever_the_terminal_can_show(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    """A column without people of its size is a dash that neither has."""
    annotated = layouts.write_layout(tmp_path, "val", [layouts.image(1)], [layouts.person(1, 1)])
    (tmp_path / "results.json").write_text("[]")
    scored = run(
        *("score", "--annotations", str(annotated), "--results", "results.json"),
        folder=tmp_path,
        **environment,
    )
    assert scored.returncode == 0, scored.stderr
    assert scored.stdout.splitlines()[1].split() == [*["0.000"] * 3, "?", "?", *["0.000"] * 3, "?", "?"]


@pytest.mark.slow
def test_names_that_the_locale_cannot_spell_are_predicted(tmp_path: Path, weights: Path) -> None:
    layouts.write_image(tmp_path / "in/é.jpg")
    (tmp_path / "in/é.jpg").rename(os.fsdecode(os.fsencode(tmp_path) + b"/in/caf\xe9.jpg"))
    layouts.write_image(tmp_path / "in/é.jpg")
    outcome = run(
        *("predict", "in", "--weights", str(weights), "--out", "found", "--side", "65"),
        folder=tmp_path,
        **ASCII,
    )
    assert outcome.returncode == 0, outcome.stderr
    assert {path.name for path in (tmp_path / "found/overlays").iterdir()} == {"caf_xe9.jpg", "_.jpg"}
    assert json.loads((tmp_path / "found/_.json").read_text())["file_name"] == "in/é.jpg"


def test_hostile_pictures_end_with_reasons_and_status_one(
    tmp_path: Path, weights: Path, command: Call
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    Image.new("RGB", (1, 1)).save(folder / "dot.png")
    Image.new("RGB", (20_000, 10)).save(folder / "strip.png")
    layouts.write_image(folder / "good.jpg")
    (folder / "torn.jpg").write_bytes((folder / "good.jpg").read_bytes()[:-400])
    (folder / "text.jpg").write_text("nothing but text")
    Image.new("1", (20_000, 20_000)).save(folder / "bomb.png")
    before = everything(tmp_path)
    status, printed = command(
        *("predict", "in", "none.jpg", "--weights", str(weights), "--out", "found", "--side", "65")
    )
    assert status == 1
    assert "4 of 7 images could not be read" in printed
    for name, reason in {
        "in/torn.jpg": "cannot be read: image file is truncated",
        "in/text.jpg": "is not an image",
        "in/bomb.png": "has more than 89 million pixels",
        "none.jpg": "no such file",
    }.items():
        assert f"  {name}: {reason}" in printed
    names = ("dot", "strip", "good")
    assert everything(tmp_path) - before == {
        *(f"found/{name}.json" for name in names),
        *(f"found/overlays/{name}.jpg" for name in names),
    }


def spoil_paths(graph: Path) -> None:
    model = json.loads(graph.read_text())
    model["weightsManifest"][0]["paths"][1] = "../outside.bin"
    graph.write_text(json.dumps(model))


def shorten_a_shard(graph: Path) -> None:
    shard = graph.with_name("group1-shard2of2.bin")
    shard.write_bytes(shard.read_bytes()[:-1])


def spoil_a_weight(graph: Path) -> None:
    shard = graph.with_name("group1-shard1of2.bin")
    shard.write_bytes(np.float32(np.nan).tobytes() + shard.read_bytes()[4:])


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (spoil_paths, "shard '../outside.bin' is not a file beside it; nothing was read"),
        (shorten_a_shard, "too short for the listed weights"),
        (spoil_a_weight, "weights that are NaN or infinite: Conv2d_0/weights"),
    ],
)
def test_hostile_graph_models_are_refused_and_nothing_is_written(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: Call,
    spoil: Callable[[Path], None],
    reason: str,
) -> None:
    graph = tfjs_models.mobilenet("mobilenet16", 16).write(tmp_path / "in")
    (tmp_path / "outside.bin").write_bytes(graph.with_name("group1-shard2of2.bin").read_bytes())
    spoil(graph)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before = everything(tmp_path)
    status, printed = command("import-weights", str(graph), "--out", "out/net.safetensors")
    assert status == 1
    assert printed.startswith(f"personlab: {graph}: ")
    assert reason in printed
    assert everything(tmp_path) == before


@dataclass(frozen=True)
class Payload:
    """Runs a program when it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("touch executed",)


def spoil_numbers(weights: Path) -> None:
    """As if written by another program: ours would refuse."""
    change(weights, lambda tensor: torch.full_like(tensor, torch.nan))


def overflow(weights: Path) -> None:
    """Finite numbers, of which no network computes any."""
    change(weights, lambda tensor: tensor.clamp(-1, 1) * 1e38)


def change(weights: Path, how: Callable[[Tensor], Tensor]) -> None:
    state, card = checkpoint.load(weights)
    content = safetensors.torch.save(
        {name: how(tensor) if name.startswith("heads.short") else tensor for name, tensor in state.items()}
    )
    weights.write_bytes(content)
    weights.with_suffix(".json").write_text(
        json.dumps(card | {"sha256": hashlib.sha256(content).hexdigest()})
    )


def pickle_them(weights: Path) -> None:
    weights.write_bytes(pickle.dumps(Payload()))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (spoil_numbers, "weights that are NaN or infinite: heads.short.bias, heads.short.weight"),
        (overflow, "field 'short' holds a value that is not finite: the network's weights are broken"),
        (pickle_them, "pickled weights (.pt, .pth) are never opened"),
    ],
)
def test_hostile_checkpoints_are_refused_and_nothing_is_written(
    tmp_path: Path, weights: Path, command: Call, spoil: Callable[[Path], None], reason: str
) -> None:
    layouts.write_image(tmp_path / "in.jpg")
    spoil(weights)
    before = everything(tmp_path)
    status, printed = command(
        *("predict", "in.jpg", "--weights", str(weights), "--out", "found", "--side", "65")
    )
    assert status == 1
    assert reason in printed
    assert everything(tmp_path) == before


def test_contradictions_are_usage_errors(command: Call) -> None:
    status, printed = command(
        *("predict", "a.jpg", "--weights", "w", "--out", "o", "--side", "65", "--pyramid", "65", "97")
    )
    assert status == 2
    assert "Mutually exclusive" in printed
    assert command("predict", "--weights", "w", "--out", "o")[0] == 2


def test_a_misspelt_parameter_ends_with_a_sentence_and_status_one(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("ingest: {max_reject: 1}\n")
    outcome = run("ingest", folder=tmp_path)
    assert outcome.returncode == 1
    assert "unknown key 'ingest.max_reject'" in outcome.stderr
    assert "Traceback" not in outcome.stderr
