"""orchestrator.toml in the home: what an operator may set. No file means the defaults.

The one rule: all that is wrong is said at once, each with its key. Deliberately absent: ids and
keys (ca/), limits of safety (limits.py).
"""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imlmesh_protocol import limits
from imlmesh_protocol.errors import InputError, InputErrors, Place

_MAX_ACTIONS = 100_000  # ten times the largest plan that is measured
_TABLES = {"plans": {"max_actions"}}


@dataclass(frozen=True, slots=True)
class Config:
    """`max_actions` is how many actions a plan may have."""

    max_actions: int = limits.PLAN_ACTIONS


def load_config(path: Path) -> Config:
    """The settings of `path`; InputErrors `config.invalid`."""
    if not path.exists():
        return Config()
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise _wrong(path, "", str(exc)) from exc
    errors = [
        _wrong(path, f"/{name}", f"no such key: {name}") for name in tables.keys() - _TABLES.keys()
    ]
    plans = tables.get("plans", {})
    if not isinstance(plans, dict):
        raise InputErrors([*errors, _wrong(path, "/plans", "plans is a table")])
    errors += [
        _wrong(path, f"/plans/{name}", f"no such key: plans.{name}")
        for name in plans.keys() - _TABLES["plans"]
    ]
    max_actions: Any = plans.get("max_actions", limits.PLAN_ACTIONS)
    if type(max_actions) is not int or not 1 <= max_actions <= _MAX_ACTIONS:
        text = f"plans.max_actions must be a whole number from 1 to {_MAX_ACTIONS}"
        errors.append(_wrong(path, "/plans/max_actions", text))
    if errors:
        raise InputErrors(sorted(errors, key=lambda error: error.message))
    return Config(max_actions)


def _wrong(path: Path, pointer: str, text: str) -> InputError:
    return InputError("config.invalid", text, place=Place(pointer, file=str(path)))
