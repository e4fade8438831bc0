"""The page of results: complete and self-contained."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from personlab.errors import UserError
from personlab.params import Params, load
from personlab.people import SHOWN
from personlab.registry.models import Lineage, Version
from personlab.registry.provenance import Data
from personlab.report import chart, page
from personlab.report.chart import Series
from personlab.report.differences import Difference, changed, compare, flatten
from personlab.report.page import Results
from personlab.stages import evaluate
from tests import rehearsal


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the stages have run."""
    folder = tmp_path_factory.mktemp("done")
    rehearsal.write_shards(folder / "data/ingest/val", "images", first=1)
    rehearsal.write_shards(folder / "data/targets/val", "people", first=1)
    rehearsal.write_predictions(folder / "data/infer", blur=0.5, first=1)
    (folder / "params.yaml").write_text("{train: {learning_rate: 1.0e-5}, evaluate: {gallery: 9}}\n")
    evaluate.run(load(folder / "params.yaml"), folder)
    counts = {split: {"images": rehearsal.IMAGES} for split in ("train", "val")}
    (folder / "data/metrics/targets.json").write_text(json.dumps(counts))
    predicted = {"images": rehearsal.IMAGES, "proposals": 94, "people": 6}
    (folder / "data/metrics/infer.json").write_text(json.dumps(predicted))
    (folder / "data/impute").mkdir()
    rehearsal.picture(folder / "data/impute/imputed.png", "blue")
    return folder


@pytest.fixture
def champion(done: Path, tmp_path: Path) -> Version:
    (tmp_path / "plots").mkdir()
    curves = done / "data/plots/evaluate/precision_recall.tsv"
    (tmp_path / "plots/precision_recall.tsv").write_bytes(curves.read_bytes())
    lineage = Lineage(
        version=7,
        weights="w",
        replaces=None,
        when="2026-01-02T03:04:05Z",
        why="",
        commit="c",
        experiment=None,
        data=Data(train="t", val="v"),
        params=Params().model_dump(mode="json"),
        metrics={"keypoints": {"AP": 0.25}, "segm": {"AP": None}},
    )
    (tmp_path / "lineage.json").write_text(lineage.model_dump_json())
    return Version(tmp_path)


class Links(HTMLParser):
    """Everything that a browser would fetch or follow."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if name in {"src", "href", "srcset"} and value]


def written(folder: Path, champion: Version | None, out: Path) -> str:
    page.write(Results(folder, champion), out / "report" / "index.html")
    return (out / "report" / "index.html").read_text()


def test_the_page_is_self_contained(done: Path, champion: Version, tmp_path: Path) -> None:
    text = written(done, champion, tmp_path)
    links = Links(text).found
    pictures = [link for link in links if not link.startswith("#")]
    assert len(pictures) == 9 + 1
    assert all(link.startswith("data:image/jpeg;base64,") for link in pictures)
    assert all(f'id="{link[1:]}"' in text for link in links if link.startswith("#"))
    assert "url(" not in text
    assert "@import" not in text
    assert 'name="viewport"' in text


def test_scores_and_parameters_stand_beside_the_champions(
    done: Path, champion: Version, tmp_path: Path
) -> None:
    text = written(done, champion, tmp_path)
    assert "Beside the champion, version 7 of 2026-01-02" in text
    assert f"94 proposals, 6 with a score of at least {SHOWN:g}" in text
    ap = json.loads((done / "data/metrics/evaluate.json").read_text())["keypoints"]["AP"]
    cells = re.findall(
        r"<tr>\s*<td>AP</td>\s*<td>(.*?)</td>\s*<td>(.*?)</td>\s*<td class=\"(\w*)\">(.*?)</td>", text
    )
    assert cells[0] == (f"{ap:.4f}", "0.2500", "up", f"{ap - 0.25:+.4g}")
    assert cells[1][1:] == ("–", "", "–")
    assert re.search(r"train.learning_rate</td><td>0.001</td><td>1e-05</td>", text)
    assert text.count("champion</text>") == 2


def test_without_a_champion_there_is_nothing_to_compare(done: Path, tmp_path: Path) -> None:
    text = written(done, None, tmp_path)
    assert "There is no champion yet" in text
    assert "<th>change</th>" not in text
    assert "learning_rate" not in text


def test_pictures_are_the_best_and_the_worst_of_each_task_and_none_twice(done: Path) -> None:
    shown = Results(done, None).pictures
    rows = json.loads((done / "data/evaluate/gallery.json").read_text())
    ranked = sorted((row["poses"], row["file"]) for row in rows if row["annotated"])
    assert shown["Worst poses"][0].name == ranked[0][1]
    names = [file.name for files in shown.values() for file in files]
    assert len(names) == len(set(names)) == len(rows)


def test_stages_that_have_not_run_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"evaluate\.json: missing or not JSON; run 'dvc repro'"):
        page.write(Results(tmp_path, None), tmp_path / "index.html")
    assert not (tmp_path / "index.html").exists()


def test_a_chart_is_a_drawing_of_its_points() -> None:
    drawn = ElementTree.fromstring(
        chart.draw([Series("a < b", [(0, 1), (1, 0)]), Series("c", [(0.5, 0.5)], dashed=True)], x="x", y="y")
    )
    lines = drawn.findall("{*}polyline")
    assert [line.get("points") for line in lines] == ["44.0,12.0 304.0,272.0", "174.0,142.0"]
    assert lines[0].get("stroke") == lines[1].get("stroke")
    assert "a < b" in [text.text for text in drawn.findall("{*}text")]


def test_differences_name_by_name() -> None:
    before = {"a.b": 1.0, "a.c": "old", "e": 7}
    now = flatten({"a": {"b": 1.25, "c": "new"}, "d": 2})
    changes = {each.name: each.change for each in compare(before, now)}
    assert [*changes.items()] == [("a.b", "+0.25"), ("a.c", "–"), ("d", "–"), ("e", "–")]
    assert changed({"a": 1, "b": True}, {"a": 1, "b": False}) == [Difference("b", True, False)]
