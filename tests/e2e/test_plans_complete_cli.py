"""Everything a plan promises, as its user meets it: preview, gates, retries, undoing, pause, memory.

The tests share one mesh of three nodes.
"""

from __future__ import annotations

import json
import re
import termios
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import cli_records
from imlmesh import Client

if TYPE_CHECKING:
    from conftest import Person, Terminal

POLICY = """\
profile = "local_worker"

[roots]
write = ["files"]

[modules]
allow = ["fake", "filesystem"]
"""
HEAD = 'protocol_version: "2.0"\nplan_id: {name}\ndescription: One of the tests\nactions:\n'
GATE = "  - {id: valve, module: fake, action: noop, requires_approval: true, approval: {message: Open it}}\n"
BUSY = """\
  - {id: busy, module: fake, action: act, params: {delay_ms: 2500, log_lines: 3}, target_node: pi-bed}
  - {id: after, module: fake, action: act, params: {log_lines: 2}, depends_on: [busy], target_node: pi-bed}
"""
FLAKY = """\
  - id: flaky
    module: fake
    action: act
    params: {fail_times: 2, code: driver.timeout}
    target_node: pi-bed
    on_error: retry
    retry: {max_attempts: 3, delay_seconds: 0.2}
"""
READING = """\
  - {id: note, module: filesystem, action: append_file, params: {path: note.txt, content: seen}, target_node: pi-bed}
  - {id: read, module: filesystem, action: read_file, params: {path: later.txt}, depends_on: [note], target_node: pi-bed}
  - {id: end, module: fake, action: noop, depends_on: [read]}
"""
UNDONE = """\
  - id: open
    module: filesystem
    action: append_file
    params: {path: undo.txt, content: opened}
    target_group: garden
    target_mode: all
    rollback: {action: close}
  - {id: close, module: filesystem, action: append_file, params: {path: undo.txt, content: closed}}
  - {id: fail, module: filesystem, action: read_file, params: {path: nothing.txt}, depends_on: [open], on_error: rollback}
"""
REMEMBERED = """\
  - id: count
    module: fake
    action: echo
    params: {value: "{{memory.limit}}"}
    memory: {read_keys: [limit], write_key: seen}
"""
CLOCK = r"\d\d:\d\d:\d\d  "


class Mesh:
    """One mesh with pi-bed and pi-roof, in the group garden."""

    def __init__(self, person: Person) -> None:
        self.person = person
        self.client = Client.connect(person.home)

    def plan(self, name: str, actions: str) -> str:
        """A plan file of these actions."""
        file = f"{name}.iml.yaml"
        (self.person.folder / file).write_text(HEAD.format(name=name) + actions)
        return file

    def submit(self, name: str, actions: str, *flags: str) -> str:
        """The id of a run that was submitted and left alone."""
        done = self.person.run("plan", "run", self.plan(name, actions), "--detach", *flags)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def state(self, run: str, action: str) -> str:
        """The state of one action."""
        actions = self.client.get(f"runs/{run}")["actions"]
        return str(next(one["state"] for one in actions if one["id"] == action))

    def question(self, run: str) -> dict[str, Any]:
        """The first question of a run, when it comes."""

        def asked() -> Any:
            listed = self.client.get("approvals", state="pending")["approvals"]
            return next((each for each in listed if each["run"] == run), None)

        found: dict[str, Any] = self.person.until(asked)
        return found


@pytest.fixture(scope="module")
def mesh(person: Person) -> Mesh:
    (person.folder / "policy.toml").write_text(POLICY)
    own = POLICY.replace('"filesystem"', '"filesystem", "os_exec"')
    (person.folder / "own.toml").write_text(own)
    up = person.open("up", "--timing", "lan", "--policy", "own.toml")
    up.expect("Ctrl-C stops")
    for name in ("pi-bed", "pi-roof"):
        person.join(name, "--policy", "policy.toml")
        person.open("node", "run", name)
    for name in ("pi-bed", "pi-roof"):
        person.until(lambda name=name: person.liveness(name) == "online")
    assert person.run("group", "set", "garden", "pi-bed", "pi-roof").returncode == 0
    return Mesh(person)


def keys_are_as_before(terminal: Terminal) -> bool:
    """Whether the terminal echoes and gathers lines again."""
    flags = termios.tcgetattr(terminal._terminal)[3]
    return bool(flags & termios.ECHO and flags & termios.ICANON)


