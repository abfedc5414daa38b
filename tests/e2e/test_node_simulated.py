"""A simulated node as its user sees it: the shipped plan waters a bed, and the probe says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conftest import Person

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
POLICY = str(EXAMPLES / "greenhouse.policy.toml")


def test_the_shipped_plan_waters_the_simulated_bed(person: Person) -> None:
    up = person.open("up", "--timing", "lan", "--policy", POLICY)
    up.expect("Ctrl-C stops")
    assert person.run("node", "provision", "pi-bed", "--policy", POLICY).returncode == 0
    node = person.open("node", "run", "pi-bed", "--simulate")
    node.expect("simulated node of")
    person.until(lambda: person.liveness("pi-bed") == "online")
    assert person.ask("node", "show", "pi-bed")["facts"]["simulated"] is True

    watching = person.open("event", "tail", "--kind", "source", "-o", "jsonl", columns=400)
    done = person.run("plan", "run", str(EXAMPLES / "watering.iml.yaml"), "--json")
    assert done.returncode == 0, done.stderr + done.stdout
    assert json.loads(done.stdout)["state"] == "completed"
    report = (person.folder / "pi-bed" / "files" / "watering.txt").read_text()
    first, _, soil = report.splitlines()
    assert first.endswith("(mock)")
    values = [float(word) for word in soil.split() if word.startswith("0.")]
    assert values[1] - values[0] > 0.05

    seen = watching.expect(r'\{[^{}]*"source": ?"gpio-4"[^{}]*\{[^{}]*\}[^{}]*\}')
    told = json.loads(seen[0])
    assert (told["values"]["edge"], told["values"]["pin"]) == ("rising", 4)
