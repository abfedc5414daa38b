"""docs/plans.md says what is so: its examples are files that check clean, its commands exist."""

import re
from pathlib import Path

import pytest

from imlmesh_drivers.registry import shipped_manifest
from imlmesh_protocol.iml import plan as iml
from imlmesh_protocol.iml.document import parse
from imlmesh_protocol.iml.repair import repair
from imlmesh_protocol.iml.validate import validate
from page_blocks import Block, blocks, check_words, commands
from source_tree import ROOT

DOCS = ROOT / "docs"
PAGE = DOCS / "plans.md"
README = ROOT / "README.md"
BLOCKS = list(blocks(PAGE))
EXAMPLES = sorted((ROOT / "examples" / "plans").glob("*.iml.yaml"))
LINES = 500


def of(language: str) -> list[Block]:
    return [block for block in BLOCKS if block.language == language]


def test_the_page_stays_short() -> None:
    assert len(PAGE.read_text().splitlines()) <= LINES


@pytest.mark.parametrize("block", of("yaml"), ids=lambda block: f"line-{block.line}")
def test_what_is_shown_stands_in_the_file_that_is_named(block: Block) -> None:
    assert block.text in (ROOT / block.file).read_text()


def test_the_readme_shows_the_plan_of_hello() -> None:
    shown = [block.text for block in blocks(README) if block.language == "yaml"]
    assert len(shown) == 1
    assert shown[0] in (ROOT / "examples" / "hello.iml.yaml").read_text()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_example_is_named_and_right(path: Path) -> None:
    assert f"`{path.relative_to(ROOT)}`" in PAGE.read_text()
    report = validate(parse(path.read_text(), path.name), [shipped_manifest()])
    assert [*report.errors, *report.warnings] == []


def test_the_almost_valid_plan_becomes_a_valid_one() -> None:
    (written,) = of("jsonc")
    repaired = repair(written.text)
    assert len(repaired.repairs) >= 6
    assert validate(repaired.document, [shipped_manifest()]).errors == []


@pytest.mark.parametrize(
    "words",
    [
        words
        for page in (README, PAGE, DOCS / "reach.md", DOCS / "joining.md", DOCS / "rotation.md")
        for words in commands(page)
    ],
    ids=" ".join,
)
def test_every_command_takes_these_words(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    check_words(words)


def test_every_field_has_its_section() -> None:
    models = (iml.Plan, iml.Action, iml.Retry, iml.Rollback, iml.Memory, iml.Approval, iml.Rolling)
    fields = {name for model in models for name in model.model_fields}
    text, _, table = PAGE.read_text().partition("## Every field\n")
    rows = [row.strip("| ").split(" | ") for row in table.splitlines() if row.startswith("| `")]
    assert {name for names, _ in rows for name in re.findall(r"`(\w+)`", names)} == fields
    headings = set(re.findall(r"^##+ ([^:\n]+)", text, re.MULTILINE))
    # a row that names no section says in small letters all there is to say
    sections = [where.split("; ") for _, where in rows if where[0].isupper()]
    assert {each for named in sections for each in named} <= headings