def test_what_was_previewed_is_what_runs(mesh: Mesh) -> None:
    person = mesh.person
    everywhere = "  - {id: look, module: fake, action: echo, params: {value: 1}, target_group: two, target_mode: all}\n"
    file = mesh.plan("looked", everywhere)
    assert person.run("group", "set", "two", "pi-bed", "pi-roof").returncode == 0
    shown = person.run("plan", "preview", file)
    assert shown.returncode == 0
    assert "all: pi-bed, pi-roof" in shown.stdout
    expect = re.search(r"--expect (\w{12})", shown.stderr)
    assert expect is not None
    assert person.run("plan", "run", file, "--expect", expect[1]).returncode == 0
    assert person.run("plan", "preview", file, "--detailed-exitcode").returncode == 0
    assert person.run("group", "set", "two", "pi-bed").returncode == 0
    refused = person.run("plan", "run", file, "--expect", expect[1])
    assert refused.returncode == 3
    assert "error[plan.fingerprint]" in refused.stderr
    mesh.plan("looked", everywhere.replace("value: 1", "value: 2"))
    changed = person.run("plan", "preview", file, "--detailed-exitcode")
    assert changed.returncode == 10
    assert "look.params.value  1 → 2" in changed.stdout


def test_a_plan_that_nobody_can_run_says_who_and_why(mesh: Mesh) -> None:
    nobody = "  - {id: look, module: os_exec, action: get_system_info, target_group: garden}\n"
    shown = mesh.person.run("plan", "preview", mesh.plan("nobody", nobody))
    assert shown.returncode == 4
    assert "left out of look:  pi-bed module.unknown  ·  pi-roof module.unknown" in shown.stdout
    assert "error[place.no_node]" in shown.stderr


def test_a_gate_is_approved_with_a_key(mesh: Mesh) -> None:
    watch = mesh.person.open("plan", "run", mesh.plan("gate", GATE))
    asked = watch.expect(r"\[a\]pprove or \[d\]eny (a-\d+)")[1]
    watch.press("a")
    assert watch.wait() == 0
    assert keys_are_as_before(watch)
    answered = mesh.person.ask("approval", "show", asked)
    assert (answered["state"], answered["option"]) == ("approved", "approve")
    late = mesh.person.run("approval", "deny", asked)
    assert late.returncode == 1
    assert "error[approval.closed]" in late.stderr


def test_a_gate_is_denied_with_a_key(mesh: Mesh) -> None:
    watch = mesh.person.open("plan", "run", mesh.plan("gate", GATE))
    watch.expect(r"\[d\]eny")
    watch.press("d")
    assert watch.wait() == 7
    assert "[approval.denied]  gate.iml.yaml:5" in watch.text


def test_keys_show_log_lines_and_detach(mesh: Mesh) -> None:
    watch = mesh.person.open("plan", "run", mesh.plan("busy", BUSY))
    watch.expect(r"\[l\]ogs on")
    watch.press("l")
    watch.expect(r"\[l\]ogs off")
    watch.expect(r"after@pi-bed line 1")
    again = mesh.person.open("plan", "run", mesh.plan("busy", BUSY))
    again.expect(r"\[q\] detach")
    again.press("q")
    assert again.wait() == 130
    assert keys_are_as_before(again)
    run = re.search(r"detached; (r-\S+) keeps running", again.text)
    assert run is not None
    assert mesh.person.run("run", "wait", run[1], "--timeout", "1m").returncode == 0


def test_a_pipe_gets_one_line_with_its_time_for_each_event(mesh: Mesh) -> None:
    run = mesh.submit("flaky", FLAKY)
    watched = mesh.person.run("run", "watch", run)
    assert watched.returncode == 0
    *events, end = watched.stdout.splitlines()
    assert all(re.match(CLOCK, line) for line in events)
    assert len([line for line in events if "is tried again in" in line]) == 2
    assert end.startswith(f"✔ {run} completed")


def test_followed_logs_have_every_line_once(mesh: Mesh) -> None:
    run = mesh.submit("busy", BUSY)
    mesh.person.until(lambda: mesh.client.get(f"runs/{run}/logs")["lines"])
    followed = mesh.person.run("run", "logs", run, "--follow")
    kept = mesh.person.run("run", "logs", run)
    assert followed.stdout == kept.stdout
    assert len(followed.stdout.splitlines()) == 5
    only = mesh.person.run("run", "logs", run, "after").stdout.splitlines()
    assert len(only) == 2


def test_a_retry_keeps_what_completed(mesh: Mesh) -> None:
    person = mesh.person
    failed = person.run("plan", "run", mesh.plan("reading", READING))
    assert failed.returncode == 1
    assert "read on pi-bed" in failed.stdout
    again = re.search(r"retry only this: imlmesh run retry (\S+) --failed", failed.stdout)
    assert again is not None
    files = person.folder / "pi-bed" / "files"
    (files / "later.txt").write_text("here now")
    retried = person.run("run", "retry", again[1], "--failed")
    assert retried.returncode == 0, retried.stdout + retried.stderr
    assert "kept: note" in retried.stderr
    assert (files / "note.txt").read_text().split() == ["seen"]
    new = person.ask("run", "list", "--limit", "1")["runs"][0]
    assert new["of"] == again[1]
    assert person.run("run", "retry", new["run"], "--detach").returncode == 0


