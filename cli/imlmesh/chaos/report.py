"""The text of docs/RELIABILITY.md: measured figures in a frame that says what they mean.

The one rule: figures come from the trials and promises from `table`; the frame states no number that the
code does not know. Deliberately absent: opinions about other products.
"""

import os
import platform
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from imlmesh.chaos.figures import TIMES, spread_text
from imlmesh.chaos.table import BEAT_S, LOOK_S, OFFER_S, RESUMED_S, SCENARIOS, WILL_S
from imlmesh_broker import choose_broker
from imlmesh_protocol.limits import LAN, WAN, reroute_ms, stop_ms

_HEAD = f"""\
# Reliability: what is promised, and what was measured

Written by `imlmesh chaos --report FILE`; the text stands in `cli/imlmesh/chaos/report.py`. Everything below was done to real
processes: a broker, an orchestrator and four nodes with their drivers on one machine, each behind a TCP proxy that can fail
as a network does (`docs/chaos.md`). Effects are lines in files of the nodes, written by the driver before anything else, and
counted there. Times are those of a clock outside of the mesh, taken when a committed change can be read.

## What is promised

- **No accepted plan is lost.** Whatever process is killed, whenever: the run ends, or says which question to a person it
  waits for.
- **What must happen once does not happen twice.** Work whose effect is once or physical is never moved and never repeated
  without a person's word. When nobody can know whether it happened, it is *unknown* and somebody is asked; the node's own
  late result answers first if it comes.
- **Repeatable work moves.** Pure and idempotent work of a lost node is offered elsewhere within a second after 1.1 x its
  lease; the node itself has stopped it at 0.9 x, by its own clock.
- **Silence is judged with care.** A node is suspect at once when its connection breaks and lost only after its window. Nobody is
  called lost while the orchestrator does not hear itself, after it stood still, or while most nodes are silent together.
- **A node that is cut off goes on** with what may go on, keeps its results on disk, and reports them later.

| | LAN | WAN |
|---|---|---|
| lost after a silence of | {LAN.lost_ms / 1_000:g} s | {WAN.lost_ms / 1_000:g} s |
| the node stops what may move after | {stop_ms(LAN.lost_ms) / 1_000:g} s | {stop_ms(WAN.lost_ms) / 1_000:g} s |
| it is moved after | {reroute_ms(LAN.lost_ms) / 1_000:g} s | {reroute_ms(WAN.lost_ms) / 1_000:g} s |

Measured is the LAN timing; the rules of the WAN timing are the same.

## What is not promised

- **Exactly once.** Between an effect in the world and the node's note of it there is an instant in which power may fail. Then
  the effect is unknown and a person is asked; imlmesh does not guess.
- **A second orchestrator.** While it is away nothing new is placed; nodes finish what they have. It has to be started again:
  `imlmesh up` and systemd do that.
- **A disk that loses what it confirmed.** What counts is committed with `synchronous=FULL`; a disk that says so and does not
  write can lose it. A torn journal is noticed and its work is asked about.
- **Work that is lost with its node's disk** when it was done and not yet reported: it is asked about, not recovered.
- **Telemetry.** It is dropped first, oldest first, and counted.
- **The figures below on another machine.** They hold for the machine that is named; what is promised is what stands there as
  *promised*, and it is a promise about delays of the mesh, not about a machine that gives it no processor.
"""

_NOTES = f"""
*n* is how often it was done: of the random kills, how many there were. All that is random comes from the seed: with the command
above the same processes are broken after the same pauses, which is as far as real processes repeat.

*Detection* is the time from the fault to what stands in its column, *reroute* to the first dispatch of moved work,
*recovery* from the end of the fault (the process is started, the network passes, the disk has room) to what stands in its
column; of broker, orchestrator and random kills from the kill itself.

*Late* counts measurements above what their cell says is promised: suspect {WILL_S:g} s after a kill; lost {LOOK_S:g} s after the window
of the LAN timing; moved {OFFER_S:g} s after 1.1 x the lease; of a deaf node both {BEAT_S:g} s later, since its first beat that is not answered
is a new one; dispatching again {RESUMED_S:g} s after an orchestrator was killed. For the rest nothing is promised, and nothing is late.

*Lost* are effects of completed actions that no file shows, *doubled* those that files show too often, *asked* the actions that a
person was asked about, since nobody could know whether they happened. In no scenario may anybody be called lost but the node that
is broken; every run must end; an action may fail or be skipped only where its plan or the scenario wants that, or where a person was
asked about it or about one that it waited for. What does not hold would stand here as broken.
"""

