"""Whether the disk of a node's folder has room for what must not be forgotten.

The one rule: what may not be repeated is only begun where its end can be written down. Asked for each
such dispatch, in two microseconds, since a disk fills within milliseconds.
"""

import shutil
from pathlib import Path

from imlmesh_protocol.errors import Fault
from imlmesh_protocol.limits import JOURNAL_FREE_BYTES


class Space:
    """Of the disk that `folder` lies on."""

    def __init__(self, folder: Path, needed: int = JOURNAL_FREE_BYTES) -> None:
        self._folder = folder
        self._needed = needed

    def refusal(self) -> Fault | None:
        """Why nothing may begin that needs such room, or None."""
        free = shutil.disk_usage(self._folder).free
        if free >= self._needed:
            return None
        text = f"{free >> 10} KB of the node's disk are free, {self._needed >> 10} needed"
        return Fault("journal.full", text)
