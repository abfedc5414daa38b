"""`python -m bench.peers [--write]`: ours beside Ray, Celery and Dask, a JSON line each.

`--write` puts the figures into docs/BENCHMARKS.md. A peer that cannot run here is a line with its
reason.
"""

import asyncio
import os
import sys
from typing import Any

from bench.field import field
from bench.figures import line, machine
from bench.peers import page
from bench.peers.install import CANDIDATES, Absent, Candidate, install
from bench.peers.measures import Measure
from bench.peers.near import Near
from bench.peers.ours import Ours
from bench.peers.turns import Taken, figures, ratios, take_turns

NODES = 2

Result = dict[str, Any]


def ready() -> tuple[list[Candidate], list[Result]]:
    """The peers that are installed now, and a line for each of the others."""
    candidates, lines = [], []
    for candidate in CANDIDATES:
        try:
            install(candidate)
            candidates.append(candidate)
        except Absent as exc:
            lines.append(line("peer", peer=candidate.name, reason=str(exc)))
    return candidates, lines


async def compare(candidates: list[Candidate]) -> list[Result]:
    lines, compared = [], []
    total: Taken = {measure: [] for measure in Measure}
    async with field() as place, place.mesh(NODES) as shell:
        ours = Ours(shell)
        for candidate in candidates:
            try:
                async with Near.start(candidate) as theirs:
                    mine, other = await take_turns(ours, theirs)
            except Absent as exc:
                lines.append(line("peer", peer=candidate.name, reason=str(exc)))
                continue
            lines.append(_peer(candidate.name, theirs.version, other, keeps=False))
            compared.append((candidate.name, ratios(mine, other)))
            for measure, rounds in mine.items():
                total[measure] += rounds
    if compared:
        lines.append(_peer("imlmesh", ours.version, total, keeps=True))
    return lines + [line("peer_ratio", peer=name, **found) for name, found in compared]


def _peer(name: str, version: str, taken: Taken, *, keeps: bool) -> Result:
    """`keeps`: durable, signed and fenced, which is what ours pays for."""
    promises = dict.fromkeys(("durable", "signed", "fenced"), keeps)
    return line("peer", peer=name, version=version, **figures(taken), **promises)


def main(argv: list[str]) -> int:
    load = round(os.getloadavg()[0], 2)
    line("machine", **machine(), load=load)
    candidates, lines = ready()
    lines += asyncio.run(compare(candidates))
    if "--write" in argv:
        page.write(lines, load)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
