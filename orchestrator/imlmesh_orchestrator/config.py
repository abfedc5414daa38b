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
_TABLES = {"plans": {"max_actions"}, "approvals": {"four_eyes"}}


@dataclass(frozen=True, slots=True)
class Config:
    """`max_actions` is how many actions a plan may have; with `four_eyes` nobody opens a gate
    of a run that they submitted."""

    max_actions: int = limits.PLAN_ACTIONS
    four_eyes: bool = False


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
    found = {name: _table(path, name, tables.get(name, {}), errors) for name in _TABLES}
    max_actions: Any = found["plans"].get("max_actions", limits.PLAN_ACTIONS)
    if type(max_actions) is not int or not 1 <= max_actions <= _MAX_ACTIONS:
        text = f"plans.max_actions must be a whole number from 1 to {_MAX_ACTIONS}"
        errors.append(_wrong(path, "/plans/max_actions", text))
    four_eyes: Any = found["approvals"].get("four_eyes", False)
    if type(four_eyes) is not bool:
        text = "approvals.four_eyes must be true or false"
        errors.append(_wrong(path, "/approvals/four_eyes", text))
    if errors:
        raise InputErrors(sorted(errors, key=lambda error: error.message))
    return Config(max_actions, four_eyes)


def _table(path: Path, name: str, table: Any, errors: list[InputError]) -> dict[str, Any]:
    if not isinstance(table, dict):
        errors.append(_wrong(path, f"/{name}", f"{name} is a table"))
        return {}
    errors += [
        _wrong(path, f"/{name}/{key}", f"no such key: {name}.{key}")
        for key in table.keys() - _TABLES[name]
    ]
    return table


def _wrong(path: Path, pointer: str, text: str) -> InputError:
    return InputError("config.invalid", text, place=Place(pointer, file=str(path)))
