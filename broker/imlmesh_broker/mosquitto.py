"""Mosquitto as the broker: found, and configured for one mesh.

The one rule: its files are written anew at every start, so that nothing in them is older than the
code. Deliberately absent: looking after the process; `child` does that.
"""

import os
import pwd
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from imlmesh_broker.child import LOOPBACK, Broker
from imlmesh_broker.config import OPENSSL_TEXT, Layout, config_text
from imlmesh_protocol import limits
from imlmesh_protocol.errors import LinkError
from imlmesh_protocol.ids import NAME

#: of 2.1; where distributions and its own build put it
_PLUGIN = "mosquitto_acl_file.so"
#: in the words of 2.0, and of 2.1; it has no other way to say it
_OVERSIZE = re.compile(
    rb"\d+: Client (\S+)(?: \[\S*\])? disconnected(?: due to|:) oversize packet\."
)


class Mosquitto(Broker):
    """Mosquitto of the system."""

    program: ClassVar[str] = "mosquitto"

    def command(self) -> list[str]:
        """LinkError `broker.missing` when it is not installed."""
        binary = find_mosquitto()
        place = self.place
        layout = Layout(
            served=place.served,
            node=(place.host, self.port),
            control=(LOOPBACK, self.control_port),
            user=pwd.getpwuid(os.geteuid()).pw_name,
            plugin=find_plugin(Path(binary)) if version_of(binary) >= (2, 1) else None,
        )
        # as they are they need no room, so that a full disk keeps no broker down
        self._served.put("mosquitto.conf", config_text(layout).encode())
        self._served.put("openssl.cnf", OPENSSL_TEXT.encode())
        return [binary, "-c", str(place.served / "mosquitto.conf")]

    @staticmethod
    def oversize_of(line: bytes) -> str | None:
        found = _OVERSIZE.fullmatch(line)
        if found is None:
            return None
        client = found[1].decode(errors="replace")
        # who did not introduce itself is called by its address
        return client if NAME.fullmatch(client) else ""

    def environment(self) -> Mapping[str, str]:
        return {"OPENSSL_CONF": str(self.place.served / "openssl.cnf")}


def find_mosquitto() -> str:
    """The program's path; LinkError `broker.missing` when it is not installed."""
    found = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
    if found is None:
        raise LinkError("broker.missing", "mosquitto is not installed")
    return found


def version_of(binary: str) -> tuple[int, int]:
    """What the program says of itself; LinkError `broker.failed` when it says nothing."""
    try:
        # its exit code means nothing: 3 in 2.0, which shows its usage
        said = subprocess.run(
            [binary, "-h"], capture_output=True, timeout=limits.BROKER_START_MS / 1000, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise LinkError("broker.failed", f"{binary}: {exc}") from exc
    found = re.search(rb"version (\d+)\.(\d+)", said)
    if found is None:
        raise LinkError("broker.failed", f"{binary} does not tell its version")
    return int(found[1]), int(found[2])


def find_plugin(binary: Path) -> Path | None:
    """The acl-file plugin that belongs to the program, or None: then the older word still works."""
    prefix = binary.resolve().parents[1]
    places = [prefix / "lib", *sorted((prefix / "lib").glob("*-linux-*")), prefix / "lib64"]
    return next((place / _PLUGIN for place in places if (place / _PLUGIN).is_file()), None)
