"""How chaos judges: effects are counted in files, percentiles are of what was measured, late is not broken."""

import re
from pathlib import Path
from typing import Any

from imlmesh.chaos.figures import Spread, is_whole, summary
from imlmesh.chaos.plans import count, doubted, marked, unexplained, waits
from imlmesh.chaos.report import page
from imlmesh.chaos.table import NAMES, SCENARIOS
from imlmesh.chaos.trial import Measured
from imlmesh.chaos.watching import _WATCHED
from imlmesh_orchestrator.core import changes as c
from imlmesh_protocol.errors import Fault

ROOT = Path(__file__).resolve().parents[2]
RUN = "r-1-abcd"
NODE_KILL = next(each for each in SCENARIOS if each.name == "node-kill")


def run_of(**states: str) -> dict[str, Any]:
    """A run as the API tells it, as far as it is looked at; an id has - for _."""
    actions = [{"id": name.replace("_", "-"), "state": state} for name, state in states.items()]
    return {"run": RUN, "actions": actions}


def write(folder: Path, *lines: str) -> list[Path]:
    folder.mkdir()
    (folder / "marks.txt").write_text("".join(f"{line}\n" for line in lines))
    return [folder]


def test_what_completed_without_its_line_is_lost(tmp_path: Path) -> None:
    run = run_of(mark_0_0="completed", mark_0_1="completed", mark_0_2="failed")
    folders = write(tmp_path / "a", f"{RUN}/mark-0-0/pi-a/1", "r-2-zzzz/mark-0-1/pi-a/1")
    found = count(marked(1, 3, 0), run, folders, set())
    assert (found.lost, found.doubled) == ([f"{RUN}/mark-0-1"], [])
    # nobody could know it, and a person said that it happened
    assert count(marked(1, 3, 0), run, folders, {"mark-0-1"}).lost == []


def test_of_a_compensation_that_a_person_answers_for_the_action_is_meant_that_it_calls() -> None:
    work = waits(("pi-a", "pi-b", "pi-c"))
    about = {"dispatch": f"{RUN}/undo/pi-b/4", "message": "", "options": ("done",), "on_expiry": ""}
    terms = {"counter": 1, "expires_at_ms": 9, "risk": "", "digest": ""}

    def asked(kind: str, action: str) -> c.ApprovalAsked:
        return c.ApprovalAsked(1, "m-1", RUN, "a-1", kind=kind, action=action, **about, **terms)

    assert doubted(work, asked("compensation", "rolled~pi-b")) == "undo"
    assert doubted(work, asked("compensation", "rolled@pi-b~pi-b")) == "undo"
    assert doubted(work, asked("gate", "asked")) is None
    unknown = c.ActionUnknown(1, "m-1", RUN, "rolled@pi-b", "", Fault("node.lost", ""))
    assert doubted(work, unknown) == "rolled"
    assert {c.ActionUnknown, c.ApprovalAsked} <= {*_WATCHED}, "else nobody would see them"


def test_what_happened_on_two_nodes_or_twice_on_one_is_doubled(tmp_path: Path) -> None:
    run = run_of(mark_0_0="completed", mark_0_1="completed")
    first = write(tmp_path / "a", f"{RUN}/mark-0-0/pi-a/1", *[f"{RUN}/mark-0-1/pi-a/1"] * 2)
    second = write(tmp_path / "b", f"{RUN}/mark-0-0/pi-b/2")
    found = count(marked(1, 2, 0), run, [*first, *second], {"mark-0-0"})
    assert sorted(found.doubled) == [f"{RUN}/mark-0-0", f"{RUN}/mark-0-1"]


def test_an_effect_that_may_happen_more_often_still_happens_once_a_dispatch(tmp_path: Path) -> None:
    run = run_of(retried="rolled_back", asked="skipped")
    lines = [f"{RUN}/retried/pi-a/{attempt}" for attempt in (1, 2, 2)]
    found = count(waits(("pi-a", "pi-b", "pi-c")), run, write(tmp_path / "a", *lines), set())
    assert found.doubled == [f"{RUN}/retried"]


def test_what_fails_and_what_is_skipped_for_it_needs_a_question() -> None:
    states = {"mark_0_0": "failed", "mark_0_1": "skipped", "mark_0_2": "skipped"}
    work, run = marked(2, 3, 0), run_of(**states, mark_1_0="completed", mark_1_1="skipped")
    # nobody could know of the first, and the others waited for it
    of_the_rest = ["mark-1-1 is skipped", "mark-1-2 is missing"]
    assert unexplained(work, run, {"mark-0-0"}) == of_the_rest
    # an answer that let it complete explains nothing of what came after it
    assert unexplained(work, run, {"mark-0-0", "mark-1-0"}) == of_the_rest
    assert len(unexplained(work, run, set())) == 5
    done = run_of(**{f"mark_0_{row}": "completed" for row in range(3)})
    assert unexplained(marked(1, 3, 0), done, set()) == []


