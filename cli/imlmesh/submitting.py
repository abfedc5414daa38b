"""What follows a submission: its id alone, or the run to its end.

The one rule: what was submitted is told before it is followed. Deliberately absent: submitting.
"""

from collections.abc import Mapping
from typing import Any

from imlmesh.client import Client
from imlmesh.diagnosis import show_records
from imlmesh.live import follow_run
from imlmesh.render import emit, say, try_line, write
from imlmesh.settings import settings


def after_submission(
    client: Client, submitted: Mapping[str, Any], *, detach: bool, timeout_s: float | None
) -> int | None:
    """The exit code of the run, or None when it is left alone."""
    name = submitted["run"]
    if submitted["warnings"] and settings.output == "table":
        show_records([], submitted["warnings"])
    if not detach:
        return follow_run(client, name, timeout_s=timeout_s)
    if not emit(submitted):
        write(name)
        say(f"watch: {try_line(f'run watch {name}')}   stop: {try_line(f'run cancel {name}')}")
    return None
