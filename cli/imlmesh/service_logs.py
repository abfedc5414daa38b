"""What services wrote into systemd's journal, as records and as lines for people.

The one rule: what our processes log as JSON keeps its fields; what systemd itself says of a unit
stands between. Deliberately absent: logs of a mesh without systemd, which lie in its home.
"""

import json
import subprocess
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.text import Text

from imlmesh.machine import Machine
from imlmesh_protocol.errors import MeshError

_STYLES = {"error": "red", "critical": "red", "warning": "yellow"}
#: what our own lines say of themselves
_OWN = ("at", "level", "logger", "message")


def service_records(
    machine: Machine, units: Sequence[str], *, lines: int, follow: bool
) -> Iterator[dict[str, Any]]:
    """{at, unit, level, message, and the fields of our log lines}, the oldest first.

    MeshError `service.no_systemd`, `service.failed`.
    """
    target = () if machine.is_this else (f"--root={machine.root}",)
    command = ["journalctl", *target, "--output=json", f"--lines={lines}"]
    command += [f"--unit={unit}" for unit in units]
    try:
        reading = subprocess.Popen(
            [*command, *(["--follow"] if follow else [])],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
    except FileNotFoundError as exc:
        raise MeshError("service.no_systemd", "journalctl is not installed here") from exc
    with reading:
        try:
            for line in reading.stdout or ():
                yield _record(json.loads(line))
        except BaseException:
            # whoever reads has seen enough
            reading.terminate()
            raise
        said = (reading.stderr.read() if reading.stderr else b"").decode(errors="replace").strip()
    if reading.returncode > 0:
        raise MeshError("service.failed", f"journalctl: {said or reading.returncode}")


def record_line(record: dict[str, Any]) -> Text:
    """Time, level, unit and message."""
    at = datetime.fromisoformat(record["at"]).astimezone().strftime("%m-%d %H:%M:%S")
    name = record["unit"].removeprefix("imlmesh-").removesuffix(".service")
    code = f" [{record['code']}]" if "code" in record else ""
    style = _STYLES.get(record["level"], "")
    return Text.assemble((f"{at} {name} ", "dim"), (f"{record['message']}{code}", style))


def _record(entry: dict[str, Any]) -> dict[str, Any]:
    message = entry.get("MESSAGE") or ""
    if isinstance(message, list):
        # the journal's way to say that it is no text, or that there were several
        is_bytes = all(isinstance(part, int) for part in message)
        message = (
            bytes(message).decode(errors="replace") if is_bytes else " ".join(map(str, message))
        )
    at = datetime.fromtimestamp(int(entry["__REALTIME_TIMESTAMP"]) / 1e6, UTC)
    unit = entry.get("UNIT") or entry.get("_SYSTEMD_UNIT") or ""
    level = "error" if int(entry.get("PRIORITY", 6)) <= 3 else "info"
    record = {"at": at.isoformat(timespec="milliseconds"), "unit": unit, "level": level}
    try:
        own = json.loads(message)
    except ValueError:
        own = None
    if isinstance(own, dict) and all(isinstance(own.get(name), str) for name in _OWN):
        return record | own
    return record | {"message": message}
