"""What a plan would do now, as people read it."""

from typing import Any

import pytest

from imlmesh import render
from imlmesh.preview import change_lines, changed, print_preview
from imlmesh.settings import settings

NO_CHANGE: dict[str, Any] = {
    "last_run": "r-41-abcd",
    "added": [],
    "removed": [],
    "changed": [],
    "nodes_changed": [],
}


@pytest.fixture(autouse=True)
def _fresh() -> None:
    settings.reset()
    render.console.cache_clear()


def node(name: str, *reasons: str) -> dict[str, Any]:
    state = "refused" if reasons else "eligible"
    found = {"node": name, "alias": name, "state": state, "reasons": list(reasons)}
    return {**found, "liveness": "online"}


def planned(name: str, *nodes: dict[str, Any], **fields: Any) -> dict[str, Any]:
    found = {
        "action": name,
        "module": "iot",
        "call": "iot.read_sensor",
        "effect": "pure",
        "vouched": False,
        "impact": 0.1,
        "permission": "readonly",
        "mode": "any",
        "target": "any node",
        "nodes": list(nodes),
        "nodes_needed": None,
        "chosen": next((n["alias"] for n in nodes if n["state"] == "eligible"), None),
        "approval": None,
        "claims": [],
        "on_node_loss": "reroute",
        "retry": None,
        "rollback": None,
    }
    return {**found, **fields}


def preview(*waves: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
    found = {
        "schema": "imlmesh.preview/1",
        "plan_id": "evening",
        "digest": "d" * 64,
        "fingerprint": "8c1f00112233",
        "placeable": True,
        "waves": list(waves),
        "compensations": [],
        "undoing": {"by_driver": [], "stays": []},
        "approvals": 0,
        "permissions": {},
        "changes": None,
        "errors": [],
        "warnings": [],
        "memory": {"reads": [], "writes": []},
        "not_before": None,
    }
    return {**found, **fields}


def shown(capsys: pytest.CaptureFixture[str], found: dict[str, Any]) -> list[str]:
    print_preview(found)
    return capsys.readouterr().out.splitlines()


def test_each_action_has_its_wave_node_effect_and_question(
    capsys: pytest.CaptureFixture[str],
) -> None:
    read = planned("read", node("pi-a"), node("pi-b"), mode="all")
    valve = planned(
        "valve",
        node("pi-a"),
        call="iot.digital_write",
        effect="physical",
        permission="local_worker",
        claims=["gpio:17"],
        on_node_loss="ask",
        approval={
            "why": "requires_approval",
            "message": "Opens the valve",
            "risk": "high",
            "timeout_seconds": 900,
        },
    )
    close = planned("close", node("pi-a"), undoes=["valve"])
    lines = shown(capsys, preview([read], [valve], compensations=[close]))
    assert lines[0] == "✔ evening   2 actions · 2 waves · fingerprint 8c1f00112233"
    assert lines[2].split()[:6] == ["1", "read", "all:", "pi-a,", "pi-b", "iot.read_sensor"]
    assert lines[3].split() == [
        "2",
        "valve",
        "pi-a",
        "iot.digital_write",
        "physical",
        "local_worker",
        "approval",
        "gpio:17",
        "ask",
    ]
    assert lines[4].split()[:5] == ["undo", "close", "where", "valve", "ran"]
    assert lines[5] == (
        "asks before valve (requires_approval, risk high, within 15m):  Opens the valve"
    )


def test_nodes_that_are_left_out_stand_with_their_reason(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lost = node("pi-shed", "node.lost")
    found = preview(
        [planned("read", node("pi-a"), lost), planned("count", node("pi-a"), lost)],
        [planned("valve", lost)],
        placeable=False,
    )
    lines = shown(capsys, found)
    assert lines[0].startswith("✖ evening")
    assert lines[4].split()[:3] == ["2", "valve", "nobody"]
    assert lines[5] == "left out of read, count, valve:  pi-shed node.lost"


def test_an_action_that_too_few_nodes_can_do_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    nodes = [node("pi-a"), node("pi-b", "node.cordoned")]
    few = planned("read", *nodes, mode="all", nodes_needed=2)
    enough = planned("look", *nodes, mode="all", nodes_needed=1)
    lines = shown(capsys, preview([few, enough], placeable=False))
    told = [line for line in lines if "would fail" in line]
    assert told == ["read would fail now: it needs 2 nodes, 1 can"]


def test_many_nodes_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    nodes = [node(f"pi-{n}", "policy.profile") for n in range(8)]
    lines = shown(capsys, preview([planned("read", *nodes)], placeable=False))
    assert lines[-1].endswith("pi-4 policy.profile and 3 more")


def test_what_a_rollback_would_do_beside_the_plan_is_told(
    capsys: pytest.CaptureFixture[str],
) -> None:
    by_driver = [{"action": "valve", "call": "iot.digital_write"}]
    found = preview(
        [planned("valve", node("pi"))], undoing={"by_driver": by_driver, "stays": ["note"]}
    )
    assert shown(capsys, found)[-2:] == [
        "a rollback undoes by its driver valve (iot.digital_write)",
        "a rollback leaves as it is note",
    ]


def test_what_memory_is_used_and_when_it_starts(capsys: pytest.CaptureFixture[str]) -> None:
    memory = {"reads": ["limit"], "writes": ["last"]}
    found = preview([planned("a", node("pi"))], memory=memory, not_before="2026-03-01T08:00:00Z")
    lines = shown(capsys, found)
    assert lines[1] == "  starts at 2026-03-01T08:00:00Z"
    assert lines[-2:] == ["reads memory limit", "writes memory last"]


def test_the_difference_to_the_last_run() -> None:
    changes = {
        **NO_CHANGE,
        "added": ["new"],
        "removed": ["old"],
        "changed": [
            {
                "action": "valve",
                "field": "params",
                "before": {"pin": 17, "at": {"value": 0}},
                "after": {"pin": 17, "at": {"value": 1}, "note": "x"},
            },
            {"action": "valve", "field": "timeout", "before": 60, "after": 5},
        ],
        "nodes_changed": ["read"],
    }
    assert [line.plain for line in change_lines(changes)] == [
        "since last run r-41-abcd:",
        "  + new",
        "  - old",
        "  ~ valve.params.at.value  0 → 1",
        '  ~ valve.params.note  null → "x"',
        "  ~ valve.timeout  60 → 5",
        "  ~ the nodes of read",
    ]
    assert changed(preview(changes=changes))


def test_no_difference_is_said_too() -> None:
    assert [line.plain for line in change_lines(NO_CHANGE)] == [
        "since last run r-41-abcd:  no change"
    ]
    assert not changed(preview(changes=NO_CHANGE))
    assert not changed(preview())
    assert list(change_lines(None)) == []


def test_long_values_are_cut() -> None:
    each = {"action": "a", "field": "params.text", "before": "x" * 500, "after": None}
    line = list(change_lines({**NO_CHANGE, "changed": [each]}))[1].plain
    assert line.endswith("… → null")
    assert len(line) < 100
