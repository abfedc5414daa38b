"""Answers as JSON.

The one rule: what msgpack carries and JSON does not, bytes, becomes {"base64": text}.
"""

import base64
import json
from typing import Any


def to_json(value: Any) -> bytes:
    """Compact JSON of plain values and mappings."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=_foreign)
    return text.encode()


def _foreign(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    return dict(value)
