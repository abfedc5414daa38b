"""A mesh as its user has it: `up`, two more nodes, plans, losses, and the way back to nothing.

The tests share one mesh and leave it as they found it: all three nodes online.
"""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Person, Terminal

ROOT = Path(__file__).resolve().parents[2]
GREENHOUSE = str(ROOT / "examples" / "greenhouse.iml.yaml")
POLICY = (ROOT / "examples" / "greenhouse.policy.toml").read_text()
WITH_FAKE = POLICY + '\n[modules]\nallow = ["fake", "filesystem", "iot", "os_exec"]\n'
TWELVE_MARKS = """\
protocol_version: "2.0"
plan_id: marks
description: Twelve effects that must happen once
execution_mode: parallel
actions:
""" + "".join(
    f"""\
  - id: m{number}
    module: fake
    action: act
    params: {{marker: marks.txt, delay_ms: 400}}
    target_node: {"pi-bed" if number % 2 else "pi-roof"}
    depends_on: [{f"m{number - 2}" if number > 1 else ""}]
"""
    for number in range(12)
)
ONE_LONG = """\
protocol_version: "2.0"
plan_id: long
description: One action of {seconds} seconds
actions:
  - {{id: wait, module: os_exec, action: run_command, params: {{command: [settle, "{seconds}"]}}, target_group: {group}{more}}}
"""
# what moves is decided by the effect alone
TO_MOVE = """\
protocol_version: "2.0"
plan_id: move
description: One of each effect that may be repeated, on each node
execution_mode: parallel
actions:
""" + "".join(
    f"""\
  - {{id: {name}, module: os_exec, action: run_command, params: {{command: [settle, "5"]}},
     target_group: garden, effect: {effect}}}
"""
    for name, effect in {
        "pure-1": "pure",
        "pure-2": "pure",
        "repeat-1": "idempotent",
        "repeat-2": "idempotent",
    }.items()
)
FAILING = """\
protocol_version: "2.0"
plan_id: failing
description: Reads what is not there
actions:
  - {id: read, module: filesystem, action: read_file, params: {path: nothing.txt}, target_group: office}
"""


class Mesh:
    """The terminals of one mesh."""

    def __init__(self, person: Person, up: Terminal, own: str) -> None:
        self.person = person
        self.up = up
        self.own = own
        self.nodes: dict[str, Terminal] = {}

    def run_node(self, name: str) -> None:
        """Open a terminal for `node run` and wait until the node is online."""
        self.nodes[name] = self.person.open("node", "run", name)
        self.person.until(lambda: self.person.liveness(name) == "online")

    def write(self, name: str, text: str) -> str:
        """A plan file."""
        (self.person.folder / name).write_text(text)
        return name


@pytest.fixture(scope="module")
def mesh(person: Person) -> Mesh:
    (person.folder / "with-fake.toml").write_text(WITH_FAKE)
    up = person.open("up", "--timing", "lan", "--policy", "with-fake.toml")
    own = up.expect(r"✔ node (\S+)")[1]
    up.expect("Ctrl-C stops")
    found = Mesh(person, up, own)
    for name in ("pi-bed", "pi-roof"):
        person.join(name, "--policy", "with-fake.toml")
        found.run_node(name)
    assert person.run("group", "set", "garden", "pi-bed", "pi-roof").returncode == 0
    assert person.run("group", "set", "office", own).returncode == 0
    return found


def test_the_greenhouse_ends_with_every_action_done(mesh: Mesh) -> None:
    watch = mesh.person.open("plan", "run", GREENHOUSE)
    watch.expect(r"wave 8/8")
    assert watch.wait(60) == 0
    assert re.search(r"✔ r-\S+ completed after .*16 completed", watch.text)
    run = re.search(r"(r-\d+-\w+) completed", watch.text)
    assert run is not None
    found = mesh.person.ask("run", "show", run[1])
    assert {action["state"] for action in found["actions"]} == {"completed"}
    nodes = {action["id"]: action["node"] for action in found["actions"]}
    assert nodes["open-valve"] == "pi-bed"
    assert nodes["report"] == mesh.own
    report = mesh.person.home / "nodes" / mesh.own / "files" / "report.txt"
    assert "dry probes: 2\nvalve while watering: 1\nvalve at the end: 0\n" in report.read_text()
    story = mesh.person.run("run", "story", run[1])
    assert "report on" in story.stdout


