"""The guard: what a policy allows passes, everything else is refused with its code."""

from typing import Any

import pytest

from imlmesh_drivers.base import CommandRule, PinRules, Site
from imlmesh_drivers.registry import shipped_manifest
from imlmesh_node.config import Policy
from imlmesh_node.guard import Guard
from imlmesh_protocol.errors import Fault
from imlmesh_protocol.manifest import ActionSpec, Manifest, Module
from imlmesh_protocol.states import Effect
from imlmesh_protocol.wire.dispatches import Dispatch

SITE = Site(
    files="/srv/files",
    read_roots=("/var/log",),
    write_roots=("/srv/files",),
    commands={"date": CommandRule("/usr/bin/date", ("[+]%[a-z]+",))},
    pins=PinRules("mock", (17,), {17: 0}),
)
ALL = ("filesystem", "iot", "os_exec")


def refusal(
    module: str, action: str, params: dict[str, Any], profile: str = "local_worker", **fields: Any
) -> str | None:
    """The code that a guard of SITE refuses with, or None."""
    fault = fault_of(module, action, params, profile, **fields)
    return fault.code if fault else None


def fault_of(
    module: str, action: str, params: dict[str, Any], profile: str = "local_worker", **fields: Any
) -> Fault | None:
    manifest = shipped_manifest()
    spec = manifest.find(module, action)
    effect = fields.pop("effect", spec.effect if spec else Effect.ONCE)
    dispatch = Dispatch("r/a/pi/1", module, action, params, effect, 1, 1, "finish")
    guard = Guard(Policy(profile, fields.pop("modules", ALL), SITE), manifest)
    fault = guard.check(dispatch)[1]
    assert guard.check(dispatch)[1] == fault  # what it remembers changes nothing
    return fault


@pytest.mark.parametrize("path", ["a.txt", "a/b.txt", "/srv/files/a", "/var/log/syslog"])
def test_reading_beneath_a_root_passes(path: str) -> None:
    assert refusal("filesystem", "read_file", {"path": path}) is None


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "../x", "a/../../x", "/srv/files/../x", "/srv/filesystem", "", "a\0b", "/"],
)
def test_reading_elsewhere_is_refused(path: str) -> None:
    assert refusal("filesystem", "read_file", {"path": path}) == "policy.path"


def test_writing_needs_a_write_root() -> None:
    write = {"content": "x"}
    assert refusal("filesystem", "write_file", {"path": "a", **write}) is None
    assert refusal("filesystem", "write_file", {"path": "/var/log/a", **write}) == "policy.path"


def test_a_command_needs_its_rule() -> None:
    assert refusal("os_exec", "run_command", {"command": ["date", "+%s"]}) is None
    assert refusal("os_exec", "run_command", {"command": ["/usr/bin/date", "+%s"]}) is None
    for command in (["sh", "-c", "x"], ["date", "--set", "x"], ["./date"], []):
        assert refusal("os_exec", "run_command", {"command": command}) == "policy.command"


def test_an_application_needs_a_rule_too() -> None:
    for name in ("date", "/usr/bin/date"):
        assert refusal("os_exec", "open_application", {"application": name}) is None
    for name in ("sh", "", "date "):
        found = refusal("os_exec", "open_application", {"application": name})
        assert found == "policy.command"


def test_what_no_program_can_be_given_is_blamed_on_its_param() -> None:
    for word in ("a\0b", "x" * 200_000):
        fault = fault_of("os_exec", "run_command", {"command": ["date", word]})
        assert fault
        assert (fault.code, fault.message.partition(":")[0]) == ("driver.params", "command")
        assert len(fault.message) <= 300
    fault = fault_of("filesystem", "move_file", {"source": "a", "destination": "x" * 5_000})
    assert fault
    assert (fault.code, fault.message.partition(":")[0]) == ("driver.params", "destination")


def test_what_could_do_harm_needs_more_trust() -> None:
    for module, action, params in (
        ("filesystem", "delete_file", {"path": "a"}),
        ("os_exec", "kill_process", {"pid": 7}),
        ("os_exec", "close_application", {"application_name": "x"}),
    ):
        assert refusal(module, action, params) == "policy.profile"
        assert refusal(module, action, params, profile="power_user") is None


def test_a_guarded_param_that_is_not_required_is_checked_when_given() -> None:
    command = {"command": ["date"]}
    assert refusal("os_exec", "run_command", {**command, "working_directory": None}) is None
    elsewhere = {**command, "working_directory": "/etc"}
    assert refusal("os_exec", "run_command", elsewhere) == "policy.path"


def test_a_pin_must_be_allowed() -> None:
    assert refusal("iot", "digital_write", {"pin": 17, "value": 1}) is None
    assert refusal("iot", "digital_write", {"pin": 18, "value": 1}) == "policy.pin"
    assert refusal("iot", "cleanup", {"pins": [17]}) is None
    fault = fault_of("iot", "cleanup", {"pins": [17, 18]})
    assert fault
    assert (fault.code, fault.message.partition(":")[0]) == ("policy.pin", "pins")


@pytest.mark.parametrize(
    ("module", "action", "params"),
    [
        ("filesystem", "read_file", {"path": 3}),
        ("filesystem", "read_file", {"path": ["a"]}),
        ("os_exec", "run_command", {"command": "date"}),
        ("os_exec", "run_command", {"command": ["date", 3]}),
        ("iot", "digital_read", {"pin": True}),
        ("iot", "digital_read", {"pin": "17"}),
        ("iot", "digital_read", {}),
        ("iot", "cleanup", {"pins": 17}),
        ("iot", "cleanup", {"pins": [17, "17"]}),
    ],
)
def test_what_cannot_be_judged_is_refused(module: str, action: str, params: dict[str, Any]) -> None:
    assert refusal(module, action, params) == "driver.params"