def test_every_plan_is_one(tmp_path: Path) -> None:
    nodes = ("pi-a", "pi-b", "pi-c", "pi-d")
    for work in (waits(nodes), marked(5, 20, 100), marked(2, 2, 0, nodes=nodes, movable=nodes)):
        assert work.plan.check().errors == []
    assert len(marked(5, 20, 100).effects) == 100


def test_percentiles_are_measurements() -> None:
    assert Spread.of([]) is None
    found = Spread.of([each / 100 for each in range(100, 0, -1)])
    assert found == Spread(100, 500, 950, 1_000)


def test_late_is_told_and_breaks_nothing() -> None:
    trials = [Measured(detection_s=0.2, reroute_s=9.9), Measured(detection_s=1.6)]
    row = summary(NODE_KILL, trials)
    assert (row["n"], row["late"], is_whole(row)) == (2, 2, True)
    assert row["detection"] == {"n": 2, "p50_ms": 200, "p95_ms": 1_600, "max_ms": 1_600}
    assert row["recovery"] is None
    for trial in (Measured(lost=["x"]), Measured(doubled=["x"]), Measured(broken=["x"])):
        assert not is_whole(summary(NODE_KILL, [*trials, trial]))


def test_what_was_left_out_is_no_measurement() -> None:
    row = summary(NODE_KILL, [Measured(left_out="no right to")])
    assert (row["n"], row["left_out"], is_whole(row)) == (0, "no right to", True)
    assert "left out: no right to" in page({}, [row])


def test_the_page_tells_promise_and_measurement_beside_each_other() -> None:
    row = summary(NODE_KILL, [Measured(0.124, 6.3, 1.0), Measured(broken=["r-1 did not end"])])
    text = page({"cores": 2}, [row])
    assert "- cores: 2" in text
    assert "suspect: 0.12 / 0.12 / 0.12, promised 1.5" in text
    assert "- **node-kill broke:** r-1 did not end" in text


def test_the_page_tells_how_often_each_was_done_measured_late_asked_and_what_was_noticed() -> None:
    torn, busy = (each for each in SCENARIOS if each.name in ("torn-stream", "busy-cpu"))
    late = [Measured(2.0, 6.3, 1.0, asked=2), Measured(0.1, None, 1.0, asked=1)]
    noted = [Measured(notes=[f"busy for {seconds} s"]) for seconds in (300, 20, 20)]
    rows = [summary(NODE_KILL, late), summary(busy, noted), summary(torn, [Measured()])]
    lines = page({"seed": 7}, rows).splitlines()
    killed, still, reset = (
        next(line for line in lines if line.startswith(f"| {name} |")).split("|")
        for name in ("node-kill", "busy-cpu", "torn-stream")
    )
    assert "- seed: 7" in lines
    assert killed[3].strip() == "2"
    assert killed[5].strip() == "moved: 6.30 / 6.30 / 6.30, promised 7.6 (1 measured)"
    assert [each.strip() for each in killed[7:11]] == ["1", "0", "0", "3"]
    # what promises nothing cannot be late
    assert [each.strip() for each in reset[7:11]] == ["", "0", "0", "0"]
    assert still[3].strip() == "3"
    assert "- busy-cpu: busy for 300 s; busy for 20 s (2 times)" in lines


def test_scenarios_are_named_once_and_say_what_they_do() -> None:
    assert len(set(NAMES)) == len(NAMES)
    assert all(each.text and set(each.shows) <= set(range(1, 26)) for each in SCENARIOS)


def test_the_page_of_the_docs_has_the_frame_of_today() -> None:
    frame = page({}, [])
    head, _, rest = frame.partition("## What was measured")
    tail = rest[rest.index("## Where each") :]
    kept = (ROOT / "docs" / "RELIABILITY.md").read_text()
    assert kept.startswith(head)
    assert kept.endswith(tail)


def shown(table: str, column: int) -> dict[int, set[str]]:
    """What the rows of a page name for each failure scenario, from a column on."""
    rows = re.findall(r"^\| (\d+) \|(.*)\|$", table, re.MULTILINE)
    name = r"`((?:test_)?[a-z0-9_-]+)(?:\.py)?`"
    return {int(n): set(re.findall(name, "".join(row.split("|")[column:]))) for n, row in rows}


def test_both_pages_name_the_same_and_it_is_there() -> None:
    here = shown(page({}, []).partition("## Where each")[2], 1)
    worlds = shown((ROOT / "docs" / "simulation.md").read_text(), 2)
    there = {file.stem for file in (ROOT / "tests").rglob("test_*.py")}
    assert set(here) == set(range(1, 26))
    assert here == worlds
    assert set().union(*here.values()) <= there | set(NAMES)
