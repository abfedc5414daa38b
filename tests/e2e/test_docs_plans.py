"""docs/plans.md as its reader tries it: every example runs on the mesh of the page, and ends as it says.

The tests share one mesh of three nodes.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from imlmesh import Client
from page_blocks import blocks

if TYPE_CHECKING:
    from conftest import Person

ROOT = Path(__file__).resolve().parents[2]
PLANS = ROOT / "examples" / "plans"
POLICY = str(ROOT / "examples" / "greenhouse.policy.toml")
#: the states of the actions of the examples in which not every one completes
ENDS = {
    "on-error": {
        "old-list": "skipped",
        "use-list": "skipped",
        "wishes": "failed",
        "note": "completed",
    },
    "rollback": {
        "enter": "rolled_back",
        "open-valve": "rolled_back",
        "check": "failed",
        "strike": "completed",
    },
}
FILES = {
    "pins.txt": "left 0\n",
    "probes.txt": "all [0,0]\n",
    "bed.txt": "pi-bed 0\n",
    "last.txt": "last value 0\n",
    "wishes-note.txt": "wishes: driver.not_found\n",
    "ready.txt": "ready\n",
}


@pytest.fixture(scope="module")
def office(person: Person) -> Path:
    """The files of this computer's node, in the mesh of the page."""
    up = person.open("up", "--timing", "lan", "--policy", POLICY)
    own = up.expect(r"✔ node (\S+)")[1]
    up.expect("Ctrl-C stops")
    for name in ("pi-bed", "pi-roof"):
        person.join(name, "--policy", POLICY)
        person.open("node", "run", name)
    for name in (own, "pi-bed", "pi-roof"):
        person.until(lambda name=name: person.liveness(name) == "online")
    assert person.run("group", "set", "garden", "pi-bed", "pi-roof").returncode == 0
    assert person.run("group", "set", "office", own).returncode == 0
    return person.home / "nodes" / own / "files"


def test_every_example_ends_as_the_page_says(person: Person, office: Path) -> None:
    runs = {}
    for path in sorted(PLANS.glob("*.iml.yaml")):
        done = person.run("plan", "run", str(path), "--detach")
        assert done.returncode == 0, f"{path.name}: {done.stderr}"
        runs[path.name.partition(".")[0]] = done.stdout.strip()
    client = Client.connect(person.home)
    (asked,) = person.until(lambda: client.get("approvals", state="pending")["approvals"])
    assert asked["run"] == runs["approval"]
    answered = person.run("approval", "answer", asked["approval"], "one minute")
    assert answered.returncode == 0
    assert person.run("run", "wait", *runs.values(), "--timeout", "30").returncode == 1
    for name, run in runs.items():
        found = client.get(f"runs/{run}")
        states = {action["id"]: action["state"] for action in found["actions"]}
        assert states == ENDS.get(name, dict.fromkeys(states, "completed")), name
        assert found["state"] == ("failed" if name == "rollback" else "completed")
    tried = client.get(f"runs/{runs['retry']}")["actions"]
    assert {action["id"]: action["attempt"] > 1 for action in tried}["wait-for-it"]
    assert {name: (office / name).read_text() for name in FILES} == FILES
    log = (person.folder / "pi-bed" / "files" / "log.txt").read_text()
    assert log == "valve opened\nvalve was not opened after all\n"
    for node in ("pi-bed", "pi-roof"):
        settings = person.folder / node / "files" / "settings.txt"
        assert settings.read_text() == f"written by {node}\n"
    again = person.run("plan", "run", str(PLANS / "time.iml.yaml"), "--detach")
    assert again.stdout.strip() == runs["time"]
    retried = person.run("run", "retry", runs["rollback"], "--failed", "--detach")
    assert "asks first: enter, open-valve" in retried.stderr
    assert person.run("run", "cancel", retried.stdout.strip()).returncode == 0


def test_the_first_plan_and_the_one_in_python_run(person: Person, office: Path) -> None:
    hello = person.run("plan", "run", str(ROOT / "examples" / "hello.iml.yaml"))
    assert hello.returncode == 0
    assert (office / "hello.txt").read_text().startswith("Hello from ")
    (written,) = (b for b in blocks(ROOT / "docs" / "plans.md") if b.language == "python")
    done = subprocess.run(
        [sys.executable, "-c", written.text],
        env=person.env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[1] == "completed"
    assert (office / "pin.txt").read_text() == "0\n"


def test_memory_and_preview_answer_as_the_page_says(person: Person, office: Path) -> None:
    session = ("--session", "garden-1")
    value = person.run("memory", "set", "last_probe", '{"value": 1}', *session)
    assert value.returncode == 0, value.stderr
    assert person.ask("memory", "get", "last_probe", *session)["value"] == {"value": 1}
    assert person.run("memory", "delete", "last_probe", *session).returncode == 0
    shown = person.ask("plan", "preview", str(PLANS / "rollback.iml.yaml"))
    assert len(shown["waves"]) == 3
    assert [row["action"] for row in shown["compensations"]] == ["strike"]
    refused = person.run("plan", "run", str(PLANS / "order.iml.yaml"), "--expect", "8c1f02d4a7be")
    assert refused.returncode == 3
    assert "error[plan.fingerprint]" in refused.stderr
