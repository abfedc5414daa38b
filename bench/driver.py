"""What a node adds to a driver's own work: guard, validation of the params, and claims."""

import statistics
import time
from typing import Any

from bench.figures import line
from imlmesh_drivers.base import CommandRule, PinRules, Site
from imlmesh_drivers.invoke import bind
from imlmesh_drivers.registry import builtin_modules, driver_class, shipped_manifest
from imlmesh_node.config import Policy
from imlmesh_node.core.claims import Claims
from imlmesh_node.guard import Guard
from imlmesh_protocol.wire.dispatches import Dispatch

ROUNDS = 15
CALLS = 500

#: a call of each kind of guard, short and long
CALLS_OF: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("fake", "noop", {}),
    ("filesystem", "read_file", {"path": "notes/today.txt", "max_bytes": 1_000}),
    ("filesystem", "write_file", {"path": "/srv/files/a/b/c/d.txt", "content": "x" * 10_000}),
    ("filesystem", "move_file", {"source": "inbox/a.csv", "destination": "done/a.csv"}),
    ("os_exec", "run_command", {"command": ["sync", "--quiet", "files/a", "files/b"]}),
    ("os_exec", "open_application", {"application": "sync", "arguments": ["files/a"]}),
    ("iot", "digital_write", {"pin": 17, "value": 1}),
)


def _site() -> Site:
    """A policy of some size: each of its rules is looked at."""
    rules = {f"tool{number}": CommandRule(f"/usr/bin/tool{number}") for number in range(20)}
    rules["sync"] = CommandRule("/usr/bin/rsync", ("--(quiet|archive)", "[a-z]+", "files/[a-z/]+"))
    return Site(
        files="/srv/files",
        read_roots=tuple(f"/srv/read{number}" for number in range(8)),
        write_roots=("/srv/files", "/var/spool/imlmesh"),
        commands=rules,
        pins=PinRules("mock", tuple(range(28)), {17: 0}),
    )


def measure(module: str, action: str, params: dict[str, Any]) -> float:
    """Median microseconds of one call, over rounds of CALLS."""
    manifest = shipped_manifest()
    spec = manifest.find(module, action)
    if spec is None:
        raise RuntimeError(f"{module}.{action} is not shipped")
    guard = Guard(Policy("power_user", builtin_modules(), _site()), manifest)
    claims = Claims()
    asked = Dispatch("r/a/pi/1", module, action, params, spec.effect, 60_000, 6_000, "finish")
    driver = driver_class(module)
    rounds = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        for _ in range(CALLS):
            dispatch, fault = guard.check(asked)
            if fault is not None or claims.holder(dispatch.claims) is not None:
                raise RuntimeError(f"{module}.{action} is refused: {fault}")
            claims.take(dispatch.claims, dispatch.id)
            bind(driver, action, dispatch.params)
            claims.free(dispatch.claims)
        rounds.append((time.perf_counter() - began) / CALLS)
    return statistics.median(rounds) * 1e6


def run() -> list[dict[str, Any]]:
    taken = {f"{call[0]}.{call[1]}": measure(*call) for call in CALLS_OF}
    worst = max(taken, key=taken.__getitem__)
    return [
        line(
            "driver",
            us_per_action=round(statistics.mean(taken.values()), 1),
            worst_us=round(taken[worst], 1),
            worst=worst,
            actions=len(taken),
        )
    ]
