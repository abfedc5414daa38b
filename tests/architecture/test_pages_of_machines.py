"""docs/service.md, docs/drivers.md and docs/firmware.md say what is so: commands, code, files."""

import ast
import importlib
import inspect
import re
import shlex
import tomllib
from pathlib import Path

import pytest

import imlmesh_drivers
from imlmesh.main import build
from imlmesh_protocol.errors import CODES
from page_blocks import blocks
from source_tree import ROOT

PAGES = [ROOT / "docs" / name for name in ("service.md", "drivers.md", "firmware.md")]
DRIVER = ROOT / "examples" / "driver"
COMMAND = re.compile(r"(?m)^    (?:sudo (?:-u \w+ )?)?(?:/opt/imlmesh/bin/)?imlmesh (.+)$")
LINES = 160


def commands() -> list[list[str]]:
    """The words behind `imlmesh` of every indented command."""
    found = []
    for page in (*PAGES, DRIVER / "README.md"):
        text = page.read_text().replace("\\\n", " ")
        found += [shlex.split(words, comments=True) for words in COMMAND.findall(text)]
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_stays_short(page: Path) -> None:
    assert len(page.read_text().splitlines()) <= LINES


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_command_takes_these_words(words: list[str]) -> None:
    root = build()
    context = root.make_context("imlmesh", list(words), resilient_parsing=True)
    command, rest = root.get_command(context, words[0]), words[1:]
    if hasattr(command, "commands"):
        command, rest = command.commands[words[1]], words[2:]
    assert command.make_context(" ".join(words), rest).args == []


def test_the_pages_have_commands() -> None:
    assert {tuple(words[:2]) for words in commands()} >= {
        ("service", "install"),
        ("service", "uninstall"),
        ("service", "logs"),
        ("driver", "new"),
    }


def test_code_of_the_drivers_page_is_python_that_imports_what_is_there() -> None:
    python = [block for block in blocks(PAGES[1]) if block.language == "python"]
    assert len(python) == 2
    for block in python:
        tree = compile(
            block.text, "drivers.md", "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        )
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("imlmesh"):
                module = importlib.import_module(str(node.module))
                assert all(hasattr(module, alias.name) for alias in node.names), node.module


def test_the_table_of_action_names_each_argument() -> None:
    table = PAGES[1].read_text().partition("| of `@action` |")[2].partition("\n\n")[0]
    named = set(re.findall(r"(?m)^\| `(\w+)` \|", table))
    assert named == set(inspect.signature(imlmesh_drivers.action).parameters)


def test_codes_that_pages_name_are_codes() -> None:
    for page in PAGES:
        for code in re.findall(r"`((?:driver|trust|policy|service)\.[a-z_]+)`", page.read_text()):
            assert code in CODES or code in ("policy.toml", "service.md"), f"{page.name}: {code}"


def test_a_driver_imports_imlmesh_drivers_alone() -> None:
    """The example, and so what `driver new` writes; its tests too."""
    for path in DRIVER.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("imlmesh"):
                top = str(node.module).partition(".")[0]
                assert top in ("imlmesh_drivers", "imlmesh_driver_lamp"), path


def test_what_ships_beside_the_code_is_in_the_wheel() -> None:
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    included = wheel["targets"]["wheel"]["force-include"]
    used = set()
    for path in (ROOT / "cli" / "imlmesh").rglob("*.py"):
        used |= {
            found.partition("/")[0] for found in re.findall(r'shipped\("([^"]+)"', path.read_text())
        }
    assert used == {"examples", "systemd"}
    assert included == {folder: f"imlmesh/{folder}" for folder in used}


def test_files_that_the_firmware_page_names_are_there() -> None:
    text = PAGES[2].read_text()
    for folder, names in {
        "raspberry-pi": ["known.toml", "user-data", *re.findall(r"`([\w-]+\.txt)`", text)],
        "mosquitto": ["mosquitto.conf", "mesh.acl", "hardening.conf"],
        "esphome": ["sensor-node.yaml", "relay-node.yaml", "secrets.example.yaml"],
    }.items():
        for name in names:
            found = ROOT / "firmware-configs" / folder / Path(name).name
            assert found.is_file() or name == "config.txt", name
            assert name in text or name == "relay-node.yaml", name
