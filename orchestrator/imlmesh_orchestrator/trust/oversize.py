"""Messages that were too large for the broker: they reach nobody, but whoever runs it counts them.

The one rule: shown and counted as what it is, the broker's word: it is no evidence against a node.
Deliberately absent: how the broker knows (`imlmesh_broker.oversize`).
"""

import asyncio
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from imlmesh_protocol import limits
from imlmesh_runtime.background import Background
from imlmesh_runtime.files import read_file

log = logging.getLogger(__name__)


class OversizeTold:
    """`tell` hears (client, how many more, how many so far); `file` is broker/oversize.json."""

    def __init__(self, file: Path, tell: Callable[[str, int, int], None]) -> None:
        self._file = file
        self._tell = tell
        self._known: Mapping[str, int] = {}
        self._runner = Background("telling of messages that were too large", self._run)

    def start(self) -> None:
        """Tell what is counted now, and then what is added."""
        self._runner.start()

    async def close(self) -> None:
        """Look no more."""
        await self._runner.close()

    async def _run(self) -> None:
        changed_ns = 0
        while True:
            try:
                found_ns = self._file.stat().st_mtime_ns if self._file.exists() else 0
                if found_ns != changed_ns:
                    changed_ns = found_ns
                    self._take(_counts(self._file) if found_ns else {})
            except (OSError, ValueError) as exc:
                # whoever writes it replaces it whole, so the next one is as good
                log.warning("%s: %s", self._file, exc)
            await asyncio.sleep(limits.BROKER_SAID_MS / 1_000)

    def _take(self, counts: Mapping[str, int]) -> None:
        for client, count in counts.items():
            before = self._known.get(client, 0)
            # a broker that began anew counts anew
            more = count - before if count >= before else count
            if more:
                self._tell(client, more, count)
        self._known = counts


def _counts(file: Path) -> dict[str, int]:
    """OSError, ValueError when it is not what it should be."""
    found = json.loads(read_file(file, limits.ACCESS_BYTES))
    if not isinstance(found, dict) or any(type(count) is not int for count in found.values()):
        raise ValueError("not counts by client")
    return found
