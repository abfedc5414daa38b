"""How a run ended: failures with their place, their last log lines, and what to try."""

import pytest

from cli_records import START_MS, action, placed, run
from imlmesh.ending import end_lines
from imlmesh.render import clock
from imlmesh.settings import settings

BUSY = {"code": "driver.busy", "message": "pin 17 is busy"}


@pytest.fixture(autouse=True)
def _fresh() -> None:
    settings.reset()


def log(name: str, text: str) -> dict[str, object]:
    return {"at_ms": START_MS, "action": name, "node": "pi", "stream": "stderr", "line": text}


def test_the_end_groups_failures_with_their_place_and_last_lines() -> None:
    found = run(
        [action("read"), action("valve", "failed", error=BUSY, line=30)],
        state="failed",
        ended_at_ms=START_MS + 41_000,
    )
    logs = [log("read", "all well"), *(log("valve", f"line {n}") for n in range(5))]
    at = clock(START_MS)
    assert [line.plain for line in end_lines(found, logs)] == [
        "✖ r-7-abcd failed after 41s   1 completed · 1 failed",
        "  valve on pi: pin 17 is busy [driver.busy]  evening.yaml:30",
        f"    | {at} line 2",
        f"    | {at} line 3",
        f"    | {at} line 4",
        "  try: wait for the holder to end",
        "  retry only this: imlmesh run retry r-7-abcd --failed",
        "  log: imlmesh run logs r-7-abcd valve",
        "  why: imlmesh run story r-7-abcd",
    ]


def test_nodes_that_failed_are_named_below_their_action() -> None:
    members = [placed("pi-a", "completed"), placed("pi-b", "failed", "driver.busy")]
    partial = {"code": "place.no_node", "message": "1 of 2 nodes"}
    failed = action("read", "failed", members=members, error=partial)
    texts = [line.plain for line in end_lines(run([failed], state="failed"))]
    assert texts[1:3] == [
        "  read: 1 of 2 nodes [place.no_node]",
        "    pi-b: pi-b says why [driver.busy]",
    ]


def test_a_failure_that_was_undone_is_still_told() -> None:
    undone = action("append", "rolled_back", error=BUSY)
    texts = [line.plain for line in end_lines(run([undone], state="failed"))]
    assert texts[1] == "  append on pi: pin 17 is busy [driver.busy] (undone)"


def test_a_failure_that_was_skipped_is_told_and_not_what_was_skipped_for_it() -> None:
    failed = action("read", "skipped", error=BUSY, node="n-1", node_alias="pi", line=3)
    follows = {"code": "action.dependency", "message": "an action that it waits for did not"}
    found = run([failed, action("use", "skipped", error=follows)], state="completed")
    texts = [line.plain for line in end_lines(found)]
    assert texts[1:] == ["  read on pi: pin 17 is busy [driver.busy] (skipped)  evening.yaml:3"]


def test_what_was_skipped_alone_is_no_reason_to_retry() -> None:
    expired = {"code": "run.expired", "message": "its time is over"}
    found = run([action("read", "skipped", error=BUSY)], state="failed", error=expired)
    texts = [line.plain for line in end_lines(found)]
    assert texts[2:] == ["  its time is over [run.expired]", "  why: imlmesh run story r-7-abcd"]


def test_why_the_run_failed_is_told_beside_what_was_continued() -> None:
    expired = {"code": "run.expired", "message": "its time is over"}
    found = run([action("read", "failed", error=BUSY)], state="failed", error=expired)
    texts = [line.plain for line in end_lines(found)]
    assert texts[1:3] == [
        "  read on pi: pin 17 is busy [driver.busy]",
        "  its time is over [run.expired]",
    ]
    found = run([action("read", "failed", error=BUSY)], state="failed", error=BUSY)
    assert sum("[driver.busy]" in line.plain for line in end_lines(found)) == 1


def test_what_could_not_be_undone_is_listed() -> None:
    append = action(
        "append", compensations=[placed("pi", "failed", "node.lost"), placed("bed", "completed")]
    )
    failed = action("valve", "failed", error=BUSY)
    found = run([append, failed], state="failed", compensation_pending=True)
    texts = [line.plain for line in end_lines(found)]
    at = texts.index("  not everything is undone:")
    assert texts[at + 1 : at + 4] == [
        "    append on pi [node.lost]",
        "  try: wait for the holder to end",
        "  retry only this: imlmesh run retry r-7-abcd --failed",
    ]


def test_what_helps_against_a_code_is_told_once() -> None:
    codes = ["policy.pin", "policy.bus", "policy.pin", "driver.failed", "action.cancelled"]
    failed = [
        action(f"a{n}", "failed", error={"code": code, "message": code})
        for n, code in enumerate([*codes, "of.a.newer.version"])
    ]
    texts = [line.plain for line in end_lines(run(failed, state="failed"))]
    assert [text for text in texts if text.startswith("  try: ")] == [
        "  try: allow it in policy.toml [pins]",
        "  try: allow it in policy.toml [i2c], [serial] or [onewire]",
    ]


def test_an_unconfirmed_cancel_is_said() -> None:
    found = run([action("a", "cancelled")], state="cancelled", unconfirmed=True, ended_at_ms=1)
    texts = [line.plain for line in end_lines(found)]
    assert texts[0].startswith("■ r-7-abcd cancelled")
    assert "has not confirmed" in texts[1]
    assert not [text for text in texts if "retry" in text]


def test_a_run_that_completed_needs_no_advice() -> None:
    assert len(end_lines(run([action("a")], state="completed", ended_at_ms=START_MS + 1))) == 1