def test_the_plan_of_the_readme_leaves_its_note(mesh: Mesh) -> None:
    done = mesh.person.run("plan", "run", str(ROOT / "examples" / "hello.iml.yaml"))
    assert done.returncode == 0
    found = mesh.person.ask("run", "list", "--limit", "1")["runs"][0]
    assert (found["plan_id"], found["state"]) == ("hello", "completed")


def test_a_narrow_window_shows_the_same(mesh: Mesh) -> None:
    for columns in (30, 50):
        shown = mesh.person.open("node", "list", columns=columns)
        assert shown.wait() == 0
        rows = [line for line in shown.text.splitlines() if line.startswith(("NODE", "pi-"))]
        assert rows, shown.text
        assert all(len(line) <= columns for line in rows), shown.text
        assert "pi-roof" in shown.text


def test_ctrl_c_detaches_and_the_run_goes_on(mesh: Mesh) -> None:
    plan = mesh.write("long.yaml", ONE_LONG.format(seconds=3, group="garden", more=""))
    watch = mesh.person.open("plan", "run", plan)
    watch.expect("wait on pi-")
    watch.press("\x03")
    assert watch.wait() == 130
    found = re.search(r"detached; (r-\S+) keeps running\.", watch.text)
    assert found is not None
    assert f"imlmesh run cancel {found[1]}" in watch.text.replace("\r\n", " ")
    again = mesh.person.run("run", "watch", found[1])
    assert again.returncode == 0
    assert "wait on pi-" in again.stdout


def test_a_wait_that_ends_early_leaves_the_run(mesh: Mesh) -> None:
    plan = mesh.write("long.yaml", ONE_LONG.format(seconds=30, group="garden", more=""))
    done = mesh.person.run("plan", "run", plan, "--timeout", "1")
    assert done.returncode == 8
    run = mesh.person.ask("run", "list", "--limit", "1")["runs"][0]["run"]
    assert mesh.person.run("run", "cancel", run).returncode == 0
    assert mesh.person.run("run", "watch", run).returncode == 9


def test_exit_codes_tell_what_went_wrong(mesh: Mesh) -> None:
    failing = mesh.write("failing.yaml", FAILING)
    failed = mesh.person.run("plan", "run", failing)
    assert failed.returncode == 1
    assert "[driver.not_found]  failing.yaml:5" in failed.stdout
    nobody = FAILING.replace("office", "offices")
    unknown = mesh.person.run("plan", "run", mesh.write("nobody.yaml", nobody))
    assert unknown.returncode == 3
    assert "error[place.no_group]" in unknown.stderr
    assert "  --> nobody.yaml:5:" in unknown.stderr
    wrong = mesh.person.run("node", "show", "pi-bad")
    assert wrong.returncode == 3
    assert "did you mean 'pi-bed'?" in wrong.stderr
    assert mesh.person.run("plan", "run", failing, "--detach").returncode == 0


def test_a_second_up_is_refused(mesh: Mesh) -> None:
    second = mesh.person.run("up")
    assert second.returncode == 1
    assert "error[orchestrator.running]" in second.stderr


def test_status_is_quiet_when_all_is_well(mesh: Mesh) -> None:
    assert mesh.person.ask("status")["problems"] == []


def test_an_orchestrator_killed_in_the_middle_runs_nothing_twice(mesh: Mesh) -> None:
    person = mesh.person
    plan = mesh.write("marks.yaml", TWELVE_MARKS)
    run = person.run("plan", "run", plan, "--detach").stdout.strip()
    watch = person.open("run", "watch", run)
    watch.expect(r"wave 2/6 ✔")
    pid = int((person.home / "run" / "orchestrator.pid").read_text())
    epoch = person.ask("status")["epoch"]
    os.kill(pid, signal.SIGKILL)
    mesh.up.expect(r"orchestrator ended \(signal 9\)")
    assert watch.wait(60) == 0
    assert int((person.home / "run" / "orchestrator.pid").read_text()) != pid
    marks = []
    for node in ("pi-bed", "pi-roof"):
        marks += (person.folder / node / "files" / "marks.txt").read_text().split()
    assert sorted(mark.split("/")[1] for mark in marks) == sorted(f"m{n}" for n in range(12))
    assert person.ask("status")["epoch"] > epoch


