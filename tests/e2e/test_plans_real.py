"""What plans promise about nodes, time and each other, on three real nodes.

The tests share one mesh and leave it as they found it: all nodes online. Each effect is a line in a
file of the node that had it.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from imlmesh import Client, Plan
from imlmesh_protocol.errors import MeshError

if TYPE_CHECKING:
    from conftest import Person, Terminal

NODES = ("pi-a", "pi-b", "pi-c")
POLICY = """\
profile = "local_worker"

[roots]
write = ["files"]

[modules]
allow = ["fake", "filesystem", "iot", "os_exec"]

[commands.settle]
argv0 = "/bin/sleep"
args = ["[0-9]"]

[pins]
factory = "mock"
allow = [4]
"""
ENDED_S = 30


class Mesh:
    """Three nodes in the group garden, and the Python face of their orchestrator."""

    def __init__(self, person: Person) -> None:
        self.person = person
        self.client = Client.connect(person.home)
        self.nodes: dict[str, Terminal] = {}

    def run_node(self, name: str) -> None:
        """Start a node and wait until it is online."""
        self.nodes[name] = self.person.open("node", "run", name)
        self.person.until(lambda: self.liveness(name) == "online")

    def liveness(self, name: str) -> str:
        listed = self.client.get("nodes")["nodes"]
        return str(next((n["liveness"] for n in listed if n["node"] == name), "unknown"))

    def run(self, plan: Plan) -> dict[str, Any]:
        """A run of a plan, when it has ended."""
        return self.end(self.start(plan))

    def start(self, plan: Plan, **more: Any) -> str:
        """The id of a run of a plan."""
        return str(self.client.post("runs", {"text": plan.to_json(), **more})["run"])

    def end(self, run: str) -> dict[str, Any]:
        """A run when it has ended."""
        found = self.client.wait(run, timeout_s=ENDED_S)
        assert found["ended_at_ms"] is not None, found
        return found

    def when(self, run: str, action: str, state: str) -> None:
        """Wait until an action is in a state."""
        self.person.until(lambda: states(self.client.get(f"runs/{run}"))[action] == state)

    def lines(self, node: str, file: str) -> list[str]:
        """The actions that left a line in a file of a node, in order."""
        text = (self.person.folder / node / "files" / file).read_text()
        return [line.split("/")[1] for line in text.split()]

    def question(self, run: str) -> dict[str, Any]:
        """The question that a run waits with, when it comes."""

        def asked() -> list[dict[str, Any]]:
            listed = self.client.get("approvals", state="pending")["approvals"]
            return [each for each in listed if each["run"] == run]

        found: dict[str, Any] = self.person.until(asked)[0]
        return found

    def story(self, run: str, kind: str) -> list[dict[str, Any]]:
        """What was decided in a run, of one kind."""
        entries = self.client.get(f"runs/{run}/story")["entries"]
        return [entry for entry in entries if entry["kind"] == kind]


def states(run: dict[str, Any]) -> dict[str, str]:
    return {action["id"]: action["state"] for action in run["actions"]}


def one(run: dict[str, Any], action: str = "do") -> dict[str, Any]:
    """An action of a run."""
    found: dict[str, Any] = next(each for each in run["actions"] if each["id"] == action)
    return found


def plan(name: str, **fields: Any) -> Plan:
    return Plan(name, description="One of the tests", **fields)


@pytest.fixture(scope="module")
def mesh(person: Person) -> Mesh:
    (person.folder / "policy.toml").write_text(POLICY)
    person.open("up", "--timing", "lan").expect("Ctrl-C stops")
    found = Mesh(person)
    for name in NODES:
        person.join(name, "--policy", "policy.toml")
        found.run_node(name)
    found.client.put("groups/garden", {"nodes": list(NODES)})
    return found


def counted(session: str, value: str, **memory: Any) -> Plan:
    found = plan("counted", session_id=session)
    return found.action("do", "fake.echo", {"value": value}, memory=memory)


def test_what_a_run_remembers_the_next_of_its_session_reads(mesh: Mesh) -> None:
    mesh.run(counted("one", "first", write_key="last"))
    reads = {"read_keys": ["last"]}
    found = mesh.run(counted("one", "after {{memory.last.value}}", **reads))
    assert one(found)["result"] == {"value": "after first"}
    other = mesh.run(counted("two", "{{memory.last}}", **reads))
    assert one(other)["error"]["code"] == "memory.not_found"


def test_a_nonce_twice_is_one_run_and_one_effect(mesh: Mesh) -> None:
    once = plan("once", nonce="only-once")
    once.action("do", "fake.act", {"marker": "nonce.txt"}, target_node="pi-a")
    first = mesh.start(once)
    assert mesh.start(once) == first
    mesh.end(first)
    assert mesh.start(once) == first
    assert mesh.lines("pi-a", "nonce.txt") == ["do"]
    other = plan("other", nonce="only-once").action("do", "fake.noop")
    with pytest.raises(MeshError) as caught:
        mesh.start(other)
    assert caught.value.code == "plan.nonce_reused"


def test_a_paused_run_tries_nothing_again(mesh: Mesh) -> None:
    flaky = plan("flaky").action(
        "do",
        "fake.act",
        {"fail_times": 1, "marker": "paused.txt"},
        target_node="pi-a",
        on_error="retry",
        retry={"delay_seconds": 0.5, "retry_on": []},
    )
    run = mesh.start(flaky)
    mesh.when(run, "do", "waiting")
    mesh.client.post(f"runs/{run}/pause")
    assert mesh.client.wait(run, timeout_s=1.2)["state"] == "paused"
    assert mesh.lines("pi-a", "paused.txt") == ["do"]
    mesh.client.post(f"runs/{run}/resume")
    assert mesh.end(run)["state"] == "completed"
    assert mesh.lines("pi-a", "paused.txt") == ["do", "do"]


def test_a_run_does_not_begin_before_its_time(mesh: Mesh) -> None:
    due = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=4)
    later = plan("later", not_before=due.isoformat()).action("do", "fake.noop")
    run = mesh.start(later)
    assert mesh.client.get(f"runs/{run}")["state"] == "pending"
    assert mesh.end(run)["state"] == "completed"
    (planned,) = mesh.story(run, "dispatch-planned")
    assert 0 <= planned["at_ms"] - due.timestamp() * 1000 < 2_000


def crowd(name: str, size: int) -> Plan:
    found = plan(name, execution_mode="parallel")
    for number in range(size):
        params = {"marker": "order.txt", "delay_ms": 10}
        found.action(f"{name}{number}", "fake.act", params, target_node="pi-b")
    return found


def test_who_has_priority_goes_first_when_a_node_is_full(mesh: Mesh) -> None:
    filling = mesh.start(crowd("fill", 280))
    low = mesh.start(crowd("low", 40), priority=-10)
    high = mesh.start(crowd("high", 40), priority=10)
    assert {mesh.end(run)["state"] for run in (filling, low, high)} == {"completed"}
    order = [name.rstrip("0123456789") for name in mesh.lines("pi-b", "order.txt")]
    last_high = len(order) - 1 - order[::-1].index("high")
    assert order[:last_high].count("low") <= 4
    assert len(order) == 360


def pressing(name: str, delay_ms: int, **more: Any) -> Plan:
    params = {"marker": "press.txt", "delay_ms": delay_ms}
    return plan(name).action(name, "fake.act", params, target_node="pi-c", claims=["press"], **more)


def test_a_claim_is_waited_for_or_fails_with_its_holder(mesh: Mesh) -> None:
    holder = mesh.start(pressing("holds", 2_000))
    mesh.when(holder, "holds", "running")
    patient = mesh.start(pressing("waits", 0))
    hasty = mesh.run(pressing("fails", 0, on_busy="fail"))
    fault = one(hasty, "fails")["error"]
    assert fault["code"] == "driver.busy"
    assert f"{holder}/holds" in fault["message"]
    assert mesh.end(patient)["state"] == "completed"
    assert mesh.lines("pi-c", "press.txt") == ["holds", "waits"]


def test_a_pin_gets_back_the_level_that_it_had(mesh: Mesh) -> None:
    def write(value: int) -> dict[str, Any]:
        return {"pin": 4, "value": value}

    mesh.run(plan("raise").action("do", "iot.digital_write", write(1), target_node="pi-a"))
    lowering = plan("lowering").action("do", "iot.digital_write", write(0), target_node="pi-a")
    lowering.action("look", "iot.digital_read", {"pin": 4}, after=["do"], target_node="pi-a")
    failing = {"on_error": "rollback", "after": ["look"]}
    lowering.action("breaks", "fake.act", {"fail_times": 9}, target_node="pi-b", **failing)
    failed = mesh.run(lowering)
    assert one(failed, "look")["result"]["value"] == 0
    assert (failed["state"], one(failed)["state"]) == ("failed", "rolled_back")
    read = plan("read").action("do", "iot.digital_read", {"pin": 4}, target_node="pi-a")
    assert one(mesh.run(read))["result"]["value"] == 1


def test_a_rolling_change_stops_at_its_failures(mesh: Mesh) -> None:
    wrong = {"marker": "rolling.txt", "fail_times": 9}
    batches = {"target_group": "garden", "target_mode": "rolling", "rolling": {"batch_size": 2}}
    run = mesh.run(plan("rolling").action("do", "fake.act", wrong, **batches))
    assert one(run)["error"]["code"] == "action.partial"
    assert [mesh.lines(name, "rolling.txt") for name in NODES[:2]] == [["do"], ["do"]]
    assert not (mesh.person.folder / "pi-c" / "files" / "rolling.txt").exists()


def test_followed_logs_have_no_gap(mesh: Mesh) -> None:
    # a node sends 200 lines a second: the last come when the run has ended
    size = 500
    talking = plan("talking").action("do", "fake.act", {"log_lines": size}, target_node="pi-a")
    run = mesh.start(talking)
    followed = mesh.person.run("run", "logs", run, "--follow").stdout.splitlines()
    assert [line.rpartition("line ")[2] for line in followed] == [str(n) for n in range(size)]


def test_of_answers_at_once_one_counts(mesh: Mesh) -> None:
    run = mesh.start(plan("asked").action("do", "fake.noop", requires_approval=True))
    asked = mesh.question(run)["approval"]

    def answer(option: str) -> str:
        client = Client.connect(mesh.person.home)
        try:
            return str(client.post(f"approvals/{asked}/answer", {"option": option})["option"])
        except MeshError as exc:
            return exc.code
        finally:
            client.close()

    with ThreadPoolExecutor(8) as persons:
        answers = list(persons.map(answer, ["approve", "deny"] * 4))
    assert answers.count("approval.closed") == 7
    (won,) = set(answers) - {"approval.closed"}
    ended = {"approve": "completed", "deny": "failed"}[won]
    assert mesh.end(run)["state"] == ended


def test_what_was_approved_for_other_nodes_is_asked_again(mesh: Mesh) -> None:
    def label(node: str, site: str | None) -> None:
        mesh.client.post(f"nodes/{node}/labels", {"labels": {"site": site}})

    label("pi-a", "shed")
    gated = {"target_selector": "site == 'shed'", "requires_approval": True}
    run = mesh.start(plan("moving").action("do", "fake.noop", **gated))
    first = mesh.question(run)["approval"]
    label("pi-a", None)
    label("pi-b", "shed")
    with pytest.raises(MeshError, match=r"approval\.superseded"):
        mesh.client.post(f"approvals/{first}/answer", {"option": "approve"})
    assert mesh.client.get(f"approvals/{first}")["state"] == "superseded"
    second = mesh.question(run)
    mesh.client.post(f"approvals/{second['approval']}/answer", {"option": "approve"})
    assert one(mesh.end(run))["node"] == "pi-b"
    label("pi-b", None)


def undone(delay_ms: int, marker: str) -> Plan:
    """`do` on pi-c, a failure on pi-a, then the undoing on pi-c."""
    params = {"marker": marker, "delay_ms": delay_ms}
    return (
        plan("undone")
        .action("do", "fake.echo", target_node="pi-c", rollback={"action": "undo"})
        .action("breaks", "filesystem.read_file", {"path": "no"}, after=["do"], on_error="rollback")
        .action("undo", "fake.act", params)
    )


def test_a_cancel_while_undoing_says_what_is_still_to_undo(mesh: Mesh) -> None:
    run = mesh.start(undone(20_000, "cancelled.txt"))
    mesh.person.until(lambda: mesh.story(run, "compensations-planned"))
    mesh.client.post(f"runs/{run}/cancel")
    found = mesh.end(run)
    assert (found["state"], found["compensation_pending"]) == ("cancelled", True)
    assert states(found)["do"] == "completed"


def test_an_undoing_that_was_cut_off_asks_and_goes_on(mesh: Mesh) -> None:
    run = mesh.start(undone(1_500, "cut-off.txt"))
    marked = mesh.person.folder / "pi-c" / "files" / "cut-off.txt"
    mesh.person.until(marked.exists)
    mesh.nodes["pi-c"].kill()
    mesh.run_node("pi-c")
    asked = mesh.question(run)
    assert (asked["kind"], asked["options"]) == ("compensation", ["rerun", "done", "fail"])
    mesh.client.post(f"approvals/{asked['approval']}/answer", {"option": "rerun"})
    found = mesh.end(run)
    assert (states(found)["do"], found["compensation_pending"]) == ("rolled_back", False)
    assert mesh.lines("pi-c", "cut-off.txt") == ["undo", "undo"]


def test_a_killed_node_leaves_a_quorum_and_a_fallback(mesh: Mesh) -> None:
    everywhere = {"target_group": "garden", "target_mode": "all", "quorum": 2}
    params = {"delay_ms": 2_000, "marker": "quorum.txt"}
    all_three = mesh.start(plan("quorum").action("do", "fake.act", params, **everywhere))
    sleep = {"command": ["settle", "3"]}
    moving = {"target_node": "pi-c", "fallback_nodes": ["pi-b"], "effect": "pure"}
    moved = mesh.start(plan("moved").action("do", "os_exec.run_command", sleep, **moving))
    mesh.when(moved, "do", "running")
    mesh.person.until(lambda: mesh.story(all_three, "dispatch-started")[2:])
    mesh.nodes["pi-c"].kill()
    found = mesh.end(all_three)
    assert (found["state"], sorted(one(found)["result"])) == ("completed", ["pi-a", "pi-b"])
    moved_run = mesh.end(moved)
    assert (moved_run["state"], one(moved_run)["node"]) == ("completed", "pi-b")
    passed_over = plan("passed-over").action("do", "fake.noop", **{**moving, "effect": "pure"})
    assert one(mesh.run(passed_over))["node"] == "pi-b"
    refused = mesh.run(plan("all").action("do", "fake.noop", **{**everywhere, "quorum": "all"}))
    assert one(refused)["error"]["code"] == "action.partial"
    mesh.run_node("pi-c")
