"""`python -m bench [--write] [NAME ...]`: measure all, or what is named.

`--write` puts the figures and the machine's facts into docs/BENCHMARKS.md.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import (
    agent,
    broker,
    core,
    driver,
    fairness,
    growth,
    ingest,
    lag,
    mesh,
    preview,
    rejoin,
    restart,
    revoke,
    spool,
    verify,
)
from bench.figures import line, machine
from bench.peers.page import HEADING

BENCHES: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "core": core.run,
    "fairness": fairness.run,
    "preview": preview.run,
    "cli": agent.run_cli,
    "agent": agent.run,
    "driver": driver.run,
    "verify": verify.run,
    "revoke": revoke.run,
    "lag": lag.run,
    "mesh": mesh.run,
    "broker": broker.run,
    "telemetry": ingest.run,
    "spool": spool.run,
    "growth": growth.run,
    "restart": restart.run,
    "rejoin": rejoin.run,
}
PAGE = Path(__file__).parents[1] / "docs" / "BENCHMARKS.md"
_HEAD = """\
# Benchmarks

Written by `make bench`; every row is one JSON line of its output. Everything runs on one machine: a broker with mTLS,
the orchestrator and the nodes share its cores; it is Mosquitto where nothing else is said. Durable means SQLite with
`synchronous=FULL` on both sides, and every message is signed. `raw_*` is the same client library on the same broker in
the same run, carrying 200 bytes there and back and nothing else; ratios travel between machines, absolute figures do not.

- **round_trip**: from handing a one-action run of `fake.noop` to the engine to the stored change that ends it, 1,000 one
  at a time, over each broker, in blocks of 25 that take turns with blocks of the raw pair; `ratio` is the median over
  blocks of the two medians, `p99_ratio` that of the two p99 of all; `commit_p50_ms` is one durable commit of one row in the same turns (a once action needs four
  of them, a pure one three); `http_p50_ms` is the same from `POST /v1/runs`.
- **throughput**: one plan of 10,000 independent actions; **dag_10x100**: ten waves of 100, each action behind the whole
  wave before it.
- **core**: CPU of the scheduler alone, plan and run, in layers of 100, median of three; `message_round_us` is what this machine takes, just
  before and after, to pack, unpack and validate one message of 13 fields with msgpack and pydantic, and `ratio` how many of
  these an action costs. Such a round took 5.0 us on the machine for which the project's limits in microseconds were set.
- **preview**: from a plan's text to the answer of `plan preview`, 500 actions with every kind of target over 200 nodes that
  each offer everything we ship; median of 5.
- **fairness**: fifty runs of 500 actions at once in virtual time: from ready to sent, and the scheduler's CPU beside one run.
- **loop_lag**: how late a 1 ms timer of the orchestrator's loop is while every commit takes 10 ms longer and 32 runs are
  under way.
- **broker**: the embedded broker and Mosquitto side by side, in turns: pairs as above with 256 under way, resident
  memory of the embedded one with 200 idle clients, seconds until 200 clients that come at once are subscribed; `crowded_`
  while another address holds all the half-open connections that it may.
- **driver**: guard, validation and claims of an action on its node, without the driver's own work: mean over calls of
  every kind of guard, and the dearest of them.
- **verify**: from the bytes of a delegate to the event for the node's core, all that `docs/PROTOCOL.md` asks of it, in
  turns with the signature of the same bytes alone (same library); `ratio` is the median over rounds. However many dispatches
  it holds, it is signed and verified once; what more of them cost is reading each and asking the policy.
- **revoke**: from the request to remove a node to the last message that came through, from it or to it, while both
  sides send every 2 ms and the node comes again whenever its connection ends; 100 nodes one after the other. `command_*` is
  until the request is answered, when the broker has applied it and the session is over.
- **telemetry_ingest**: from the first message to the last stored reading, 32 nodes with so many readings a message, in
  turns with a bare client that decodes and batch-inserts the same messages and verifies nothing; `verify_us` is one
  signature alone, `us_per_msg` all that ours spends on a message. The messages are made by the node's own `Readings`: one a
  second and node, of what it measured meanwhile, so `msgs_s` is also how many nodes of such a rate it takes. 50 readings a second
  are the most of a node in the long run, and 1,000 a message what one sends that was cut off.
- **spool_boot**: a node whose spool holds 100,000 readings in 2,000 rows, and whose journal 256 results: seconds from its start to
  the accepted birth, until the first reading was sent, which is after the last result was settled, and until all were.
- **growth**: bytes of lifecycle.db in use after 10,000 actions of `fake.noop`, per action, in runs of so many actions: as they
  are stored, and after the compaction of runs that ended 30 days ago (`docs/stores.md`).
- **restart**: kill -9 of an orchestrator whose run has 10,000 actions behind it and goes on, with so many more of runs that have
  ended; median of 5, and the slowest: seconds from the start of the next process until its API answers, and until an effect
  happens on a node that the killed one had not decided (each takes 50 ms).
- **rejoin**: 500 nodes in one process, each an agent with its own certificate and its own connection to Mosquitto, after kill -9
  of the broker or of the orchestrator, which start again at once: seconds until a node's next heartbeat is answered. `suspect` and
  `lost` count what nodes were called meanwhile, `api_*` is `GET /v1/nodes` of all of them. One process that does 500 TLS
  handshakes is most of it.
- **agent_idle**: resident memory of an idle node; seconds from its start to the accepted birth; `pins_child_mb` is the process
  of the driver beside it that a node has whose policy names pins.
"""


def page(results: list[dict[str, Any]]) -> str:
    """The whole of docs/BENCHMARKS.md."""
    parts = [_HEAD, "## The machine\n"]
    parts += [f"- {name}: {value}" for name, value in machine().items()]
    parts.append("\n## Figures\n")
    names = list(dict.fromkeys(result["bench"] for result in results))
    for name in names:
        rows = [result for result in results if result["bench"] == name]
        columns = [key for key in rows[0] if key != "bench"]
        parts.append(f"### {name}\n")
        parts.append(f"| {' | '.join(columns)} |")
        parts.append(f"|{'---|' * len(columns)}")
        parts += [f"| {' | '.join(str(row[key]) for key in columns)} |" for row in rows]
        parts.append("")
    return "\n".join(parts).rstrip() + "\n"


def main(argv: list[str]) -> int:
    write = "--write" in argv
    names = [name for name in argv if name != "--write"] or list(BENCHES)
    unknown = [name for name in names if name not in BENCHES]
    if unknown:
        print(f"no bench {', '.join(unknown)}; there are: {', '.join(BENCHES)}", file=sys.stderr)
        return 2
    line("machine", **machine())
    results = [result for name in names for result in BENCHES[name]()]
    if write:
        # what stands beside its peers was measured by another verb
        peers = "".join(PAGE.read_text(encoding="utf-8").partition(HEADING)[1:])
        PAGE.write_text(page(results) + (f"\n{peers}" if peers else ""), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