def test_a_lost_node_is_suspect_then_lost_and_its_pure_and_idempotent_work_moves(
    mesh: Mesh,
) -> None:
    person = mesh.person
    plan = mesh.write("move.yaml", TO_MOVE)
    watch = person.open("plan", "run", plan)
    # each of the two nodes gets one of each
    victim = watch.expect(r"pure-1 on (pi-\w+)")[1]
    mesh.nodes[victim].kill()
    watch.expect(rf"{victim} is suspect")
    watch.expect(rf"{victim} is lost")
    assert watch.wait(60) == 0
    other = "pi-bed" if victim == "pi-roof" else "pi-roof"
    run = person.ask("run", "list", "--limit", "1")["runs"][0]["run"]
    found = person.ask("run", "show", run)["actions"]
    assert {action["state"] for action in found} == {"completed"}
    moved = [action["effect"] for action in found if action["attempt"] == 2]
    assert sorted(moved) == ["idempotent", "pure"]
    assert {action["node"] for action in found} == {other}
    listed = person.run("node", "list").stdout.splitlines()
    assert listed[1].split()[0] == victim
    assert "✖ lost" in listed[1]
    mesh.run_node(victim)


def test_a_lost_effect_asks_and_ends_with_the_answer(mesh: Mesh) -> None:
    person = mesh.person
    watch = person.open("plan", "run", str(ROOT / "examples" / "lost-once.iml.yaml"))
    watch.expect(r"feed on pi-roof")
    mesh.nodes["pi-roof"].kill()
    asked = watch.expect(r"answer: imlmesh approval answer (\S+) OPTION", 40)[1]
    listed = person.ask("approval", "list")["approvals"]
    assert [(a["approval"], a["kind"], a["options"]) for a in listed] == [
        (asked, "lost_effect", ["rerun", "done", "fail"])
    ]
    assert f"approval show {asked}" in person.run("status").stdout
    assert person.run("approval", "answer", asked, "done").returncode == 0
    assert watch.wait(30) == 0
    assert (person.home / "nodes" / mesh.own / "files" / "fed.txt").exists()
    assert person.run("approval", "answer", asked, "fail").returncode == 1
    mesh.run_node("pi-roof")


def test_ctrl_c_stops_the_mesh_and_leaves_nothing(mesh: Mesh) -> None:
    person = mesh.person
    for name in ("pi-bed", "pi-roof"):
        mesh.nodes[name].press("\x03")
        assert mesh.nodes[name].wait() == 0
    children = children_of(mesh.up.pid)
    assert len(children) == 3
    mesh.up.press("\x03")
    assert mesh.up.wait(40) == 0
    assert "stopped" in mesh.up.text
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]
    assert person.run("status").returncode == 5


def test_a_mesh_whose_own_node_is_no_more_starts_without_it(mesh: Mesh) -> None:
    person = mesh.person
    folder = person.home / "nodes" / mesh.own
    away = folder.with_name("away")
    folder.rename(away)
    up = person.open("up")
    up.expect("has no folder here any more and is not started")
    up.expect("Ctrl-C stops")
    assert person.run("node", "remove", mesh.own, "--reason", "lost", "--yes").returncode == 0
    up.press("\x03")
    assert up.wait(40) == 0
    away.rename(folder)
    up = person.open("up")
    up.expect("was removed and is not started")
    up.expect("Ctrl-C stops")
    assert person.run("status").returncode == 0
    up.press("\x03")
    assert up.wait(40) == 0


def children_of(pid: int) -> list[int]:
    """The processes whose parent is `pid`."""
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in listed.split()]
