"""A plan document: its data, and the place of every key and value in the text it came from.

The one rule: whatever a text holds, reading it costs bounded time and memory and ends in a
`Document` or in coded errors with their place. Deliberately absent: what the fields mean
(`plan`), the two grammars (`json_text`, `yaml_text`).
"""

from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Literal

from imlmesh_protocol import limits
from imlmesh_protocol.errors import InputError, Place
from imlmesh_protocol.iml.builder import Builder, Part, Text
from imlmesh_protocol.iml.json_text import feed_json
from imlmesh_protocol.iml.plain_data import feed_data

Format = Literal["json", "yaml", "data"]


@dataclass(frozen=True, slots=True)
class Document:
    """Plain data (dicts, lists, text, numbers, booleans, None) and where each piece stands."""

    data: Any
    format: Format
    text: Text
    root: Part

    def place(self, pointer: str, *, key: bool = False) -> Place:
        """Where the value at a JSON pointer stands, or its key; of what is not there: its nearest owner."""
        part = self.root
        span = (part.start, part.end)
        for token in pointer.split("/")[1:]:
            found = part.inner(token.replace("~1", "/").replace("~0", "~"))
            if found is None:
                span = (part.start, part.end)
                break
            key_span, part = found
            # an empty YAML value stands nowhere; its key does
            at_key = key or part.start == part.end
            span = key_span if key_span and at_key else (part.start, part.end)
        return self.text.place(*span, pointer)


def parse(data: bytes | str, file: str | None = None) -> Document:
    """Read a plan as JSON or YAML 1.2, told apart by the name's ending, else by the first character.

    Raises `InputError` (or `InputErrors`): plan.too_large, plan.syntax, plan.duplicate_key.
    """
    if len(data) > limits.PLAN_BYTES:
        raise _too_large(file, f"the plan has {len(data):,} bytes", limits.PLAN_BYTES)
    decoded = data if isinstance(data, str) else _decode(data, file)
    text = Text(decoded.removeprefix("\ufeff"), file)
    builder = Builder(text)
    if _is_json(text):
        feed_json(text.content, builder)
        return _document(builder, text, "json")
    if len(data) > limits.PLAN_YAML_BYTES:
        raise _too_large(file, f"the YAML plan has {len(data):,} bytes", limits.PLAN_YAML_BYTES)
    # ruamel.yaml takes longer to import than most plans to run; JSON plans never need it
    from imlmesh_protocol.iml.yaml_text import feed_yaml

    feed_yaml(text.content, builder)
    return _document(builder, text, "yaml")


def document_of(data: Any, file: str | None = None) -> Document:
    """A document of Python data (dicts, lists, tuples, scalars): its places are pointers alone.

    Raises the same errors as `parse`; the data is copied, so the caller may change its own.
    """
    text = Text("", file)
    builder = Builder(text)
    feed_data(data, builder)
    return _document(builder, text, "data")


def _document(builder: Builder, text: Text, format: Format) -> Document:
    data, root = builder.finish()
    return Document(data, format, text, root)


def _is_json(text: Text) -> bool:
    suffix = PurePath(text.file).suffix.lower() if text.file else ""
    if suffix in (".yaml", ".yml"):
        return False
    return suffix == ".json" or text.content.lstrip()[:1] in ("{", "[")


def _decode(data: bytes, file: str | None) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as exc:
        before = Text(data[: exc.start].decode() + "?", file)
        place = before.place(len(before.content) - 1, len(before.content), "")
        raise InputError("plan.syntax", "the plan is not UTF-8 text", place=place) from exc


def _too_large(file: str | None, what: str, limit: int) -> InputError:
    return InputError("plan.too_large", f"{what}; at most {limit:,}", place=Place("", file))
