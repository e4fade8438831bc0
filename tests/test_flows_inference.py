"""Batch inference and evaluation as flows: the real commands, tiny images, a real Prefect server."""

import json
import re
from pathlib import Path
from tempfile import gettempdir

import pytest
from pydantic import ValidationError

import flows.batch_inference as batch_inference_module
from flows.batch_inference import Batch, batch_inference
from flows.scoring import Scoring, scoring
from tests import layouts
from tests.batches import save_pictures, save_weights, spoil
from tests.conftest import ROOT
from tests.served import artifacts_of, log_of, run_of, sub_runs, table_of


@pytest.mark.slow
def test_batch_inference_shows_counts_errors_and_pictures_and_its_results_are_scored(
    prefect_server: None, ray_local: str, tmp_path: Path
) -> None:
    weights = save_weights(tmp_path / "model.safetensors")
    spoil(save_pictures(tmp_path / "pictures", 4) / "002.png", 1)
    batch = Batch(images="pictures", out="found", weights=weights.name, sides=[65], ray_address=ray_local)
    images = [layouts.image(n, file_name=f"{n:03}.png", height=36, width=48) for n in range(4)]
    annotated = layouts.write_json(tmp_path, "val", layouts.document(images, [layouts.person(1, 0)]))
    scored = scoring(Scoring(annotations=str(annotated), results=batch), tmp_path, return_state=True)
    assert scored.is_completed(), scored.message
    rows = {row["metric"]: row["now"] for row in table_of(run_of(scored), "scoring-scores")}
    assert 0 <= rows["keypoints.AP"] < 1
    assert 0 <= rows["segm.AP"] < 1
    (run,) = sub_runs(scored)
    assert run.state is not None
    assert str(run.state.message).startswith("4 images in = 3 predictions + 1 errors")
    counts = {row["what"]: row["value"] for row in table_of(run, "batch-counts")}
    assert (counts["images"], counts["predictions"], counts["errors"]) == (4, 3, 1)
    (error,) = table_of(run, "batch-errors")
    assert error["image"] == "002.png"
    samples = str(artifacts_of(run)["batch-samples"].data)
    assert samples.count("data:image/jpeg") == 3
    assert all(artifact.description for artifact in artifacts_of(run).values())
    assert not [message for _, message in log_of(run) if gettempdir() in message.replace(str(tmp_path), "")]
    assert "![01-000](" in samples

    other = batch.model_copy(update={"images": "nothing"})
    failed = batch_inference(other, tmp_path, return_state=True)
    assert failed.is_failed()
    assert str(failed.message).startswith("nothing: no such file or folder")
    assert (40, "nothing: no such file or folder") in log_of(run_of(failed))


@pytest.mark.slow
def test_results_are_scored_beside_the_champions(prefect_server: None, tmp_path: Path) -> None:
    annotated = layouts.write_layout(tmp_path, "val", [layouts.image(7)], [layouts.person(1, 7)])
    person = json.loads(annotated.read_text())["annotations"][0]
    result = {"image_id": 7, "category_id": 1, "keypoints": person["keypoints"], "score": 0.9}
    (tmp_path / "results.json").write_text(json.dumps([result]))
    results = Scoring(annotations=str(annotated), results="results.json")
    state = scoring(results, tmp_path, return_state=True)
    assert state.is_completed(), state.message
    assert state.message == "keypoints AP 1.0"
    rows = {row["metric"]: row for row in table_of(run_of(state), "scoring-scores")}
    assert rows["keypoints.AP"] == {
        "metric": "keypoints.AP",
        "now": 1.0,
        "champion, on its own images": "–",
        "change": "–",
    }
    assert rows["keypoints.AP_without_miss"]["now"] == 1.0


def test_the_documented_commands_fit_the_forms() -> None:
    text = (ROOT / "docs/operations.md").read_text(encoding="utf-8") + str(batch_inference_module.__doc__)
    documented = re.findall(r"--param (batch|scoring)='(.*?)'\s", text + "\n", re.DOTALL)
    assert sorted(name for name, _ in documented) == ["batch", "batch", "scoring"]
    for name, values in documented:
        (Batch if name == "batch" else Scoring).model_validate_json(values)


def test_the_form_becomes_the_command(tmp_path: Path) -> None:
    batch = Batch(images="s3://a/b", out="found", sides=[801, 1201], device="cuda")
    assert batch.arguments(tmp_path) == (
        *("s3://a/b", "--out", "found", "--stride", "16", "--device", "cuda", "--pyramid", "801", "1201"),
    )
    assert batch.folder(Path("/project")).place == "/project/found"
    with pytest.raises(ValidationError):
        Batch(images="a", out="b", sides=[])


def test_weights_are_those_named_else_the_champion_s_else_the_pipeline_s(tmp_path: Path) -> None:
    """`infer-batch` finds the champion itself, and the default network."""
    batch = Batch(images="a", out="b")
    trained = tmp_path / "data/infer/model.safetensors"
    trained.parent.mkdir(parents=True)
    trained.touch()
    assert batch.arguments(tmp_path)[1:3] == ("--weights", "data/infer/model.safetensors")
    named = batch.model_copy(update={"weights": "posenet-resnet50"})
    assert named.arguments(tmp_path)[1:3] == ("--weights", "posenet-resnet50")
    (tmp_path / "models/versions/1-abc").mkdir(parents=True)
    (tmp_path / "models/champion").symlink_to("versions/1-abc")
    assert "--weights" not in batch.arguments(tmp_path)
