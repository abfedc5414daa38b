"""Files, functions and constructors stay small enough to be read at once.

Exceptions stand in exceptions.toml with a reason each; one that is no longer needed fails.
"""

import ast
from collections.abc import Iterator

from source_tree import ROOT, Module, allowed, bench_modules, modules

FILE_LINES = 400
FUNCTION_LINES = 50
CONSTRUCTOR_ARGUMENTS = 7
#: of the embedded broker in all: docs/adr/0028
EMBEDDED_BROKER_LINES = 900

Functions = ast.FunctionDef | ast.AsyncFunctionDef


def functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, Functions]]:
    """(qualified name, node) of every function, nested ones too."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, Functions):
            yield prefix + node.name, node
            yield from functions(node, f"{prefix}{node.name}.")
        elif isinstance(node, ast.ClassDef):
            yield from functions(node, f"{prefix}{node.name}.")
        elif not isinstance(node, ast.expr | ast.expr_context):  # these hold none
            yield from functions(node, prefix)


def oversized(module: Module) -> Iterator[tuple[str, str, str]]:
    """(kind, place, what it measures) of all that is too large in one module."""
    if module.lines > FILE_LINES:
        yield "file", module.path, f"{module.lines} lines"
    for name, node in functions(module.tree):
        place = f"{module.path}:{name}"
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        if lines > FUNCTION_LINES:
            yield "function", place, f"{lines} lines"
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        if node.name == "__init__" and len(arguments) - 1 > CONSTRUCTOR_ARGUMENTS:
            yield "constructor", place, f"{len(arguments) - 1} arguments"


def lines_of_code(module: Module) -> int:
    """Lines that are neither empty, nor comments, nor docstrings."""
    told: set[int] = set()
    for node in module.nodes:
        if isinstance(node, Functions | ast.ClassDef | ast.Module) and ast.get_docstring(node):
            first = node.body[0]
            told.update(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    lines = enumerate((ROOT / module.path).read_text(encoding="utf-8").splitlines(), 1)
    return sum(
        number not in told and line.strip() != "" and not line.lstrip().startswith("#")
        for number, line in lines
    )


def test_the_embedded_broker_stays_small_enough_to_be_judged_whole() -> None:
    rooms = [m for m in modules() if m.name.startswith("imlmesh_broker.embedded")]
    assert len(rooms) > 1
    assert sum(map(lines_of_code, rooms)) <= EMBEDDED_BROKER_LINES


def test_nothing_is_too_large() -> None:
    found = {
        (kind, place): measure
        for module in (*modules(), *bench_modules())
        for kind, place, measure in oversized(module)
    }
    excused = {
        (kind, row["place"]) for kind, rows in allowed("exceptions.toml").items() for row in rows
    }
    too_large = [f"{place}: {found[kind, place]}" for kind, place in sorted(found.keys() - excused)]
    assert not too_large, "\n".join(too_large)
    assert excused - found.keys() == set(), "exceptions.toml excuses what is small enough"


def test_no_two_classes_of_the_cores_share_a_name() -> None:
    places: dict[str, list[str]] = {}
    for module in modules():
        if module.in_core:
            for node in module.nodes:
                if isinstance(node, ast.ClassDef):
                    places.setdefault(node.name, []).append(f"{module.path}:{node.lineno}")
    twins = {name: at for name, at in places.items() if len(at) > 1}
    assert not twins, "\n".join(f"{name}: {', '.join(at)}" for name, at in twins.items())
