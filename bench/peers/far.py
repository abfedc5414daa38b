"""The far side of a peer: for each line of stdin, which names a measure, one JSON line of seconds.

The one rule: the end of stdin ends it, and with it all that the peer started. Loaded by the Python
of `.peers`: the standard library alone.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from bench.peers.measures import FLOOD, TRIPS, WAVES, WIDTH, Measure

#: longest wait for one result
WAIT_S = 30
_END_S = 10


class Peer(Protocol):
    version: str

    def flood(self, count: int) -> None:
        """So many trivial actions at once; back when every result is here."""


def serve(start: Callable[[], AbstractContextManager[Peer]]) -> None:
    """Start the peer, say its version, then answer until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    with start() as peer:
        peer.flood(1)
        print(json.dumps(peer.version), file=answers, flush=True)
        for line in sys.stdin:
            print(json.dumps(_measure(peer, Measure(line.strip()))), file=answers, flush=True)


def _measure(peer: Peer, measure: Measure) -> list[float]:
    match measure:
        case Measure.TRIPS:
            return [_seconds(peer, [1]) for _ in range(TRIPS)]
        case Measure.FLOOD:
            return [_seconds(peer, [FLOOD])]
        case Measure.WAVES:
            return [_seconds(peer, [WIDTH] * WAVES)]


def _seconds(peer: Peer, counts: Sequence[int]) -> float:
    began = time.perf_counter()
    for count in counts:
        peer.flood(count)
    return time.perf_counter() - began


@contextlib.contextmanager
def child(*command: str) -> Iterator[None]:
    """A process that ends with the block; it talks to stderr alone."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sys.stderr)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