def test_a_profile_is_a_ceiling() -> None:
    write = {"path": "a", "content": "x"}
    assert refusal("filesystem", "write_file", write, profile="readonly") == "policy.profile"
    assert refusal("filesystem", "read_file", {"path": "a"}, profile="readonly") is None
    assert refusal("filesystem", "write_file", write, profile="power_user") is None


def test_a_module_must_be_allowed_and_an_action_known() -> None:
    assert refusal("fake", "noop", {}) == "policy.module"
    assert refusal("no_such", "noop", {}) == "policy.module"
    assert refusal("filesystem", "format_disk", {}) == "action.unknown"


def test_nobody_makes_an_effect_less_careful_unless_vouched() -> None:
    append = {"path": "a", "content": "x"}
    assert refusal("filesystem", "append_file", append, effect=Effect.PURE) == "plan.effect"
    assert refusal("filesystem", "read_file", {"path": "a"}, effect=Effect.ONCE) is None
    assert refusal("os_exec", "run_command", {"command": ["date"]}, effect=Effect.PURE) is None


def test_the_claims_of_the_driver_are_added() -> None:
    guard = Guard(Policy("local_worker", ALL, SITE), shipped_manifest())
    params = {"pin": 17, "value": 1}
    asked = Dispatch(
        "r/a/pi/1", "iot", "digital_write", params, Effect.PHYSICAL, 1, 1, "finish", "wait", ("x",)
    )
    assert guard.check(asked)[0].claims == ("gpio:17", "x")


def test_a_claim_that_stands_twice_is_one() -> None:
    guard = Guard(Policy("local_worker", ALL, SITE), shipped_manifest())
    claims = ("y", "x", "y")
    asked = Dispatch(
        "r/a/pi/1",
        "filesystem",
        "read_file",
        {"path": "a"},
        Effect.PURE,
        1,
        1,
        "finish",
        "wait",
        claims,
    )
    assert guard.check(asked)[0].claims == ("x", "y")


def test_the_default_of_a_guarded_param_is_checked_too() -> None:
    schema = {"properties": {"path": {"type": "string", "default": "/etc", "x-guard": "read"}}}
    spec = ActionSpec("filesystem", "peek", schema, (), Effect.PURE, "readonly", 0.0)
    manifest = Manifest({"filesystem": Module("1", {"peek": spec})})
    guard = Guard(Policy("readonly", ("filesystem",), SITE), manifest)
    asked = Dispatch("r/a/pi/1", "filesystem", "peek", {}, Effect.PURE, 1, 1, "finish")
    fault = guard.check(asked)[1]
    assert fault is not None
    assert fault.code == "policy.path"


def test_a_refusal_of_something_huge_stays_small() -> None:
    guard = Guard(Policy("local_worker", ALL, SITE), shipped_manifest())
    params = {"path": "/" + "x" * 150_000}
    asked = Dispatch("r/a/pi/1", "filesystem", "read_file", params, Effect.PURE, 1, 1, "finish")
    fault = guard.check(asked)[1]
    assert fault is not None
    assert len(fault.message) <= 300


def test_without_room_on_the_disk_nothing_begins_that_may_not_be_repeated() -> None:
    full = Fault("journal.full", "no room")
    guard = Guard(Policy("local_worker", ALL, SITE), shipped_manifest(), lambda: full)

    def asked(action: str, effect: Effect, **params: Any) -> Fault | None:
        dispatch = Dispatch("r/a/pi/1", "filesystem", action, params, effect, 1, 1, "finish")
        return guard.check(dispatch)[1]

    assert asked("read_file", Effect.ONCE, path="a") == full
    assert asked("read_file", Effect.PURE, path="a") is None
    # the policy's own word comes first
    outside = asked("read_file", Effect.ONCE, path="/etc/passwd")
    assert outside is not None
    assert outside.code == "policy.path"


@pytest.mark.parametrize(
    ("policy", "granted", "left"),
    [
        ("local_worker", "unrestricted", "local_worker"),
        ("power_user", "local_worker", "local_worker"),
        ("local_worker", "readonly", "readonly"),
        ("readonly", "readonly", "readonly"),
    ],
)
def test_a_roster_lowers_the_profile_and_never_raises_it(policy, granted, left) -> None:
    guard = Guard(Policy(policy, ALL, SITE), shipped_manifest())
    guard.rule(("active", granted))
    assert guard.profile == left
    guard.rule(None)
    assert guard.profile == policy


def test_what_a_roster_takes_away_is_refused_at_once() -> None:
    guard = Guard(Policy("local_worker", ALL, SITE), shipped_manifest())
    params = {"path": "a", "content": "x"}
    asked = Dispatch("r/a/pi/1", "filesystem", "append_file", params, Effect.ONCE, 1, 1, "finish")
    assert guard.check(asked)[1] is None
    guard.rule(("active", "readonly"))
    fault = guard.check(asked)[1]
    assert fault is not None
    assert fault.code == "policy.profile"
    guard.rule(("active", "local_worker"))
    assert guard.check(asked)[1] is None


def test_a_node_that_was_removed_does_nothing_more() -> None:
    guard = Guard(Policy("local_worker", ALL, SITE), shipped_manifest())
    guard.rule(("revoked", "local_worker"))
    asked = Dispatch(
        "r/a/pi/1", "filesystem", "read_file", {"path": "a"}, Effect.PURE, 1, 1, "finish"
    )
    fault = guard.check(asked)[1]
    assert fault is not None
    assert fault.code == "node.revoked"
