"""The checkout as data for the architecture tests: rooms, parsed modules, files of our own.

Its one rule: it looks at whatever is there, so that the tests hold for a tree that grows.
"""

import ast
import gc
import os
import re
import subprocess
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent

#: room (folder) -> its package
ROOMS = {
    "protocol": "imlmesh_protocol",
    "runtime": "imlmesh_runtime",
    "drivers": "imlmesh_drivers",
    "node": "imlmesh_node",
    "orchestrator": "imlmesh_orchestrator",
    "broker": "imlmesh_broker",
    "cli": "imlmesh",
}

# what set-up and tests make here
_MADE = {
    *(".git", ".peers", ".venv", ".uv", "__pycache__", "dist", "build", ".hypothesis"),
    *(".mypy_cache", ".ruff_cache", ".pytest_cache", ".import_linter_cache"),
}


@dataclass(frozen=True)
class Module:
    """One Python file: `path` from the root with slashes, `name` dotted, `room` its folder, `nodes` all
    of its tree, those outside before those inside."""

    path: str
    name: str
    room: str
    tree: ast.Module
    nodes: tuple[ast.AST, ...]
    lines: int

    @property
    def in_core(self) -> bool:
        return "core" in self.name.split(".")[1:]


def _read(path: Path, room: str) -> Module:
    text = path.read_text(encoding="utf-8")
    name = ".".join(path.relative_to(ROOT / room).with_suffix("").parts)
    tree = ast.parse(text, filename=str(path))
    return Module(
        path=path.relative_to(ROOT).as_posix(),
        name=name.removesuffix(".__init__"),
        room=room,
        tree=tree,
        nodes=tuple(ast.walk(tree)),
        lines=text.count("\n"),
    )


@cache
def modules() -> tuple[Module, ...]:
    """Every module of the seven packages."""
    # millions of small objects that stay: looking through them again and again is most of the time
    gc.disable()
    found = tuple(
        _read(path, room)
        for room, package in ROOMS.items()
        for path in sorted((ROOT / room / package).rglob("*.py"))
    )
    gc.freeze()
    gc.enable()
    return found


@cache
def bench_modules() -> tuple[Module, ...]:
    return tuple(_read(path, "bench") for path in sorted((ROOT / "bench").rglob("*.py")))


@cache
def imported(module: Module) -> tuple[tuple[str, int], ...]:
    """(dotted name, line) of everything that the module imports, inside functions too.

    `from a import b` gives "a.b": it may be a module.
    """
    package = module.name if module.path.endswith("__init__.py") else module.name.rpartition(".")[0]
    found = []
    for node in module.nodes:
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                base = ".".join([*parts[: len(parts) - node.level + 1], *([base] if base else [])])
            found += [(f"{base}.{alias.name}", node.lineno) for alias in node.names]
    return tuple(found)


def is_within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


@cache
def own_files() -> tuple[Path, ...]:
    """What is tracked or would be; outside a repository all but what set-up makes."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listed.returncode == 0:
        paths = [ROOT / os.fsdecode(name) for name in listed.stdout.split(b"\0") if name]
    else:
        paths = [p for p in ROOT.rglob("*") if not _MADE.intersection(p.relative_to(ROOT).parts)]
    return tuple(path for path in sorted(paths) if path.is_file())


@cache
def text_of(path: Path) -> str:
    """What stands in a file of our own; what is no text as replacement characters."""
    return path.read_text(encoding="utf-8", errors="replace")


def prose(text: str) -> Iterator[tuple[int, str]]:
    """(line number, text) of Markdown without code blocks, inline code and link targets."""
    fenced = False
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith(("```", "~~~")):
            fenced = not fenced
        elif not fenced and not line.startswith("    "):
            yield number, re.sub(r"`[^`]*`|\]\([^)]*\)", " ", line)


def allowed(file: str) -> dict[str, list[dict[str, Any]]]:
    """The tables of an exception list; every row must say its reason."""
    tables: dict[str, list[dict[str, Any]]] = tomllib.loads((HERE / file).read_text())
    for rows in tables.values():
        for row in rows:
            assert row.get("reason", "").strip(), f"{file}: a row without a reason: {row}"
    return tables
