"""orchestrator.toml in the home: what an operator may set. No file means the defaults.

The one rule: all that is wrong is said at once, each with its key. Deliberately absent: ids and
keys (ca/), limits of safety (limits.py).
"""

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from imlmesh_orchestrator.store.rollups import HOUR_MS, Kept
from imlmesh_protocol import limits
from imlmesh_protocol.errors import InputError, InputErrors, Place

_MAX_ACTIONS = 100_000  # ten times the largest plan that is measured
_TABLES = {
    "plans": {"max_actions"},
    "approvals": {"four_eyes"},
    "certificates": {"node_s"},
    "telemetry": {"raw_hours", "minute_days", "hour_days", "max_mb"},
}
# [telemetry]: least, most, default. A raw reading lives until its hour is rolled up and nobody can be late
_KEPT = {
    "raw_hours": (3, 24 * 366, limits.RAW_KEPT_HOURS),
    "minute_days": (1, 3_660, limits.MINUTES_KEPT_DAYS),
    "hour_days": (1, 36_600, limits.HOURS_KEPT_DAYS),
    "max_mb": (64, 1 << 20, limits.OUTPUT_STORE_MB),
}


@dataclass(frozen=True, slots=True)
class Config:
    """`max_actions` is how many actions a plan may have; with `four_eyes` nobody opens a gate
    of a run that they submitted; `kept` is how long telemetry stays, `node_s` how long the certificate
    of a node lives."""

    max_actions: int = limits.PLAN_ACTIONS
    four_eyes: bool = False
    kept: Kept = field(default_factory=Kept)
    node_s: int = limits.CERTIFICATE_S


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
    kept = _kept(path, found["telemetry"], errors)
    node_s: Any = found["certificates"].get("node_s", limits.CERTIFICATE_S)
    least_s, most_s = limits.CERTIFICATE_LEAST_S, limits.CERTIFICATE_MOST_S
    if type(node_s) is not int or not least_s <= node_s <= most_s:
        text = f"certificates.node_s must be a whole number from {least_s} to {most_s}"
        errors.append(_wrong(path, "/certificates/node_s", text))
    if errors:
        raise InputErrors(sorted(errors, key=lambda error: error.message))
    return Config(max_actions, four_eyes, kept, node_s)


def _kept(path: Path, table: dict[str, Any], errors: list[InputError]) -> Kept:
    given: dict[str, int] = {}
    for key, (least, most, usual) in _KEPT.items():
        value: Any = table.get(key, usual)
        if type(value) is not int or not least <= value <= most:
            text = f"telemetry.{key} must be a whole number from {least} to {most}"
            errors.append(_wrong(path, f"/telemetry/{key}", text))
            value = usual
        given[key] = value
    day_ms = 24 * HOUR_MS
    return Kept(
        given["raw_hours"] * HOUR_MS,
        given["minute_days"] * day_ms,
        given["hour_days"] * day_ms,
        given["max_mb"] << 20,
    )


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
