"""Templates in params: finding them, and putting values in their place.

    {{result.ID.field.0}}   {{env.IML_NAME}}   {{node.id}}

The one rule: one pass over whole-value paths; what was put in is never looked at again, and
nothing is computed. Deliberately absent: filters, expressions, templates in keys, escapes.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgpack

from imlmesh_protocol import limits
from imlmesh_protocol.errors import Fault, InputError
from imlmesh_protocol.iml.builder import pointer_of

_TEMPLATE = re.compile(r"\{\{\s*([\w-]+(?:\.[\w-]+)*)\s*\}\}")
_OPENING = "{{"
ENV_PREFIX = "IML_"
#: the path element under which the error of a failed, continued action stands
ERROR_KEY = "_error"
_ROOTS = frozenset({"result", "env", "node", "memory", "trigger"})
_INDEX = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True, slots=True)
class Reference:
    """One template: {{result.a.b}} has root "result" and path ("a", "b"); `pointer` is its text's."""

    root: str
    path: tuple[str, ...]
    pointer: str


@dataclass(frozen=True, slots=True)
class Flaw:
    """A template that can never be filled, and why."""

    code: str
    message: str
    pointer: str


@dataclass(frozen=True, slots=True)
class Scope:
    """What templates of one dispatch may take: results by action id, IML_ variables, the node's id."""

    results: Mapping[str, Any]
    env: Mapping[str, str]
    node: str


def has_templates(params: Any) -> bool:
    """Whether any text in these params holds a template."""
    if isinstance(params, str):
        return _OPENING in params
    if isinstance(params, dict):
        return any(has_templates(value) for value in params.values())
    if isinstance(params, list | tuple):
        return any(has_templates(value) for value in params)
    return False


def is_template(text: str) -> bool:
    """Whether a text is one template and nothing else, so that the value's type is kept."""
    return _TEMPLATE.fullmatch(text) is not None


def references(params: Any) -> list[Reference]:
    """Every template of these params that is well formed."""
    return scan(params)[0]


def scan(params: Any) -> tuple[list[Reference], list[Flaw]]:
    """All templates, and all that looks like one and is none; pointers begin at the params."""
    found: list[Reference] = []
    flaws: list[Flaw] = []
    for text, pointer in _texts(params, ()):
        if text is None:
            flaws.append(
                Flaw("template.syntax", "a template may stand in a value, not in a key", pointer)
            )
            continue
        for match in _TEMPLATE.finditer(text):
            root, *path = match[1].split(".")
            flaw = _flaw(root, path, match[0])
            if flaw:
                flaws.append(Flaw(*flaw, pointer))
            else:
                found.append(Reference(root, tuple(path), pointer))
        rest = _TEMPLATE.sub("", text)
        if _OPENING in rest:
            shown = rest[rest.index(_OPENING) :][:60]
            message = (
                f"{shown!r} is not a template: a path between {{{{ and }}}} is all it may hold"
            )
            flaws.append(Flaw("template.syntax", message, pointer))
    return found, flaws


def render(params: Any, scope: Scope) -> Any:
    """The params with every template filled; the same object when there is none.

    Raises `InputError` template.no_result, template.env or template.too_large.
    """
    if not has_templates(params):
        return params
    filled = _Filling(scope).value(params)
    check_size(filled)
    return filled


def check_size(params: Any) -> None:
    """Raise template.too_large unless these params fit into a dispatch."""
    values = 0
    level = [params]
    for _ in range(limits.PARAMS_DEPTH + 1):
        values += len(level)
        level = [inner for value in level for inner in _inner(value)]
        if values + len(level) > limits.PARAMS_VALUES:
            raise _too_large(f"hold more than {limits.PARAMS_VALUES:,} values")
    if level:
        raise _too_large(f"are nested deeper than {limits.PARAMS_DEPTH}")
    size = len(msgpack.packb(params))
    if size > limits.PARAMS_BYTES:
        raise _too_large(f"take {size:,} bytes; at most {limits.PARAMS_BYTES:,}")


