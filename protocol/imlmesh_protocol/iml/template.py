"""Templates in params: finding them, and putting values in their place.

    {{result.ID.field.0}}   {{result.ID.NODE.field}}   {{result.ID.*.field}}
    {{memory.KEY}}   {{env.IML_NAME}}   {{node.id}}

The one rule: one pass over whole-value paths; what was put in is never looked at again, and
nothing is computed. Deliberately absent: filters, expressions, templates in keys, escapes.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgpack

from imlmesh_protocol import limits
from imlmesh_protocol.errors import Fault, InputError
from imlmesh_protocol.iml.builder import pointer_of

# a key of memory may hold more than a name does, see plan.MemoryKey
_TEMPLATE = re.compile(r"\{\{\s*(memory\.[^.{}\s]+(?:\.[\w-]+)*|[\w-]+(?:\.(?:[\w-]+|\*))*)\s*\}\}")
_OPENING = "{{"
ENV_PREFIX = "IML_"
#: the path element under which the error of a failed, continued action stands
ERROR_KEY = "_error"
#: in place of a node: the values of all nodes, as a list in the order of node ids
EACH_NODE = "*"
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
    """What templates of one dispatch may take.

    `results` by action id (a `Fault` for a failed, continued one; {node id: result} where several
    nodes took part), IML_ variables, the id of the node, `memory` by key, `aliases` to node ids.
    """

    results: Mapping[str, Any]
    env: Mapping[str, str]
    node: str
    memory: Mapping[str, Any] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)


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


def pieces(text: str) -> list[str | Reference]:
    """A text as what stands between its templates, and the templates, in order; nothing empty."""
    found: list[str | Reference] = []
    place = 0
    for match in _TEMPLATE.finditer(text):
        root, *path = match[1].split(".")
        found += [text[place : match.start()], Reference(root, tuple(path), "")]
        place = match.end()
    return [piece for piece in (*found, text[place:]) if piece != ""]


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

    Raises `InputError` template.no_result, template.env, memory.not_found or template.too_large.
    """
    if not has_templates(params):
        return params
    filled = _Filling(lambda path: _look_up(scope, path)).value(params)
    check_size(filled)
    return filled


def render_undo(template: Any, params: Mapping[str, Any], result: Any) -> Any:
    """The params of a driver's undo: {{params.x}} and {{result.y}} are those of the undone call.

    `result` is None when the call did not complete. Raises as `render` does; template.no_result
    also for a param that the call did not give.
    """

    def look_up(path: str) -> Any:
        root, *rest = path.split(".")
        value = {"params": params, "result": result}.get(root)
        if value is None:
            raise InputError("template.no_result", f"{{{{{path}}}}}: the call has no {root}")
        return _walk(value, root, rest)

    filled = _Filling(look_up).value(template)
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
        most = ""
        if isinstance(params, dict):
            largest = max(params, key=lambda name: len(msgpack.packb(params[name])))
            most = f', "{largest}" most of them'
        raise _too_large(f"take {size:,} bytes{most}; at most {limits.PARAMS_BYTES:,}")


class _Filling:
    """One rendering; stops as soon as what was put in cannot fit, before it is copied together."""

    def __init__(self, look_up: Callable[[str], Any]) -> None:
        self._look_up = look_up
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


def _look_up(scope: Scope, path: str) -> Any:
    root, name, *rest = path.split(".")
    if root == "node":
        return scope.node
    if root == "env":
        if name not in scope.env:
            raise InputError("template.env", f"the orchestrator has no variable {name}")
        value = scope.env[name]
        if not value.isascii() and any("\ud800" <= sign <= "\udfff" for sign in value):
            raise InputError("template.env", f"the variable {name} is not UTF-8")
        return value
    if root == "memory":
        if name not in scope.memory:
            raise InputError("memory.not_found", f'the memory has no key "{name}"')
        return _walk(scope.memory[name], f"memory.{name}", rest)
    if root != "result" or name not in scope.results:
        raise InputError("template.no_result", f"{{{{{path}}}}} has no result")
    result = scope.results[name]
    if isinstance(result, Fault):
        return _of_fault(result, name, rest)
    if rest and rest[0] == EACH_NODE:
        return _of_each(result, f"result.{name}", rest[1:])
    if rest and isinstance(result, dict) and rest[0] not in result:
        rest[0] = scope.aliases.get(rest[0], rest[0])
    return _walk(result, f"result.{name}", rest)


def _of_each(result: Any, path: str, rest: list[str]) -> list[Any]:
    if not isinstance(result, dict):
        raise InputError("template.no_result", f"{path} is not the result of several nodes")
    return [_walk(result[node], f"{path}.{node}", rest) for node in sorted(result)]


def _walk(value: Any, path: str, keys: list[str]) -> Any:
    for key in keys:
        path = f"{path}.{key}"
        value = _inside(value, key, path)
    return value


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
        return "template.syntax", f"{written} begins with none of result, memory, env and node"
    if not path:
        return "template.syntax", f"{written} does not say which {root}"
    if EACH_NODE in path and (
        root != "result" or path.index(EACH_NODE) != 1 or path.count(EACH_NODE) > 1
    ):
        return "template.syntax", f"{written}: * stands for all nodes, right after the action's id"
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
        raise InputError("template.no_result", f"{path} does not exist; fields there: {known}")
    if isinstance(value, list | tuple) and _INDEX.fullmatch(key):
        if int(key) < len(value):
            return value[int(key)]
        raise InputError("template.no_result", f"{path}: the list has {len(value)} entries")
    raise InputError("template.no_result", f"{path} does not exist")


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
