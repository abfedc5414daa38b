"""A stand-in for the real device: it keeps its level in a file. Put your library in its place.

The one rule: what the device says is checked here; a value that it cannot have is an error, never
a result.
"""

from pathlib import Path


class Device:
    """A device with a level from 0 to 100."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def level(self) -> int:
        """The present level; OSError when the device does not answer, ValueError for nonsense."""
        said = self._file.read_text(encoding="ascii", errors="replace")
        if not said.isdecimal() or int(said) > 100:
            raise ValueError(f"the lamp says {said[:40]!r}, which is no level")
        return int(said)

    def set_level(self, level: int) -> None:
        """Set the level; OSError when the device does not answer."""
        self._file.write_text(str(level), encoding="ascii")
