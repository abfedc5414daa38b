"""Whose messages were too large for the broker, as its log says; it tells nobody else.

The one rule: counted, never repeated: a flood is one number for each client, in a file that is written
once in limits.BROKER_SAID_MS. Lines that a log of limited size lost before they were read are not
counted. Deliberately absent: what is made of it; the orchestrator reads the file.
"""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from imlmesh_protocol import limits
from imlmesh_protocol.wire.topics import PROBES
from imlmesh_runtime.files import write_private


class OversizeLog:
    """`client_of` knows the client of a line that says so, "" where that has no name; `told` becomes
    {client: how many}."""

    def __init__(self, log: Path, told: Path, client_of: Callable[[bytes], str | None]) -> None:
        self._log = log
        self._told = told
        self._client_of = client_of
        self._read = 0
        self._counts: Counter[str] = Counter()

    def begin(self) -> None:
        """Count from here on: what stands in the log now was said by an earlier broker. OSError."""
        self._read = self._log.stat().st_size if self._log.exists() else 0
        self._counts.clear()
        self._told.unlink(missing_ok=True)

    def look(self) -> None:
        """Read what was added and tell it; blocks. OSError."""
        clients = map(self._client_of, self._added())
        found = Counter(client for client in clients if client is not None)
        for probe in PROBES:
            del found[probe]  # it asks whether such messages are refused
        for client, count in found.items():
            is_kept = client in self._counts or len(self._counts) < limits.BROKER_SAID_CLIENTS
            self._counts[client if is_kept else ""] += count
        if found:
            write_private(self._told, json.dumps(self._counts).encode())

    def _added(self) -> list[bytes]:
        """Whole lines, limits.BROKER_SAID_BYTES of them at most; the others come at the next look."""
        if self._log.stat().st_size < self._read:
            self._read = 0  # it began anew
        with self._log.open("rb") as file:
            file.seek(self._read)
            data = file.read(limits.BROKER_SAID_BYTES)
        size = data.rfind(b"\n") + 1
        if not size and len(data) == limits.BROKER_SAID_BYTES:
            size = len(data)  # whatever it is, it is no line
        self._read += size
        return data[:size].splitlines()
