"""`plan preview` in process: 500 actions over 200 nodes, from the text to the answer."""

import json
import statistics
import time
from importlib.resources import files

from bench.figures import line, ms
from imlmesh_orchestrator.core.apply import apply
from imlmesh_orchestrator.core.changes import NodeDescribed
from imlmesh_orchestrator.core.state import State
from imlmesh_orchestrator.fingerprint import basis_of
from imlmesh_orchestrator.preview import make_preview
from imlmesh_orchestrator.submission import check, snapshot
from imlmesh_protocol.manifest import Manifest, manifest_from_wire
from imlmesh_protocol.states import Liveness

ACTIONS = 500
NODES = 200
TURNS = 5
WIDTH = 50


def shipped() -> Manifest:
    """Everything that imlmesh ships, as a node with all extras would offer it."""
    modules: dict[str, object] = {}
    for file in files("imlmesh_drivers").joinpath("manifests").iterdir():
        if file.name.endswith(".json"):
            modules |= json.loads(file.read_text(encoding="utf-8"))["modules"]
    return manifest_from_wire({"modules": modules})


def fleet() -> State:
    """Each node with a manifest of its own, as births bring them; every tenth is away."""
    state = State()
    for number in range(NODES):
        name = f"n{number:03}"
        facts = {"cpu": 1 + number % 4, "os": "linux"}
        who = (name, name, 1, 1, shipped(), facts, "local_worker", 2_000, 6_000)
        apply(state, NodeDescribed(0, "", *who))
        state.nodes[name].liveness = Liveness.LOST if number % 10 == 0 else Liveness.ONLINE
    for number in range(10):
        state.groups[f"g{number}"] = tuple(f"n{each:03}" for each in range(number, NODES, 10))
    return state


def plan() -> str:
    """Waves of 50 with every kind of target."""
    targets: tuple[dict[str, object], ...] = (
        {},
        {"target_group": "g1"},
        {"target_selector": "cpu >= 2"},
        {"target_node": "n007"},
        {"target_group": "g2", "target_mode": "all", "quorum": 10},
    )
    actions = []
    for number in range(ACTIONS):
        wave = number // WIDTH
        actions.append(
            {
                "id": f"a{number}",
                "module": "filesystem",
                "action": "read_file",
                "params": {"path": f"{number}.txt"},
                "depends_on": [f"a{(wave - 1) * WIDTH + number % WIDTH}"] if wave else [],
                **targets[number % len(targets)],
            }
        )
    head = {"protocol_version": "2.0", "plan_id": "big", "description": "bench"}
    return json.dumps({**head, "execution_mode": "parallel", "actions": actions})


def measure(text: str, state: State) -> float:
    """Seconds of one preview."""
    began = time.perf_counter()
    checked = check(text, None, snapshot(state), ACTIONS)
    assert checked.outlook is not None
    fingerprint = basis_of(checked.outlook).fingerprint
    found = make_preview(checked, checked.outlook, fingerprint, None)
    took = time.perf_counter() - began
    if not found["placeable"] or found["errors"]:
        raise RuntimeError(f"the plan cannot be placed: {found['errors']}")
    return took


def run() -> list[dict[str, object]]:
    text, state = plan(), fleet()
    took = [measure(text, state) for _ in range(TURNS)]
    return [line("preview", actions=ACTIONS, nodes=NODES, ms=ms(statistics.median(took)))]
