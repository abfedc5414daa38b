"""Text of others (plans, nodes, drivers) as it may stand on a terminal, and data as JSON or YAML.

The one rule: no control character of others reaches a terminal: it could recolour, retitle or
rewrite what is shown there, or turn the direction in which it is read. Deliberately absent: our
own colours, which are added later.
"""

import json
from typing import Any

_KEPT = {"\n", "\t"}
_PICTURES = {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in _KEPT}
#: marks, embeddings, overrides and isolates of Unicode's bidirectional algorithm
_TURNING = (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_PICTURES |= {0x7F: "\u2421", **dict.fromkeys((*range(0x80, 0xA0), *_TURNING), "\ufffd")}
#: true and false of YAML 1.1
_OLD_WORDS = {"y", "n", "yes", "no", "on", "off"}
_LINE_CHARS = 10_000
# JSON escapes the others by itself.
_ESCAPES = {code: f"\\u{code:04x}" for code in (*range(0x7F, 0xA0), *_TURNING)}


def printable(text: str) -> str:
    """`text` with each control character but line feed and tab as one visible character."""
    return text.translate(_PICTURES)


def one_line(text: str) -> str:
    """What others wrote, in the one line that we give it: none of theirs passes for one of ours."""
    return text.replace("\n", "\u240a").replace("\t", "\u2409")


def as_json(record: Any, indent: int | None = None) -> str:
    """The exact data, readable, without a control character."""
    return json.dumps(record, ensure_ascii=False, indent=indent).translate(_ESCAPES)


def as_yaml(record: Any) -> str:
    """The same data as a YAML 1.2 document, which older YAML parsers read alike."""
    import io

    from ruamel.yaml import YAML
    from ruamel.yaml.representer import SafeRepresenter

    class Representer(SafeRepresenter):
        def represent_str(self, data: str) -> Any:
            # what turns the direction is escaped below, which only means something in quotes
            quoted = data.lower() in _OLD_WORDS or not set(map(ord, data)).isdisjoint(_TURNING)
            style = '"' if quoted else None
            return self.represent_scalar("tag:yaml.org,2002:str", data, style)

    Representer.add_representer(str, Representer.represent_str)
    yaml = YAML(typ="safe", pure=True)
    yaml.Representer = Representer
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.width = _LINE_CHARS
    text = io.StringIO()
    yaml.dump(record, text)
    return text.getvalue().translate(_ESCAPES)
