"""How open a unit leaves its process, as systemd judges it without running it."""

import re
import subprocess
from pathlib import Path


def exposure(unit: Path) -> int:
    """Tenths, as in the last line of `systemd-analyze security`: 0 is closed, 100 open."""
    command = ["systemd-analyze", "--no-pager", "security", "--offline=true", str(unit)]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout
    found = re.search(r"Overall exposure level for .*: (\d+)\.(\d)", shown)
    assert found, shown
    return int(found[1]) * 10 + int(found[2])
