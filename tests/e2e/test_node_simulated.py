"""A simulated node as its user sees it: the shipped plan waters a bed, and claims have one owner."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from imlmesh import Client

if TYPE_CHECKING:
    from conftest import Person

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
POLICY = str(EXAMPLES / "greenhouse.policy.toml")
#: the others would wait for the first, if they might
TWO_OWNERS = """
protocol_version: "2.0"
description: Two want the same port at once, and one lets go of all pins
execution_mode: parallel
actions:
  - id: listen
    module: iot
    action: receive_uart
    params: {timeout: 3.0}
    claims: ["gpio:17"]
    target_node: pi-bed
  - id: speak
    module: iot
    action: send_uart
    params: {port: /dev/ttyS0, data: read}
    target_node: pi-bed
    on_busy: fail
    on_error: continue
  - id: let_go
    module: iot
    action: cleanup
    target_node: pi-bed
    on_busy: fail
    on_error: continue
"""


@pytest.fixture(scope="module")
def mesh(person: Person) -> Person:
    """A mesh with the simulated node pi-bed."""
    up = person.open("up", "--timing", "lan", "--policy", POLICY)
    up.expect("Ctrl-C stops")
    person.join("pi-bed", "--policy", POLICY)
    node = person.open("node", "run", "pi-bed", "--simulate")
    node.expect("simulated node of")
    person.until(lambda: person.liveness("pi-bed") == "online")
    return person


def test_the_shipped_plan_waters_the_simulated_bed(mesh: Person) -> None:
    assert mesh.ask("node", "show", "pi-bed")["facts"]["simulated"] is True
    watching = mesh.open("event", "tail", "--kind", "source", "-o", "jsonl", columns=400)
    done = mesh.run("plan", "run", str(EXAMPLES / "watering.iml.yaml"), "--json")
    assert done.returncode == 0, done.stderr + done.stdout
    assert json.loads(done.stdout)["state"] == "completed"
    report = (mesh.folder / "pi-bed" / "files" / "watering.txt").read_text()
    first, _, soil = report.splitlines()
    assert first.endswith("(mock)")
    before, after = (float(word) for word in soil.split() if word.startswith("0."))
    assert after - before > 0.05

    measured = {
        *("iot.dht22.22.temperature", "iot.dht22.22.humidity", "iot.bmp280.76.temperature"),
        *("iot.bmp280.76.pressure_hpa", "iot.ds18b20.28-00000a11ce01.temperature"),
    }
    asked = ("telemetry", "query", "--node", "pi-bed", "--metric", "iot.*")
    mesh.until(lambda: measured == {each["metric"] for each in mesh.ask(*asked)["series"]})

    seen = watching.expect(r'\{[^{}]*"source": ?"gpio-4"[^{}]*\{[^{}]*\}[^{}]*\}')
    told = json.loads(seen[0])
    assert (told["values"]["edge"], told["values"]["pin"]) == ("rising", 4)


def test_a_second_owner_hears_who_holds_the_port_or_the_pin(mesh: Person) -> None:
    client = Client.connect(mesh.home)
    run = client.wait(client.post("runs", {"text": TWO_OWNERS})["run"], timeout_s=30)
    ends = {action["id"]: action for action in run["actions"]}
    assert ends["listen"]["state"] == "completed"
    for second in ("speak", "let_go"):
        error = ends[second]["error"]
        assert error["code"] == "driver.busy"
        assert f"{run['run']}/listen/pi-bed/1" in error["message"]
