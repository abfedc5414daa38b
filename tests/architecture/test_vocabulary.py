"""One word, one thing: docs/VOCABULARY.md says which words are ours and which are not.

Words that are not ours stand neither in names of files, classes, functions, arguments and
variables, nor in the prose of the docs. What is allowed all the same stands in vocabulary.toml.
"""

import ast
import inspect
import re
from collections.abc import Iterator
from enum import StrEnum
from pathlib import PurePosixPath

from imlmesh_protocol import states
from source_tree import ROOMS, ROOT, Module, allowed, bench_modules, modules, own_files, prose

VOCABULARY = ROOT / "docs" / "VOCABULARY.md"
NOT_OURS = "## Words that are not ours"


def not_ours() -> frozenset[str]:
    """The refused words, with their plurals, from the table of the vocabulary."""
    table = VOCABULARY.read_text().partition(NOT_OURS)[2].partition("\n## ")[0]
    words = re.findall(r"^\| \*\*([a-z]+)\*\* \|", table, re.MULTILINE)
    return frozenset(words) | {f"{word}s" for word in words}


def words_of(identifier: str) -> list[str]:
    """`TaskRunner_idMap` -> task, runner, id, map."""
    spaced = re.sub(r"([a-z0-9])([A-Z])|([A-Z])(?=[A-Z][a-z])", r"\1\3_\2", identifier)
    return re.findall(r"[a-z0-9]+", spaced.lower())


def defined(module: Module) -> Iterator[tuple[str, int]]:
    """(name, line) of everything that a module names itself."""
    for node in module.nodes:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr, node.lineno
        elif isinstance(node, ast.alias) and node.asname:
            yield node.asname, node.lineno


def test_words_are_split_as_people_read_them() -> None:
    assert words_of("TaskRunner_idMap") == ["task", "runner", "id", "map"]
    assert words_of("HTTPHost") == ["http", "host"]
    assert words_of("hostname") == ["hostname"]


def test_the_vocabulary_refuses_words() -> None:
    assert {"job", "worker", "common", "helpers"} <= not_ours()


def test_names_are_made_of_our_words() -> None:
    refused = not_ours()
    excused = {row["name"] for row in allowed("vocabulary.toml")["identifier"]}
    wrong = [
        f"{module.path}:{line} {name}"
        for module in (*modules(), *bench_modules())
        for name, line in defined(module)
        if name.strip("_") not in excused and refused.intersection(words_of(name))
    ]
    assert not wrong, "\n".join(wrong)


def test_files_are_named_with_our_words() -> None:
    refused = not_ours()
    rooms = {*ROOMS, "bench", "docs", "examples", "setup", "tests"}
    paths = [PurePosixPath(path.relative_to(ROOT).as_posix()) for path in own_files()]
    wrong = [
        str(path)
        for path in paths
        if path.parts[0] in rooms and refused.intersection(words_of(str(path.with_suffix(""))))
    ]
    assert not wrong, "\n".join(wrong)


def test_prose_is_made_of_our_words() -> None:
    refused = not_ours()
    phrases = [re.escape(row["phrase"]) for row in allowed("vocabulary.toml")["prose"]]
    excused = re.compile("|".join(phrases), re.IGNORECASE)
    wrong = []
    for path in own_files():
        if path.suffix != ".md":
            continue
        text = path.read_text()
        if path == VOCABULARY:
            text = text.partition(NOT_OURS)[0]
        for number, line in prose(text):
            spoken = re.findall(r"[a-z0-9_]+", excused.sub(" ", line).lower())
            wrong += [
                f"{path.relative_to(ROOT)}:{number} {word}"
                for word in sorted(refused.intersection(spoken))
            ]
    assert not wrong, "\n".join(wrong)


def test_every_state_stands_in_the_vocabulary() -> None:
    known = set(re.findall(r"[a-z_]+", VOCABULARY.read_text()))
    values = {
        str(value)
        for _, kind in inspect.getmembers(states, inspect.isclass)
        if issubclass(kind, StrEnum) and kind is not StrEnum
        for value in kind
    }
    assert len(values) > 20
    assert values - known == set()
