"""The documents name what exists: links, commands and their options, parameters, files."""

import re
import shlex
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from personlab.cli import app
from personlab.params import Params
from personlab.people import SHOWN
from tests.conftest import ROOT

GENERATED = ROOT / "docs/ablations.md"  # its commands and parameters are those of the commit that made it
HISTORY = ROOT / "CHANGELOG.md"
PAGES = [*ROOT.glob("*.md"), *sorted(ROOT.glob("docs/**/*.md"))]
CURRENT = [page for page in PAGES if page not in (GENERATED, HISTORY)]
FORBIDDEN = re.compile(r"\b(whoever|nobody|somebody|no word|goes on|at work|of then)\b", re.IGNORECASE)
FILES = (".json", ".py", ".safetensors")
FOLDERS = ("benchmarks", "cluster", "configs", "docs", "flows", "personlab", "tests")

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
current = pytest.mark.parametrize("page", CURRENT, ids=lambda page: str(page.relative_to(ROOT)))


def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def prose(page: Path) -> str:
    """The page without its code blocks."""
    return re.sub(r"^```.*?^```", "", text(page), flags=re.MULTILINE | re.DOTALL)


def code(page: Path) -> Iterator[str]:
    """The code spans of the prose."""
    yield from re.findall(r"`([^`\n]+)`", prose(page))


def commands(page: Path) -> Iterator[list[str]]:
    """The words of every command in the shell blocks and code spans."""
    blocks = re.findall(r"^```sh\n(.*?)^```", text(page), flags=re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    for line in [*lines, *code(page)]:
        for command in re.split(r"&&|;|\|", line.partition("    #")[0]):
            if command.count("'") % 2 == 0 and command.count('"') % 2 == 0:
                words = shlex.split(command)
                yield words[bool(words) and words[0].startswith("RAY_ADDRESS=") :]


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings."""
    headings = re.findall(r"^#+ (.*)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pages
def test_links_resolve(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if not link.startswith(("http://", "https://")):
            file, _, anchor = link.partition("#")
            target = page.parent / file if file else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


def test_the_score_that_people_are_shown_from_is_the_same_everywhere() -> None:
    files = [*CURRENT, *ROOT.glob("personlab/**/*.py"), *ROOT.glob("flows/*.py")]
    said = re.compile(r"score (?:of )?at least (0\.\d+)")
    named = [number for file in files for number in said.findall(text(file))]
    assert len(named) > 2
    assert {*map(float, named)} == {SHOWN}


@current
def test_commands_and_their_options_exist(page: Path) -> None:
    for words in commands(page):
        match words:
            case ["personlab", "--help"]:
                pass
            case ["personlab", command]:
                assert app[command]
            case ["personlab", *arguments]:
                app.parse_args(arguments, exit_on_error=False, print_error=False)
            case ["python", "-m", module, *_]:
                assert find_spec(module), module
            case ["make", target, *_]:
                assert re.search(rf"^{target}:", text(ROOT / "Makefile"), flags=re.MULTILINE), target


@current
def test_parameters_exist(page: Path) -> None:
    overrides = re.findall(r"-S '?([\w.]+)=", text(page))
    sections = "|".join(Params.model_fields)
    spans = [re.fullmatch(rf"((?:{sections})\.[a-z_.]+)(?:: .+)?", span) for span in code(page)]
    named = [span[1] for span in spans if span and not span[1].endswith(FILES)]
    for key in [*overrides, *named]:
        assert is_parameter(key), key


def is_parameter(key: str) -> bool:
    section: Any = Params
    for name in key.split("."):
        field = getattr(section, "model_fields", {}).get(name)
        if field is None:
            return False
        section = field.annotation
    return True


@current
def test_files_exist(page: Path) -> None:
    for span in code(page):
        path = span.rstrip("/")
        if re.fullmatch(rf"({'|'.join(FOLDERS)})/[\w./-]+", path) and "NAME" not in path:
            assert (ROOT / path).exists(), path


@pages
def test_the_language_is_plain(page: Path) -> None:
    assert not FORBIDDEN.findall(text(page))