def test_a_retry_asks_before_it_repeats_an_effect(mesh: Mesh) -> None:
    person = mesh.person
    once = (
        "  - {id: feed, module: fake, action: act, params: {fail_times: 9}, target_node: pi-roof}\n"
    )
    run = mesh.submit("feeding", once)
    assert person.run("run", "wait", run).returncode == 1
    retried = person.run("run", "retry", run, "--detach")
    assert "asks first: feed" in retried.stderr
    new = retried.stdout.strip()
    asked = mesh.question(new)
    assert "pi-roof" in asked["message"]
    assert person.run("approval", "deny", asked["approval"]).returncode == 0
    assert person.run("run", "wait", new).returncode == 7
    refused = person.run("run", "retry", mesh.submit("gate", GATE))
    assert refused.returncode == 1
    assert "error[run.not_ended]" in refused.stderr


def test_what_was_done_is_undone_on_its_nodes(mesh: Mesh) -> None:
    failed = mesh.person.run("plan", "run", mesh.plan("undone", UNDONE))
    assert failed.returncode == 1
    assert "[driver.not_found]  undone.iml.yaml:13" in failed.stdout
    for name in ("pi-bed", "pi-roof"):
        told = (mesh.person.folder / name / "files" / "undo.txt").read_text().split()
        assert told == ["opened", "closed"]
    run = mesh.person.ask("run", "list", "--limit", "1")["runs"][0]["run"]
    shown = mesh.person.run("run", "show", run).stdout
    assert "undo ✔ 2/2" in shown
    assert shown.count("undoing it") == 2


def test_a_paused_run_starts_nothing_new(mesh: Mesh) -> None:
    person = mesh.person
    run = mesh.submit("busy", BUSY.replace("2500", "6000"), "--priority", "5")
    person.until(lambda: mesh.state(run, "busy") == "running")
    assert person.run("run", "pause", run).stdout == f"{run} paused\n"
    person.until(lambda: mesh.state(run, "busy") == "completed")
    waited = person.run("run", "wait", run, "--timeout", "500ms")
    assert waited.returncode == 8
    found = person.ask("run", "show", run)
    assert (found["state"], found["priority"]) == ("paused", 5)
    assert mesh.state(run, "after") == "pending"
    assert person.run("run", "resume", run).returncode == 0
    assert person.run("run", "wait", run).returncode == 0
    assert person.run("run", "pause", run).returncode == 1


def test_memory_goes_in_and_out_of_plans(mesh: Mesh) -> None:
    person = mesh.person
    assert person.run("memory", "set", "limit", "[0.4, 1]").returncode == 0
    assert person.run("plan", "run", mesh.plan("memory", REMEMBERED)).returncode == 0
    assert person.ask("memory", "get", "seen")["value"] == {"value": [0.4, 1]}
    assert person.run("memory", "delete", "limit").returncode == 0
    failed = person.run("plan", "run", mesh.plan("memory", REMEMBERED))
    assert failed.returncode == 1
    assert "[memory.not_found]" in failed.stdout


def test_one_action_is_called(mesh: Mesh) -> None:
    person = mesh.person
    called = person.run("action", "call", "fake.echo", 'value={"a": 1}', "--node", "pi-roof")
    assert (called.returncode, called.stdout) == (0, 'value  {"a": 1}\n')
    wrong = person.run("action", "call", "fake.echo", "walue=1")
    assert wrong.returncode == 3
    assert "error[action.params]" in wrong.stderr
    assert "-->" not in wrong.stderr
    offered = person.ask("action", "show", "fake.echo")
    assert {"pi-bed", "pi-roof"} <= set(offered["nodes"])


def test_answers_are_as_the_tests_of_the_command_line_take_them(mesh: Mesh) -> None:
    run = mesh.submit("gate", GATE)
    asked = mesh.question(run)
    shown = mesh.person.ask("run", "show", run)
    assert shown.keys() == cli_records.run([cli_records.action()]).keys()
    assert shown["actions"][0].keys() == cli_records.action().keys()
    question = mesh.person.ask("approval", "show", asked["approval"])
    assert question.keys() == cli_records.approval().keys()
    assert mesh.person.run("run", "cancel", run).returncode == 0


def test_a_run_is_exported_whole(mesh: Mesh) -> None:
    run = mesh.submit("busy", BUSY)
    assert mesh.person.run("run", "wait", run).returncode == 0
    out = mesh.person.folder / "run.json"
    assert mesh.person.run("run", "export", run, "--out", str(out)).returncode == 0
    found = json.loads(Path(out).read_text())
    assert found["run"]["run"] == run
    assert [action["id"] for action in found["plan"]["actions"]] == ["busy", "after"]
    assert found["story"][-1]["kind"] == "run-ended"
    assert len(found["logs"]["lines"]) == 5
