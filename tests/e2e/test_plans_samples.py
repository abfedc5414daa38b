"""The three plain plans of IML v2 run unchanged on a mesh that `imlmesh up` started.

The tests share the mesh of one node; each plan does what it says, files and all.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import Person

PLANS = Path(__file__).resolve().parents[1] / "data" / "plans"
ASK_FIRST = PLANS / "ask-first.iml.json"


class Mesh:
    """A mesh of this computer alone."""

    def __init__(self, person: Person, node: str) -> None:
        self.person = person
        self.files = person.home / "nodes" / node / "files"

    def submit(self, plan: Path) -> str:
        """The id of a run that was left alone."""
        done = self.person.run("plan", "run", str(plan), "--detach")
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def question(self, run: str) -> str:
        """The approval that a run asks for, when it comes."""

        def asked() -> list[str]:
            listed = self.person.ask("approval", "list")["approvals"]
            return [each["approval"] for each in listed if each["run"] == run]

        return str(self.person.until(asked)[0])

    def states(self, run: str) -> dict[str, str]:
        """The state of every action."""
        actions = self.person.ask("run", "show", run)["actions"]
        return {action["id"]: action["state"] for action in actions}

    def fault(self, run: str, action: str) -> str:
        """The code of what went wrong with one action."""
        actions = self.person.ask("run", "show", run)["actions"]
        return str(next(each["error"]["code"] for each in actions if each["id"] == action))


@pytest.fixture(scope="module")
def mesh(person: Person) -> Mesh:
    up = person.open("up", "--timing", "lan")
    node = up.expect(r"✔ node (\S+)")[1]
    up.expect("Ctrl-C stops")
    return Mesh(person, node)


@pytest.fixture
def log(mesh: Mesh) -> Path:
    """The file that the third plan appends to; not there yet."""
    found = mesh.files / "log.txt"
    found.unlink(missing_ok=True)
    return found


def test_the_first_plan_looks_at_its_file(mesh: Mesh) -> None:
    (mesh.files / "notes.txt").write_text("twelve bytes")
    run = mesh.submit(PLANS / "look.iml.json")
    assert mesh.person.run("run", "wait", run).returncode == 0
    (info,) = mesh.person.ask("run", "show", run)["actions"]
    assert (info["result"]["size_bytes"], info["result"]["type"]) == (12, "file")


def test_the_second_plan_copies_and_compares(mesh: Mesh) -> None:
    run = mesh.submit(PLANS / "copy-and-check.iml.json")
    assert mesh.person.run("run", "wait", run).returncode == 0
    assert set(mesh.states(run).values()) == {"completed"}
    actions = {each["id"]: each for each in mesh.person.ask("run", "show", run)["actions"]}
    sums = [actions[name]["result"]["checksum"] for name in ("sum-a", "sum-b")]
    assert sums[0] == sums[1]
    assert (mesh.files / "b.txt").read_text() == "hello\n"


def test_the_third_plan_appends_when_a_person_agrees(mesh: Mesh, log: Path) -> None:
    person = mesh.person
    run = mesh.submit(ASK_FIRST)
    asked = mesh.question(run)
    assert "Append to the log?" in person.run("approval", "show", asked).stdout
    assert not log.exists()
    assert person.run("approval", "approve", asked).returncode == 0
    assert person.run("run", "wait", run).returncode == 0
    assert mesh.states(run) == {"append": "completed", "note": "skipped", "read": "completed"}
    assert log.read_text() == "started\n"
    kept = person.ask("memory", "get", "last_append", "--session", "s-1")
    assert kept["value"]["bytes_appended"] == len("started\n")


def test_the_third_plan_leaves_the_log_when_a_person_refuses(mesh: Mesh, log: Path) -> None:
    run = mesh.submit(ASK_FIRST)
    assert mesh.person.run("approval", "deny", mesh.question(run)).returncode == 0
    assert mesh.person.run("run", "wait", run).returncode == 7
    assert mesh.states(run) == {"append": "failed", "note": "skipped", "read": "skipped"}
    assert mesh.fault(run, "append") == "approval.denied"
    assert not log.exists()


def test_the_third_plan_goes_without_its_line_when_nobody_answers(mesh: Mesh, log: Path) -> None:
    plan: dict[str, Any] = json.loads(ASK_FIRST.read_text())
    plan["actions"][0]["approval"]["timeout_seconds"] = 10
    sooner = mesh.person.folder / "sooner.iml.json"
    sooner.write_text(json.dumps(plan))
    run = mesh.submit(sooner)
    asked = mesh.question(run)
    assert mesh.person.run("run", "wait", run, "--timeout", "30s").returncode == 0
    assert set(mesh.states(run).values()) == {"skipped"}
    assert mesh.person.ask("approval", "show", asked)["state"] == "expired"
    assert not log.exists()


def test_the_third_plan_notes_what_it_undid(mesh: Mesh, log: Path) -> None:
    log.mkdir()
    run = mesh.submit(ASK_FIRST)
    mesh.person.run("approval", "approve", mesh.question(run))
    undoing = mesh.question(run)
    assert mesh.person.ask("approval", "show", undoing)["kind"] == "compensation"
    log.rmdir()
    assert mesh.person.run("approval", "answer", undoing, "rerun").returncode == 0
    assert mesh.person.run("run", "wait", run).returncode == 1
    assert mesh.states(run) == {"append": "rolled_back", "note": "completed", "read": "skipped"}
    assert log.read_text() == "undone\n"