_SHOWN = """
## Where each of the 25 failure scenarios is shown

By real processes; `docs/simulation.md` names the simulated worlds and golden transcripts of each.

| # | scenario | chaos | other tests with real processes |
|---|---|---|---|
"""
#: number -> (what it is, tests and benches beside chaos)
_ALL = {
    1: ("the broker restarts", ""),
    2: ("the broker comes back empty", ""),
    3: ("the orchestrator is killed", "test_restart"),
    4: ("a crash on either side of a commit", ""),
    5: ("repeats and reordering", ""),
    6: ("power cut of a node", "test_liveness_real"),
    7: ("a partition and a late result", ""),
    8: ("one way only", ""),
    9: ("the orchestrator alone, or most nodes silent", "test_liveness_real"),
    10: ("a flapping node", ""),
    11: ("a slow node, a straggler", ""),
    12: ("full CPU, suspend", "test_liveness_real"),
    13: ("a poison action", "test_poison"),
    14: ("bad nodes", ""),
    15: ("cordon, drain, quarantine, restart", "test_admission_mesh"),
    16: ("disk full on the orchestrator", "test_orchestrator_disk"),
    17: ("disk full on a node", "test_node_disk"),
    18: ("clocks that jump", "test_nodes_without_a_clock"),
    19: ("500 nodes come back at once", "test_rejoin"),
    20: (
        "strangers and replays",
        "test_broker_up, test_removed, test_join_endpoint, test_messages_to_a_node, "
        "test_messages_to_the_orchestrator, test_brokers",
    ),
    21: ("approvals", ""),
    22: ("triggers", ""),
    23: ("groups", ""),
    24: ("a wave fails and is undone", ""),
    25: ("a day away", "test_node_cut_off, test_permits"),
}


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "at": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "imlmesh": version("imlmesh"),
        "cpu": _cpu(),
        "cores": os.cpu_count() or 1,
        "load before": ", ".join(f"{load:.1f}" for load in os.getloadavg()),
        "system": platform.platform(),
        "python": platform.python_version(),
        "broker": choose_broker(os.environ).program,
    }


def page(facts: Mapping[str, Any], rows: list[dict[str, Any]]) -> str:
    """The whole page."""
    return "\n".join((_HEAD, *_measured(facts, rows))).rstrip("\n") + "\n" + _shown()


def _measured(facts: Mapping[str, Any], rows: list[dict[str, Any]]) -> Iterator[str]:
    yield "## What was measured\n"
    yield from (f"- {name}: {value}" for name, value in facts.items())
    yield "\nSeconds: p50 / p95 / largest.\n"
    yield "| scenario | what is done | n | detection | reroute | recovery | late | lost | doubled | asked |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    known = {each.name: each for each in SCENARIOS}
    for row in rows:
        scenario = known[row["scenario"]]
        if row["left_out"]:
            yield f"| {row['scenario']} | {scenario.text} | 0 | left out: {row['left_out']} | | | | | | |"
            continue
        named = {"detection": scenario.detects, "reroute": "moved", "recovery": scenario.recovers}
        times = " | ".join(_time(row, name, named[name]) for name in TIMES)
        promises = any(row[f"{name}_promised_ms"] for name in TIMES)
        late = str(row["late"]) if promises else ""
        sums = f"{late} | {row['lost']} | {row['doubled']} | {row['asked']}"
        yield f"| {row['scenario']} | {scenario.text} | {row['n']} | {times} | {sums} |"
    yield _NOTES
    for row in rows:
        if row["notes"]:
            yield f"- {row['scenario']}: {_counted(row['notes'])}"
    for row in rows:
        for text in row["broken"]:
            yield f"- **{row['scenario']} broke:** {text}"


def _time(row: Mapping[str, Any], name: str, what: str) -> str:
    spread, promised_ms = row[name], row[f"{name}_promised_ms"]
    if spread is None:
        return ""
    promised = f", promised {promised_ms / 1_000:g}" if promised_ms else ""
    measured = f" ({spread['n']} measured)" if spread["n"] != row["n"] else ""
    return f"{what}: {spread_text(spread)}{promised}{measured}"


def _counted(notes: list[str]) -> str:
    """Each once, with how often it was noted."""
    times = Counter(notes)
    return "; ".join(f"{note} ({n} times)" if n > 1 else note for note, n in times.items())


def _shown() -> str:
    lines = []
    for number, (what, others) in _ALL.items():
        ours = ", ".join(f"`{each.name}`" for each in SCENARIOS if number in each.shows)
        tests = ", ".join(f"`{name}`" for name in others.split(", ") if name)
        lines.append(f"| {number} | {what} | {ours} | {tests} |\n")
    return _SHOWN + "".join(lines)


def _cpu() -> str:
    try:
        rows = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        rows = []
    names = [row.split(":")[1].strip() for row in rows if row.startswith("model name")]
    return names[0] if names else platform.machine()
