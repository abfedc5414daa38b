"""The last section of docs/BENCHMARKS.md: ours beside its peers."""

from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "docs" / "BENCHMARKS.md"
HEADING = "## Beside its peers"
_HEAD = f"""\
{HEADING}

Written by `python -m bench.peers --write`; `make bench-peers` prints the same as JSON lines. Ray, Celery (with a Redis
of its own) and Dask run one after the other, each in turns with ours, two processes that run actions on either side,
all on loopback; who waits for its turn keeps its heartbeats. The action does nothing, so this is what a dispatch costs,
and nothing else. Ours is handed over in the orchestrator's process (through HTTP it takes what `http_p50_ms` says above)
and runs in the node's own loop; the action of a peer runs in a process of its pool.

- **p50_ms**: one action and its result, one at a time.
- **actions_s**: 2,000 independent actions at once; ours is one plan.
- **dag_ms**: ten waves of 100. Ours gets the whole graph at once, as a plan; the client of a peer waits for each wave and
  sends the next, which is the quickest way that we found.
- **peer_ratio**: how many times as quick ours is, as the median over rounds; below 1 the peer is quicker.

**They do less for it.** As they run here, which is close to how they come:

| | ours | Ray | Celery | Dask |
|---|---|---|---|---|
| durable: a result survives the loss of every process | yes, SQLite with `synchronous=FULL` on both sides | no, in memory | no, Redis in memory; with its append-only file the queue can be kept | no, in memory |
| signed: each message proves who sent it, over mTLS | yes | no; TLS can be switched on | no; a signing serializer and TLS can be switched on | no; TLS can be switched on |
| fenced: what was cut off ends before it is run elsewhere | yes, by leases and epochs | no, it may run twice | no, it may run twice when acknowledged late, or never when early | no, it may run twice |

They also do more elsewhere: Ray and Dask keep results in memory across machines and move them between actions, and
Celery speaks to many brokers. Their settings are the quickest that we found: `worker-saturation` at `inf` for Dask, 64
actions fetched ahead for Celery, results awaited in the order of their sending.
"""
_LOAD = """\
The machine's load average was {load} before it began. What others do on it costs a peer of many processes more than ours:
the figures are worth little when that is above 0.5 or so.
"""


def write(results: list[dict[str, Any]], load: float) -> None:
    """Put the section in place of the one that is there; it is the last of the page.

    `load`: of the machine before it began.
    """
    before = PAGE.read_text(encoding="utf-8").partition(HEADING)[0].rstrip()
    PAGE.write_text(f"{before}\n\n{section(results, load)}", encoding="utf-8")


def section(results: list[dict[str, Any]], load: float) -> str:
    parts = [_HEAD, _LOAD.format(load=load)]
    for name in dict.fromkeys(result["bench"] for result in results):
        rows = [result for result in results if result["bench"] == name]
        columns = [key for key in dict.fromkeys(k for row in rows for k in row) if key != "bench"]
        parts.append(f"### {name}\n")
        parts.append(f"| {' | '.join(columns)} |")
        parts.append(f"|{'---|' * len(columns)}")
        parts += [f"| {' | '.join(str(row.get(key, '')) for key in columns)} |" for row in rows]
        parts.append("")
    return "\n".join(parts).rstrip() + "\n"