class _Filling:
    """One rendering; stops as soon as what was put in cannot fit, before it is copied together."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self._room = limits.PARAMS_BYTES

    def value(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._text(value) if _OPENING in value else value
        if isinstance(value, dict):
            return {key: self.value(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self.value(inner) for inner in value]
        return value

    def _text(self, text: str) -> Any:
        alone = _TEMPLATE.fullmatch(text)
        if alone:
            found = self._look_up(alone[1])
            self._take_room(len(found) if isinstance(found, str) else len(msgpack.packb(found)))
            return found
        return _TEMPLATE.sub(self._inserted, text)

    def _inserted(self, match: re.Match[str]) -> str:
        found = self._look_up(match[1])
        text = found if isinstance(found, str) else _compact(found, match[1])
        self._take_room(len(text))
        return text

    def _take_room(self, size: int) -> None:
        self._room -= size
        if self._room < 0:
            raise _too_large(f"take more than {limits.PARAMS_BYTES:,} bytes once filled in")

    def _look_up(self, path: str) -> Any:
        root, name, *rest = path.split(".")
        if root == "node":
            return self._scope.node
        if root == "env":
            if name not in self._scope.env:
                raise InputError("template.env", f"the orchestrator has no variable {name}")
            return self._scope.env[name]
        if root != "result" or name not in self._scope.results:
            raise InputError("template.no_result", f"{{{{{path}}}}} has no result")
        result = self._scope.results[name]
        if isinstance(result, Fault):
            return _of_fault(result, name, rest)
        for depth, key in enumerate(rest):
            result = _inside(result, key, ".".join((name, *rest[: depth + 1])))
        return result


def _texts(value: Any, path: tuple[str | int, ...]) -> Iterator[tuple[str | None, str]]:
    """Every text with a "{{" and its pointer; None for a key that holds one."""
    if isinstance(value, str):
        if _OPENING in value:
            yield value, pointer_of(*path)
    elif isinstance(value, dict):
        for key, inner in value.items():
            if _OPENING in key:
                yield None, pointer_of(*path, key)
            yield from _texts(inner, (*path, key))
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from _texts(inner, (*path, index))


def _flaw(root: str, path: list[str], written: str) -> tuple[str, str] | None:
    if root not in _ROOTS:
        return "template.syntax", f"{written} begins with none of result, env and node"
    if not path:
        return "template.syntax", f"{written} does not say which {root}"
    if root == "node" and path != ["id"]:
        return "template.syntax", f"{written}: of a node only {{{{node.id}}}} can be named"
    if root == "env":
        if len(path) > 1:
            return "template.syntax", f"{written}: a variable has no fields"
        if not path[0].startswith(ENV_PREFIX):
            return "template.env", f"{written}: only names that begin with {ENV_PREFIX} can be read"
    return None


def _of_fault(fault: Fault, name: str, path: list[str]) -> Any:
    error = {"code": fault.code, "message": fault.message}
    if path == [ERROR_KEY]:
        return error
    if len(path) == 2 and path[0] == ERROR_KEY and path[1] in error:
        return error[path[1]]
    raise InputError(
        "template.no_result",
        f'action "{name}" failed with {fault.code}: only its {ERROR_KEY}.code and {ERROR_KEY}.message exist',
    )


def _inside(value: Any, key: str, path: str) -> Any:
    if isinstance(value, dict):
        if key in value:
            return value[key]
        known = ", ".join(map(str, list(value)[:8])) or "none"
        raise InputError(
            "template.no_result", f"result.{path} does not exist; fields there: {known}"
        )
    if isinstance(value, list | tuple) and _INDEX.fullmatch(key):
        if int(key) < len(value):
            return value[int(key)]
        raise InputError("template.no_result", f"result.{path}: the list has {len(value)} entries")
    raise InputError("template.no_result", f"result.{path} does not exist")


def _compact(value: Any, path: str) -> str:
    def refuse(_: Any) -> Any:
        raise InputError(
            "template.no_result", f"{path} holds bytes, which cannot stand inside text"
        )

    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=refuse)


def _inner(value: Any) -> Any:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list | tuple) else ()


def _too_large(what: str) -> InputError:
    return InputError("template.too_large", f"the params {what}")
