"""Text of others (plans, nodes, drivers) as it may stand on a terminal, and data as JSON.

The one rule: no control character of others reaches a terminal: it could recolour, retitle or
rewrite what is shown there. Deliberately absent: our own colours, which are added later.
"""

import json
from typing import Any

_KEPT = {"\n", "\t"}
_PICTURES = {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in _KEPT}
_PICTURES |= {0x7F: "\u2421", **dict.fromkeys(range(0x80, 0xA0), "\ufffd")}
# JSON escapes the others by itself.
_ESCAPES = {code: f"\\u{code:04x}" for code in range(0x7F, 0xA0)}


def printable(text: str) -> str:
    """`text` with each control character but line feed and tab as one visible character."""
    return text.translate(_PICTURES)


def as_json(record: Any, indent: int | None = None) -> str:
    """The exact data, readable, without a raw control character."""
    return json.dumps(record, ensure_ascii=False, indent=indent).translate(_ESCAPES)
